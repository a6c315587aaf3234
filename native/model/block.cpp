// h = norm(x); q, k, v = h Wqkv; mid = x + attention(rope(q), rope(k), v) Wo; g, u = norm(mid) Wgu; y = mid + (silu(g) u) Wd, or mid + a mixture of
// experts (block_experts.cpp).
// A family may leave norms out, put norms on what attention and MLP add, scale that, or let both read h: see Arch and BlockSpec.
#include "pipelora/block.h"

#include <algorithm>
#include <cmath>

#include "pipelora/error.h"

namespace pipelora {

namespace {

std::vector<LinearSpec> pick(const BlockSpec& spec, std::initializer_list<Role> roles) {
  std::vector<LinearSpec> found;
  for (const Role role : roles)
    for (const LinearSpec& linear : spec.linears)
      if (linear.role == role) found.push_back(linear);
  return found;
}

std::unique_ptr<LinearGroup> make_group(Ops& ops, const BlockSpec& spec, const char* what, std::vector<LinearSpec> linears,
                                        std::int64_t in, std::int64_t out) {
  std::int64_t total = 0;
  bool good = !linears.empty();
  for (const LinearSpec& linear : linears) {
    good = good && linear.in == in;
    total += linear.out;
  }
  if (!good || total != out)
    throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": expected " + what + " of " + shape_text(out, in) +
                                     ", the description adds up to " + std::to_string(total) + " outputs");
  return std::make_unique<LinearGroup>(ops, linears);
}

}  // namespace

Block::Block(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec)
    : ops_(ops), arena_(arena), arch_(arch), spec_(spec) {
  const std::int64_t q = arch.heads * arch.head_dim, kv = arch.kv_heads * arch.head_dim, d = arch.hidden;
  qkv_ = make_group(ops, spec_, "q, k and v", pick(spec_, {Role::qkv, Role::q, Role::k, Role::v}), d, q + 2 * kv);
  o_ = make_group(ops, spec_, "o", pick(spec_, {Role::o}), q, d);
  const std::vector<LinearSpec> down = pick(spec_, {Role::down}), shared_gate = pick(spec_, {Role::shared_gate});
  if (!spec_.experts || !down.empty()) {
    ffn_ = down.empty() ? 0 : down.front().in;
    gate_up_ = make_group(ops, spec_, "gate and up", pick(spec_, {Role::gate_up, Role::gate, Role::up}), d, 2 * ffn_);
    down_ = make_group(ops, spec_, "down", down, ffn_, d);
  }
  if (!shared_gate.empty()) shared_gate_ = make_group(ops, spec_, "a shared expert's gate", shared_gate, d, 1);
  if (spec_.experts) experts_ = std::make_unique<Experts>(ops, arena, d, *spec_.experts);
  if ((experts_ && arch.parallel) || (shared_gate_ && !(experts_ && down_)))
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": experts stand behind attention, and a shared expert's gate beside them");

  if (spec_.q_norm.empty() != spec_.k_norm.empty())
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": q and k need a norm both, or neither");
  if (spec_.rotary < -1 || spec_.rotary >= static_cast<std::int64_t>(arch.rotary.size()))
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": there is no rotary rule " + std::to_string(spec_.rotary));
  if (arch.qkv_by_kv_head && spec_.linears.front().role != Role::qkv)
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": expected one fused q, k and v where they stand by kv head");
  struct Place {
    const std::string& name;
    std::int64_t size;
    Tensor& weight;
  };
  const std::int64_t of_q = arch.head_norm_whole ? q : arch.head_dim, of_k = arch.head_norm_whole ? kv : arch.head_dim;
  const Place places[] = {{spec_.attn_norm, d, attn_norm_},           {spec_.mlp_norm, d, mlp_norm_}, {spec_.attn_post_norm, d, attn_post_norm_},
                          {spec_.mlp_post_norm, d, mlp_post_norm_}, {spec_.q_norm, of_q, q_norm_},   {spec_.k_norm, of_k, k_norm_},
                          {spec_.sinks, arch.heads, sinks_}};
  std::int64_t total = 0;
  for (const Place& place : places) total += place.name.empty() ? 0 : place.size;
  norm_memory_ = ops.allocate("norm weights", static_cast<std::size_t>(total) * sizeof(float), true);
  float* at = static_cast<float*>(norm_memory_->data());
  for (const Place& place : places) {
    if (place.name.empty()) continue;
    place.weight = Tensor(at, DType::f32, 1, place.size);
    norms_.push_back({place.name, place.weight, &place.weight == &sinks_});
    at += place.size;
  }
}

bool Block::trainable() const {
  const auto learns = [](const std::unique_ptr<LinearGroup>& group) { return group && group->trainable(); };
  return learns(qkv_) || learns(o_) || learns(gate_up_) || learns(down_) || learns(shared_gate_) || (experts_ && experts_->trainable());
}

std::vector<LinearGroup*> Block::groups() {
  std::vector<LinearGroup*> found;
  for (const auto* group : {&qkv_, &o_, &gate_up_, &down_, &shared_gate_})
    if (*group) found.push_back(group->get());
  if (experts_) found.push_back(&experts_->router());
  return found;
}

float Block::score_scale() const {
  return arch_.score_scale > 0 ? arch_.score_scale : 1.0f / std::sqrt(static_cast<float>(arch_.head_dim));
}

Block::Heads Block::heads(const Tensor& qkv) const {
  const std::int64_t q_cols = arch_.heads * arch_.head_dim, kv_cols = arch_.kv_heads * arch_.head_dim;
  return {qkv.columns(0, q_cols), qkv.columns(q_cols, kv_cols)};
}

void Block::turn(const Batch& batch, const Heads& in, const Heads& out, const Tensor& q_norm, const Tensor& k_norm, bool rotary) {
  const bool turns = rotary && spec_.rotary >= 0;
  const Tensor q_scale = rotary ? batch.q_scale.tensor() : Tensor();
  if (!turns && !q_scale && !q_norm) return;
  ops_.qk_rope_forward({in.q, in.k, out.q, out.k, q_norm, k_norm, norm_rule(arch_), turns ? table(batch) : Tensor(), &batch.rope_row, q_scale,
                        arch_.head_dim, arch_.rotary_interleaved});
}

void Block::turn_back(const Batch& batch, const Heads& grads, const Heads& before, const Tensor& q_norm, const Tensor& k_norm, bool rotary) {
  const bool turns = rotary && spec_.rotary >= 0;
  const Tensor q_scale = rotary ? batch.q_scale.tensor() : Tensor();
  if (!turns && !q_scale && !q_norm) return;
  ops_.qk_rope_backward({grads.q, grads.k, before.q, before.k, q_norm, k_norm, norm_rule(arch_), turns ? table(batch) : Tensor(), &batch.rope_row,
                         arch_.head_dim, q_scale, arch_.rotary_interleaved});
}

// Norms of whole rows and rotary, norms of heads and rotary, or rotary and then norms of heads.
void Block::heads_forward(const Batch& batch, const Heads& in, const Heads& out) {
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

// As heads_forward() left `in`: turned where there is no norm, or where the norm comes after.
void Block::heads_again(const Batch& batch, const Heads& in, const Heads& out) {
  if (arch_.head_norm_after_rotary) return turn(batch, in, out, q_norm_, k_norm_, false);
  heads_forward(batch, in, out);
}

void Block::heads_backward(const Batch& batch, const Heads& grads, const Heads& in) {
  if (q_norm_ && !arch_.head_norm_whole && !arch_.head_norm_after_rotary) return turn_back(batch, grads, in, q_norm_, k_norm_, true);
  if (q_norm_ && arch_.head_norm_after_rotary) turn_back(batch, grads, in, q_norm_, k_norm_, false);
  turn_back(batch, grads, {}, Tensor(), Tensor(), true);
  if (q_norm_ && arch_.head_norm_whole) {
    ops_.rmsnorm_backward({in.q, q_norm_, grads.q, Tensor(), grads.q, Tensor(), norm_rule(arch_)});
    ops_.rmsnorm_backward({in.k, k_norm_, grads.k, Tensor(), grads.k, Tensor(), norm_rule(arch_)});
  }
}

void Block::regroup(const Tensor& by_kv_head, const Tensor& apart, bool back) {
  const std::int64_t e = arch_.head_dim, group = arch_.heads / arch_.kv_heads;
  const std::int64_t k0 = arch_.heads * e, v0 = k0 + arch_.kv_heads * e;
  const auto move = [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    const Tensor a = by_kv_head.columns(from, count), b = apart.columns(to, count);
    if (back)
      ops_.copy(b, a);
    else
      ops_.copy(a, b);
  };
  for (std::int64_t h = 0; h < arch_.kv_heads; ++h) {
    const std::int64_t first = h * (group + 2) * e;
    move(first, h * group * e, group * e);
    move(first + group * e, k0 + h * e, e);
    move(first + (group + 1) * e, v0 + h * e, e);
  }
}

void Block::add_branch(const Tensor& residual, const Tensor& branch, const Tensor& post, const Tensor& out) {
  Buffer normed;
  if (post) {
    normed = arena_.workspace("a norm's output", out.dtype, out.rows, out.cols);
    ops_.rmsnorm_forward(branch, post, norm_rule(arch_), normed);
  }
  ops_.add(residual, post ? normed.tensor() : branch, arch_.residual_scale, out);
}

Buffer Block::run(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, const Tensor* cache) {
  const bool keep = keeps == Keeps::all || keeps == Keeps::all_for_now;
  // What goes before what comes after it has gone stands apart from what stays: no holes between that.
  const Placement place = keeps == Keeps::all && !again ? Placement::low : Placement::high;
  const std::int64_t tokens = batch.sequences.tokens, e = arch_.head_dim, f = ffn_;
  const std::int64_t q_cols = arch_.heads * e, kv_cols = arch_.kv_heads * e;
  const DType dtype = ops_.compute_dtype();
  const Tensor x = saved.x;
  const auto make_inner = [&](const std::unique_ptr<LinearGroup>& group, Buffer& inner) {
    if (group && group->trainable()) inner = arena_.tensor("LoRA's inner vectors", DType::f32, tokens, group->inner_cols());
  };
  if (!again) {  // first of all: under checkpointing they stay when what lies behind them goes
    make_inner(qkv_, saved.inner_qkv);
    make_inner(o_, saved.inner_o);
    make_inner(gate_up_, saved.inner_gate_up);
    make_inner(down_, saved.inner_down);
    make_inner(shared_gate_, saved.inner_shared_gate);
  }
  // Every input of a linear has room behind its columns, but for hidden states that come without a norm.
  const auto room_of = [&](const LinearGroup& group) { return ops_.room_for_lora(group.inner_cols()); };
  const auto linear = [&](const LinearGroup& group, const Tensor& in, const Tensor& inner, const Tensor& residual, const Tensor& out) {
    return LinearForward{in, &group.weight(), group.lora(batch.dropout()), inner, residual, out, &batch.sequences, true, again};
  };
  const auto normed_linear = [&](const LinearGroup& group, const Tensor& in, const Tensor& norm, const Tensor& normed, const Tensor& inner, const Tensor& out) {
    if (norm) return ops_.norm_linear_forward(in, norm, norm_rule(arch_), linear(group, normed, inner, Tensor(), out));
    LinearForward call = linear(group, in, inner, Tensor(), out);
    call.x_has_room = false;
    ops_.linear_forward(call);
  };
  const auto room_for_norm = [&](const Tensor& norm, const LinearGroup& group) {
    return norm ? arena_.workspace("a norm's output", dtype, tokens, arch_.hidden + room_of(group)) : Buffer();
  };
  const auto normed_in = [&](const Buffer& buffer) { return buffer ? buffer.tensor().columns(0, arch_.hidden) : Tensor(); };

  Buffer storage = room_for_norm(attn_norm_, *qkv_);
  Buffer by_kv_head;
  if (arch_.qkv_by_kv_head) by_kv_head = arena_.workspace("q, k and v by kv head", dtype, tokens, q_cols + 2 * kv_cols);
  saved.qkv = arena_.tensor("q, k and v", dtype, tokens, q_cols + 2 * kv_cols, place);
  normed_linear(*qkv_, x, attn_norm_, normed_in(storage), saved.inner_qkv, by_kv_head ? by_kv_head.tensor() : saved.qkv.tensor());
  storage.reset();
  if (by_kv_head) regroup(by_kv_head, saved.qkv, false);
  by_kv_head.reset();

  const Heads in = heads(saved.qkv);
  const Tensor v = saved.qkv.tensor().columns(q_cols + kv_cols, kv_cols);
  Heads out_heads = in;
  Buffer turned;  // with norms on heads, backward needs what stood before them
  if (q_norm_ && keep) {
    turned = arena_.workspace("q and k after rotary", dtype, tokens, q_cols + kv_cols);
    out_heads = heads(turned);
  }
  heads_forward(batch, in, out_heads);

  saved.attn = arena_.tensor("attention's output", dtype, tokens, q_cols + room_of(*o_), place);
  const Tensor attn = saved.attn.tensor().columns(0, q_cols);
  if (keep || sinks_) saved.lse = arena_.tensor("attention's log-sum-exp", DType::f32, arch_.heads, tokens, place);
  AttentionForward attention{out_heads.q, out_heads.k, v, attn, saved.lse, &batch.sequences, e, spec_.sliding_window, score_scale(), arch_.score_cap};
  if (cache != nullptr) {
    ops_.scatter_rows(saved.qkv.tensor().columns(q_cols, 2 * kv_cols), batch.cache_row, 1, *cache);
    attention.k = cache->columns(0, kv_cols);
    attention.v = cache->columns(kv_cols, kv_cols);
  }
  ops_.attention_forward(attention);
  if (sinks_) ops_.attention_sinks({attn, saved.lse, sinks_, e});
  turned.reset();
  if (!keep) saved.qkv.reset();
  if (!keep) saved.lse.reset();

  // What attention and MLP add: at once, or behind a norm or a factor of their own.
  const auto add_linear = [&](const LinearGroup& group, const Tensor& in_rows, const Tensor& inner, const Tensor& residual, const Tensor& post,
                              Buffer& kept, const Buffer& to) {
    if (!post && arch_.residual_scale == 1) return ops_.linear_forward(linear(group, in_rows, inner, residual, to));
    Buffer own;
    Buffer& branch = post && keep ? kept : own;
    branch = post && keep ? arena_.tensor("what a norm takes", dtype, tokens, arch_.hidden, place) : arena_.workspace("what a branch adds", dtype, tokens, arch_.hidden);
    ops_.linear_forward(linear(group, in_rows, inner, Tensor(), branch));
    if (to) add_branch(residual, branch, post, to);
  };
  saved.mid = arena_.tensor("the hidden state after attention", dtype, tokens, arch_.hidden, place);
  add_linear(*o_, attn, saved.inner_o, x, attn_post_norm_, saved.attn_out, saved.mid);
  if (!keep) saved.attn.reset();
  if (keeps == Keeps::nothing && !arch_.parallel) saved.x.reset();

  if (experts_) return run_experts(batch, saved, keeps, again, place);
  const Tensor& mlp_norm = arch_.parallel ? attn_norm_ : mlp_norm_;
  storage = room_for_norm(mlp_norm, *gate_up_);
  saved.gate_up = arena_.tensor("gate and up", dtype, tokens, 2 * f, place);
  normed_linear(*gate_up_, arch_.parallel ? x : saved.mid.tensor(), mlp_norm, normed_in(storage), saved.inner_gate_up, saved.gate_up);
  storage.reset();
  if (keeps == Keeps::nothing) saved.x.reset();
  if (again && !mlp_post_norm_) return Buffer();

  const Tensor gate = saved.gate_up.tensor().columns(0, f), up = saved.gate_up.tensor().columns(f, f);
  storage = arena_.workspace("SwiGLU's output", dtype, tokens, f + room_of(*down_));
  const Tensor act = storage.tensor().columns(0, f);
  if (!mlp_post_norm_ && arch_.residual_scale == 1) {
    Buffer out = arena_.tensor("a block's output", dtype, tokens, arch_.hidden);
    ops_.swiglu_linear_forward(gate, up, linear(*down_, act, saved.inner_down, saved.mid, out), arch_.activation);
    return out;
  }
  ops_.swiglu_forward(gate, up, act, arch_.activation);
  Buffer out;
  if (!again) out = arena_.tensor("a block's output", dtype, tokens, arch_.hidden);
  add_linear(*down_, act, saved.inner_down, saved.mid, mlp_post_norm_, saved.mlp_out, out);
  return out;
}

Buffer Block::forward(const Batch& batch, Buffer x, BlockSaved* saved, Keeps keeps, const Tensor* cache) {
  BlockSaved own;
  own.x = std::move(x);
  Buffer out = run(batch, own, keeps, false, cache);
  if (keeps == Keeps::inputs) {
    for (Buffer* large : {&own.qkv, &own.attn, &own.lse, &own.mid, &own.gate_up, &own.share}) large->reset();
    own.experts = ExpertsSaved();
  }
  if (keeps != Keeps::nothing) *saved = std::move(own);
  return out;
}

}  // namespace pipelora
