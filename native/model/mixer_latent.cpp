// Multi-head latent attention. The block's product gives [q or its latent vector | the latent vector of k and v | k's turning columns]; norms and
// second products expand the latent vectors.
#include <cmath>

#include "pipelora/model/block.h"
#include "pipelora/core/error.h"
#include "pipelora/model/mixer.h"

namespace pipelora {

namespace {

class LatentMixer final : public Mixer {
 public:
  LatentMixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base)
      : ops_(ops), arena_(arena), arch_(arch), spec_(spec), own_(*spec.latent), shape_(own_.shape), rule_(own_.norm_eps) {
    const LatentShape& s = shape_;
    const bool good = s.heads > 0 && s.plain > 0 && s.turning > 0 && s.turning % 2 == 0 && s.value > 0 && own_.kv_rank > 0 && own_.q_rank >= 0;
    const bool turns = spec.rotary < 0 || 2 * static_cast<std::int64_t>(arch.rotary[static_cast<std::size_t>(spec.rotary)].inv_freq.size()) == s.turning;
    if (!good || !turns || s.head_dim() != arch.head_dim || s.heads != arch.heads || own_.q_norm.empty() != (own_.q_rank == 0))
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": latent attention needs positive widths, an even number of turning columns, a norm of "
                                       "every latent vector, frequencies for those columns, and the arch's heads and head width");
    q_cols_ = s.heads * s.head_dim();
    kv_cols_ = s.heads * (s.plain + s.value);
    if (own_.q_rank > 0) q_b_ = make_group(ops, arena, spec, "q's expansion", pick_linears(spec, {Role::q_b}), own_.q_rank, q_cols_, base);
    kv_b_ = make_group(ops, arena, spec, "the expansion of k and v", pick_linears(spec, {Role::kv_b}), own_.kv_rank, kv_cols_, base);
    auto* at = static_cast<float*>(base.memory("norm weights", static_cast<std::size_t>(own_.q_rank + own_.kv_rank) * sizeof(float)));
    if (own_.q_rank > 0) q_norm_ = Tensor(at, DType::f32, 1, own_.q_rank);
    kv_norm_ = Tensor(at + own_.q_rank, DType::f32, 1, own_.kv_rank);
  }

  std::vector<LinearSpec> inputs() const override { return pick_linears(spec_, {q_b_ ? Role::q_a : Role::q, Role::kv_a}); }
  std::int64_t in_cols() const override { return first_cols() + own_.kv_rank + shape_.turning; }
  std::int64_t out_cols() const override { return shape_.heads * shape_.value; }
  const char* input_name() const override { return "q and the latent vector of k and v"; }
  CacheShape cache_shape() const override { return {q_cols_ + out_cols(), 0}; }
  std::vector<LinearGroup*> groups() override {
    return q_b_ ? std::vector<LinearGroup*>{q_b_.get(), kv_b_.get()} : std::vector<LinearGroup*>{kv_b_.get()};
  }
  std::vector<WeightPlace> weights() override {
    std::vector<WeightPlace> places{{own_.kv_norm, {own_.kv_rank}, 0, kv_norm_}};
    if (q_b_) places.push_back({own_.q_norm, {own_.q_rank}, 0, q_norm_});
    return places;
  }
  void make_inner(BlockSaved& saved, std::int64_t tokens) override {
    const auto make = [&](const LinearGroup& group, Buffer& inner) {
      if (group.has_pairs()) inner = arena_.tensor("LoRA's inner vectors", DType::f32, tokens, group.inner_cols());
    };
    if (q_b_) make(*q_b_, saved.inner_q_b);
    make(*kv_b_, saved.inner_kv_b);
  }

  void forward(const Call& call) override {
    BlockSaved& saved = call.saved;
    const std::int64_t tokens = call.batch.sequences.tokens;
    saved.expanded = arena_.tensor("what latent vectors expand to", ops_.compute_dtype(), tokens, kv_cols_ + (q_b_ ? q_cols_ : 0), call.place);
    expand(call, *kv_b_, latent(saved.qkv), kv_norm_, saved.inner_kv_b, saved.before_kv_b, expanded(saved));
    if (q_b_) expand(call, *q_b_, first(saved.qkv), q_norm_, saved.inner_q_b, saved.before_q_b, q(saved));

    Rows rows = assemble(call.batch, saved);
    saved.attn = arena_.tensor("attention's output", ops_.compute_dtype(), tokens, out_cols() + call.room, call.place);
    if (call.keep) saved.lse = arena_.tensor("attention's log-sum-exp", DType::f32, shape_.heads, tokens, call.place);
    AttentionForward attention{rows.q, rows.k(), rows.v(), saved.attn.tensor().columns(0, out_cols()), saved.lse, &call.batch.sequences,
                               shape_.head_dim(), spec_.sliding_window, score_scale(), arch_.score_cap, shape_.value};
    if (call.cache != nullptr) {
      ops_.scatter_rows(rows.kv, call.batch.cache_row, 1, call.cache->tokens);
      attention.k = call.cache->tokens.columns(0, q_cols_);
      attention.v = call.cache->tokens.columns(q_cols_, out_cols());
    }
    ops_.attention_forward(attention);
    if (!call.keep) saved.expanded.reset();
  }

  Tensor output(const BlockSaved& saved, std::int64_t, Buffer&) override { return saved.attn.tensor().columns(0, out_cols()); }

  Buffer backward(const Batch& batch, BlockSaved& saved, Buffer dout, bool input_wanted) override {
    const std::int64_t tokens = batch.sequences.tokens;
    const DType dtype = ops_.compute_dtype();
    Buffer gradient = arena_.workspace("gradient of q and the latent vectors", dtype, tokens, in_cols());
    Buffer dexpanded = arena_.workspace("gradient of what latent vectors expand to", dtype, tokens, kv_cols_);
    Buffer dq_b;
    if (q_b_) dq_b = arena_.workspace("gradient of q", dtype, tokens, q_cols_);
    const Tensor dq = q_b_ ? dq_b.tensor() : first(gradient);
    {
      Rows rows = assemble(batch, saved);
      Buffer dkv = arena_.workspace("gradient of k and v", dtype, tokens, q_cols_ + out_cols());
      const Tensor dk = dkv.tensor().columns(0, q_cols_), dv = dkv.tensor().columns(q_cols_, out_cols());
      ops_.attention_backward({rows.q, rows.k(), rows.v(), saved.attn.tensor().columns(0, out_cols()), saved.lse, dout, dq, dk, dv, &batch.sequences,
                               shape_.head_dim(), spec_.sliding_window, score_scale(), Tensor(), &batch.rope_row, arch_.score_cap, shape_.value});
      ops_.latent_heads_backward({dq, dk, dv, dq, dexpanded, shared(gradient), table(batch), &batch.rope_row, arch_.rotary_interleaved, shape_});
    }
    dout.reset();
    saved.attn.reset();
    contract(batch, *kv_b_, latent(saved.qkv), kv_norm_, saved.inner_kv_b, saved.before_kv_b, dexpanded, latent(gradient), input_wanted);
    if (q_b_) contract(batch, *q_b_, first(saved.qkv), q_norm_, saved.inner_q_b, saved.before_q_b, dq_b, first(gradient), input_wanted);
    return gradient;
  }

 private:
  std::int64_t first_cols() const { return own_.q_rank > 0 ? own_.q_rank : q_cols_; }
  Tensor first(const Tensor& product) const { return product.columns(0, first_cols()); }
  Tensor latent(const Tensor& product) const { return product.columns(first_cols(), own_.kv_rank); }
  Tensor shared(const Tensor& product) const { return product.columns(first_cols() + own_.kv_rank, shape_.turning); }
  Tensor expanded(const BlockSaved& saved) const { return saved.expanded.tensor().columns(0, kv_cols_); }
  Tensor q(const BlockSaved& saved) const { return q_b_ ? saved.expanded.tensor().columns(kv_cols_, q_cols_) : first(saved.qkv); }
  Tensor table(const Batch& batch) const { return spec_.rotary >= 0 ? batch.rope[static_cast<std::size_t>(spec_.rotary)].values : Tensor(); }
  float score_scale() const { return arch_.score_scale > 0 ? arch_.score_scale : 1.0f / std::sqrt(static_cast<float>(shape_.head_dim())); }

  /// The inputs of attention: q, and k and v side by side.
  struct Rows {
    Buffer q, kv;
    std::int64_t k_cols;
    Tensor k() const { return kv.tensor().columns(0, k_cols); }
    Tensor v() const { return kv.tensor().columns(k_cols, kv.tensor().cols - k_cols); }
  };
  Rows assemble(const Batch& batch, const BlockSaved& saved) {
    const std::int64_t tokens = batch.sequences.tokens;
    const DType dtype = ops_.compute_dtype();
    Rows rows{arena_.workspace("q after rotary", dtype, tokens, q_cols_), arena_.workspace("k and v", dtype, tokens, q_cols_ + out_cols()), q_cols_};
    ops_.latent_heads_forward({q(saved), expanded(saved), shared(saved.qkv), rows.q, rows.k(), rows.v(), table(batch), &batch.rope_row,
                               arch_.rotary_interleaved, shape_});
    return rows;
  }

  void expand(const Call& call, const LinearGroup& group, const Tensor& from, const Tensor& norm, const Tensor& inner, Buffer& before, const Tensor& to) {
    if (call.keep && group.has_gains()) before = arena_.tensor("a product before its gains", to.dtype, to.rows, to.cols, call.place);
    const std::int64_t room = ops_.room_for_lora(group.inner_cols());
    const Buffer storage = arena_.workspace("a norm's output", from.dtype, from.rows, from.cols + room);
    const Tensor normed = storage.tensor().columns(0, from.cols);
    LinearForward all{normed, &group.weight(), group.lora(call.batch.dropout()), inner, Tensor(), to, &call.batch.sequences, true, call.again};
    all.x_unread = true;
    group.forward(all, before, [&](const LinearForward& product) {
      if (!group.watched()) return ops_.norm_linear_forward(from, norm, rule_, product);
      ops_.rmsnorm_forward(from, norm, rule_, product.x);
      ops_.linear_forward(product);
    });
  }

  /// Back through a second product and its norm; `to`: the gradient of `from`.
  void contract(const Batch& batch, const LinearGroup& group, const Tensor& from, const Tensor& norm, const Tensor& inner, const Tensor& before,
                const Tensor& dout, const Tensor& to, bool wanted) {
    const Buffer plain = group.product_grad(dout, before, batch.dropout());
    const Tensor dy = plain ? plain.tensor() : dout;
    if (!wanted && !group.has_pairs()) return;
    Buffer inner_grad;
    if (group.has_pairs()) inner_grad = arena_.workspace("gradient of LoRA's inner vectors", DType::f32, from.rows, group.inner_cols());
    const Buffer normed = arena_.workspace("a norm's output and its gradient", from.dtype, from.rows, from.cols);
    const LoraSet lora = group.lora(batch.dropout());
    LinearInputGrad call{dy, &group.weight(), lora, inner, inner_grad, wanted ? normed.tensor() : Tensor(), &batch.sequences};
    if (wanted) {
      group.input_grad_norm(call, before, {from, norm, normed, Tensor(), to, normed, rule_});
    } else {
      group.input_grad(call, before);
      ops_.rmsnorm_forward(from, norm, rule_, normed);
    }
    if (group.has_pairs()) ops_.lora_a_grad({normed, inner_grad, lora, &batch.sequences});
  }

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  const BlockSpec& spec_;
  const LatentSpec& own_;
  const LatentShape& shape_;
  NormRule rule_;
  std::int64_t q_cols_ = 0, kv_cols_ = 0;
  std::unique_ptr<LinearGroup> q_b_, kv_b_;
  Tensor q_norm_, kv_norm_;
};

}  // namespace

std::unique_ptr<Mixer> make_latent_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base) {
  return std::make_unique<LatentMixer>(ops, arena, arch, spec, base);
}

}  // namespace pipelora
