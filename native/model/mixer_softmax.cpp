// Softmax attention over heads of q, k and v: norms of heads, rotary, a window or chunks, sinks, a gate on its output.
#include <cmath>

#include "pipelora/model/block.h"
#include "pipelora/core/error.h"
#include "pipelora/model/mixer.h"

namespace pipelora {

namespace {

class SoftmaxMixer final : public Mixer {
 public:
  SoftmaxMixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base)
      : ops_(ops), arena_(arena), arch_(arch), spec_(spec), q_cols_(arch.heads * arch.head_dim), kv_cols_(arch.kv_heads * arch.head_dim) {
    if (spec.q_norm.empty() != spec.k_norm.empty())
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": q and k need a norm both, or neither");
    if (arch.qkv_by_kv_head && (spec.linears.front().role != Role::qkv || spec.gated))
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected one fused q, k and v without a gate where they stand by kv head");
    if (spec.plain_head_norms && !spec.q_norm.empty())
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected norms of q and k with weights or without, got both");
    if (spec.chunked && arch.attention_chunk <= 0)
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected positions of a chunk above 0, got " + std::to_string(arch.attention_chunk));
    const bool norms = !spec.q_norm.empty() || spec.plain_head_norms;
    const std::int64_t of_q = norms ? (arch.head_norm_whole ? q_cols_ : arch.head_dim) : 0, of_k = norms ? (arch.head_norm_whole ? kv_cols_ : arch.head_dim) : 0;
    const std::int64_t sinks = spec.sinks.empty() ? 0 : arch.heads;
    if (of_q + of_k + sinks == 0) return;
    auto* at = static_cast<float*>(base.memory("weights of heads", static_cast<std::size_t>(of_q + of_k + sinks) * sizeof(float)));
    if (norms) {
      q_norm_ = Tensor(at, DType::f32, 1, of_q);
      k_norm_ = Tensor(at + of_q, DType::f32, 1, of_k);
    }
    if (spec.plain_head_norms) {  // times 1
      const std::vector<float> ones(static_cast<std::size_t>(of_q + of_k), 1.0f);
      ops_.upload(Tensor(at, DType::f32, 1, of_q + of_k), ones.data());
    }
    if (sinks > 0) sinks_ = Tensor(at + of_q + of_k, DType::f32, 1, sinks);
  }

  std::vector<LinearSpec> inputs() const override { return pick_linears(spec_, {Role::qkv, Role::q, Role::k, Role::v}); }
  std::int64_t in_cols() const override { return q_cols_ + 2 * kv_cols_ + gate_cols(); }
  std::int64_t out_cols() const override { return q_cols_; }
  const char* input_name() const override { return spec_.gated ? "q, its gate, k and v" : "q, k and v"; }
  CacheShape cache_shape() const override { return {2 * kv_cols_, 0}; }

  std::vector<WeightPlace> weights() override {
    std::vector<WeightPlace> places;
    if (!spec_.q_norm.empty()) {
      places.push_back({spec_.q_norm, {q_norm_.cols}, arch_.norm_offset, q_norm_});
      places.push_back({spec_.k_norm, {k_norm_.cols}, arch_.norm_offset, k_norm_});
    }
    if (sinks_) places.push_back({spec_.sinks, {sinks_.cols}, 0, sinks_});
    return places;
  }

  // q, k, v and the gate, whole each.
  std::vector<ColumnMove> moves() const override {
    std::vector<ColumnMove> moves;
    const std::int64_t e = arch_.head_dim;
    if (spec_.gated) {
      for (std::int64_t h = 0; h < arch_.heads; ++h) {
        moves.push_back({2 * h * e, h * e, e});
        moves.push_back({(2 * h + 1) * e, q_cols_ + 2 * kv_cols_ + h * e, e});
      }
      moves.push_back({2 * q_cols_, q_cols_, 2 * kv_cols_});
    } else if (arch_.qkv_by_kv_head) {
      const std::int64_t group = arch_.heads / arch_.kv_heads;
      for (std::int64_t h = 0; h < arch_.kv_heads; ++h) {
        const std::int64_t first = h * (group + 2) * e;
        moves.push_back({first, h * group * e, group * e});
        moves.push_back({first + group * e, q_cols_ + h * e, e});
        moves.push_back({first + (group + 1) * e, q_cols_ + kv_cols_ + h * e, e});
      }
    }
    return moves;
  }

  void forward(const Call& call) override {
    BlockSaved& saved = call.saved;
    const std::int64_t tokens = call.batch.sequences.tokens;
    const DType dtype = ops_.compute_dtype();
    const Heads in = heads(saved.qkv);
    const Tensor v = saved.qkv.tensor().columns(q_cols_ + kv_cols_, kv_cols_);
    Heads out = in;
    Buffer turned;  // with norms on heads, backward needs what stood before them
    if (q_norm_ && call.keep) {
      turned = arena_.workspace("q and k after rotary", dtype, tokens, q_cols_ + kv_cols_);
      out = heads(turned);
    }
    heads_forward(call.batch, in, out);

    saved.attn = arena_.tensor("attention's output", dtype, tokens, q_cols_ + (spec_.gated ? 0 : call.room), call.place);
    if (call.keep || sinks_) saved.lse = arena_.tensor("attention's log-sum-exp", DType::f32, arch_.heads, tokens, call.place);
    AttentionForward attention{out.q, out.k, v, saved.attn.tensor().columns(0, q_cols_), saved.lse, &call.batch.attended(spec_.chunked),
                               arch_.head_dim, spec_.sliding_window, score_scale(), arch_.score_cap};
    if (call.cache != nullptr) {
      ops_.scatter_rows(saved.qkv.tensor().columns(q_cols_, 2 * kv_cols_), call.batch.cache_row, 1, call.cache->tokens);
      attention.k = call.cache->tokens.columns(0, kv_cols_);
      attention.v = call.cache->tokens.columns(kv_cols_, kv_cols_);
    }
    ops_.attention_forward(attention);
    if (sinks_) ops_.attention_sinks({attention.out, saved.lse, sinks_, arch_.head_dim});
  }

  Tensor output(const BlockSaved& saved, std::int64_t room, Buffer& storage) override {
    const Tensor attn = saved.attn.tensor().columns(0, q_cols_);
    if (!spec_.gated) return attn;
    storage = arena_.workspace("attention's output behind its gate", attn.dtype, attn.rows, q_cols_ + room);
    const Tensor y = storage.tensor().columns(0, q_cols_);
    ops_.head_gate_forward({attn, gate(saved.qkv), Tensor(), NormRule(), arch_.head_dim, y});
    return y;
  }

  Buffer backward(const Batch& batch, BlockSaved& saved, Buffer dout, bool) override {
    const std::int64_t tokens = batch.sequences.tokens;
    const DType dtype = ops_.compute_dtype();
    const Tensor attn = saved.attn.tensor().columns(0, q_cols_);
    const Heads in = heads(saved.qkv);
    const Tensor v = saved.qkv.tensor().columns(q_cols_ + kv_cols_, kv_cols_);
    Heads turned_heads = in;
    Buffer turned;
    if (q_norm_) {
      turned = arena_.workspace("q and k after rotary", dtype, tokens, q_cols_ + kv_cols_);
      turned_heads = heads(turned);
      heads_again(batch, in, turned_heads);
    }
    Buffer dqkv = arena_.workspace("gradient of q, k and v", dtype, tokens, in_cols());
    if (spec_.gated) ops_.head_gate_backward({attn, gate(saved.qkv), Tensor(), NormRule(), arch_.head_dim, dout, dout, gate(dqkv)});
    const Heads grads = heads(dqkv);
    const Tensor dv = dqkv.tensor().columns(q_cols_ + kv_cols_, kv_cols_);
    // If rotary covers whole heads in halves, the attention kernel can undo it where it makes the gradients.
    const Tensor rope = !q_norm_ && spec_.rotary >= 0 && !query_scale(batch) && !arch_.rotary_interleaved ? table(batch) : Tensor();
    const bool at_once = rope && rope.cols == arch_.head_dim;
    ops_.attention_backward({turned_heads.q, turned_heads.k, v, attn, saved.lse, dout, grads.q, grads.k, dv, &batch.attended(spec_.chunked), arch_.head_dim,
                             spec_.sliding_window, score_scale(), at_once ? rope : Tensor(), &batch.rope_row, arch_.score_cap});
    if (!at_once) heads_backward(batch, grads, in);
    return dqkv;
  }

 private:
  /// q and k [T, heads E], side by side in one tensor.
  struct Heads {
    Tensor q, k;
  };
  Heads heads(const Tensor& qkv) const { return {qkv.columns(0, q_cols_), qkv.columns(q_cols_, kv_cols_)}; }
  std::int64_t gate_cols() const { return spec_.gated ? q_cols_ : 0; }
  Tensor gate(const Tensor& qkv) const { return qkv.columns(q_cols_ + 2 * kv_cols_, q_cols_); }
  float score_scale() const { return arch_.score_scale > 0 ? arch_.score_scale : 1.0f / std::sqrt(static_cast<float>(arch_.head_dim)); }
  /// The queries' factors, or empty where this block has none.
  Tensor query_scale(const Batch& batch) const { return arch_.query_scale_unturned && spec_.rotary >= 0 ? Tensor() : batch.q_scale.tensor(); }
  Tensor table(const Batch& batch) const { return batch.rope[static_cast<std::size_t>(spec_.rotary)].values; }

  /// Norms of heads (where weights are given), then this block's rotary and the queries' factors (where asked for); and back.
  void turn(const Batch& batch, const Heads& in, const Heads& out, const Tensor& q_norm, const Tensor& k_norm, bool rotary) {
    const bool turns = rotary && spec_.rotary >= 0;
    const Tensor q_scale = rotary ? query_scale(batch) : Tensor();
    if (!turns && !q_scale && !q_norm) return;
    ops_.qk_rope_forward({in.q, in.k, out.q, out.k, q_norm, k_norm, norm_rule(arch_), turns ? table(batch) : Tensor(), &batch.rope_row, q_scale,
                          arch_.head_dim, arch_.rotary_interleaved});
  }
  void rotary_backward(const Batch& batch, const Heads& grads, const Heads& before, const Tensor& q_norm, const Tensor& k_norm, bool rotary) {
    const bool turns = rotary && spec_.rotary >= 0;
    const Tensor q_scale = rotary ? query_scale(batch) : Tensor();
    if (!turns && !q_scale && !q_norm) return;
    ops_.qk_rope_backward({grads.q, grads.k, before.q, before.k, q_norm, k_norm, norm_rule(arch_), turns ? table(batch) : Tensor(), &batch.rope_row,
                           arch_.head_dim, q_scale, arch_.rotary_interleaved});
  }

  /// What products left in `in` to what attention takes, in `out` where there are norms, else in place: norms of whole rows and rotary, norms of
  /// heads and rotary, or rotary and then norms of heads.
  void heads_forward(const Batch& batch, const Heads& in, const Heads& out) {
    if (!q_norm_) return turn(batch, in, in, Tensor(), Tensor(), true);
    if (arch_.head_norm_whole) {
      ops_.rmsnorm_forward(in.q, q_norm_, norm_rule(arch_), out.q);
      ops_.rmsnorm_forward(in.k, k_norm_, norm_rule(arch_), out.k);
      return turn(batch, out, out, Tensor(), Tensor(), true);
    }
    if (!arch_.head_norm_after_rotary) return turn(batch, in, out, q_norm_, k_norm_, true);
    turn(batch, in, in, Tensor(), Tensor(), true);
    turn(batch, in, out, q_norm_, k_norm_, false);
  }

  /// `out` again from what heads_forward() left in `in`, where there are norms: turned where the norm comes after.
  void heads_again(const Batch& batch, const Heads& in, const Heads& out) {
    if (arch_.head_norm_after_rotary) return turn(batch, in, out, q_norm_, k_norm_, false);
    heads_forward(batch, in, out);
  }

  void heads_backward(const Batch& batch, const Heads& grads, const Heads& in) {
    if (q_norm_ && !arch_.head_norm_whole && !arch_.head_norm_after_rotary) return rotary_backward(batch, grads, in, q_norm_, k_norm_, true);
    if (q_norm_ && arch_.head_norm_after_rotary) rotary_backward(batch, grads, in, q_norm_, k_norm_, false);
    rotary_backward(batch, grads, {}, Tensor(), Tensor(), true);
    if (q_norm_ && arch_.head_norm_whole) {
      ops_.rmsnorm_backward({in.q, q_norm_, grads.q, Tensor(), grads.q, Tensor(), norm_rule(arch_)});
      ops_.rmsnorm_backward({in.k, k_norm_, grads.k, Tensor(), grads.k, Tensor(), norm_rule(arch_)});
    }
  }

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  const BlockSpec& spec_;
  std::int64_t q_cols_, kv_cols_;
  Tensor q_norm_, k_norm_;
  Tensor sinks_;  // [1, H] or empty
};

}  // namespace

std::unique_ptr<Mixer> make_softmax_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base) {
  return std::make_unique<SoftmaxMixer>(ops, arena, arch, spec, base);
}

}  // namespace pipelora
