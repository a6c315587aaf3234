// h = norm(x); q, k, v = h Wqkv; mid = x + attention(rope(q), rope(k), v) Wo; g, u = norm(mid) Wgu; y = mid + (silu(g) u) Wd, or mid + a mixture of
// experts (block_experts.cpp).
// A family may leave norms out, put norms on what attention and MLP add, scale that, or let both read h: see Arch and BlockSpec.
#include "pipelora/model/block.h"

#include <algorithm>

#include "pipelora/core/error.h"

namespace pipelora {

Block::Block(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base)
    : ops_(ops), arena_(arena), arch_(arch), spec_(spec) {
  const std::int64_t d = arch.hidden;
  if (spec_.rotary < -1 || spec_.rotary >= static_cast<std::int64_t>(arch.rotary.size()))
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": there is no rotary rule " + std::to_string(spec_.rotary));
  mixer_ = make_mixer(ops, arena, arch, spec_, base);
  moves_ = mixer_->moves();
  qkv_ = make_group(ops, arena, spec_, mixer_->input_name(), mixer_->inputs(), d, mixer_->in_cols(), base);
  o_ = make_group(ops, arena, spec_, "o", pick_linears(spec_, {Role::o}), mixer_->out_cols(), d, base);
  const std::vector<LinearSpec> down = pick_linears(spec_, {Role::down}), shared_gate = pick_linears(spec_, {Role::shared_gate});
  if (!spec_.experts || !down.empty()) {
    ffn_ = down.empty() ? 0 : down.front().in;
    gate_up_ = make_group(ops, arena, spec_, "gate and up", pick_linears(spec_, {Role::gate_up, Role::gate, Role::up}), d, 2 * ffn_, base);
    down_ = make_group(ops, arena, spec_, "down", down, ffn_, d, base);
  }
  if (!shared_gate.empty()) shared_gate_ = make_group(ops, arena, spec_, "a shared expert's gate", shared_gate, d, 1, base);
  if (spec_.experts) experts_ = std::make_unique<Experts>(ops, arena, d, *spec_.experts, base);
  if ((experts_ && arch.parallel) || (shared_gate_ && !(experts_ && down_)))
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": experts stand behind attention, and a shared expert's gate beside them");

  struct Place {
    const std::string& name;
    Tensor& weight;
  };
  const Place norms[] = {{spec_.attn_norm, attn_norm_}, {spec_.mlp_norm, mlp_norm_}, {spec_.attn_post_norm, attn_post_norm_}, {spec_.mlp_post_norm, mlp_post_norm_}};
  const auto count = std::count_if(std::begin(norms), std::end(norms), [](const Place& place) { return !place.name.empty(); });
  float* at = static_cast<float*>(base.memory("norm weights", static_cast<std::size_t>(count * d) * sizeof(float)));
  for (const Place& place : norms) {
    if (place.name.empty()) continue;
    place.weight = Tensor(at, DType::f32, 1, d);
    places_.push_back({place.name, {d}, arch.norm_offset, place.weight});
    at += d;
  }
  for (WeightPlace& place : mixer_->weights()) places_.push_back(std::move(place));
}

bool Block::trainable() const {
  const auto learns = [](const std::unique_ptr<LinearGroup>& group) { return group && group->trainable(); };
  return learns(qkv_) || mixer_->trainable() || learns(o_) || learns(gate_up_) || learns(down_) || learns(shared_gate_) ||
         (experts_ && experts_->trainable());
}

std::vector<LinearGroup*> Block::groups() {
  std::vector<LinearGroup*> all{qkv_.get()};
  for (LinearGroup* group : mixer_->groups()) all.push_back(group);
  for (const auto* group : {&o_, &gate_up_, &down_, &shared_gate_})
    if (*group) all.push_back(group->get());
  if (experts_) all.push_back(&experts_->router());
  return all;
}

void Block::arrange(const Tensor& product, const Tensor& arranged, bool back) {
  for (const ColumnMove& move : moves_) {
    const Tensor from = product.columns(move.from, move.count), to = arranged.columns(move.to, move.count);
    ops_.copy(back ? to : from, back ? from : to);
  }
}

void Block::add_branch(const Tensor& residual, const Tensor& branch, const Tensor& post, const Tensor& out) {
  if (post)
    ops_.rmsnorm_add(branch, post, norm_rule(arch_), residual, arch_.residual_scale, out);
  else
    ops_.add(residual, branch, arch_.residual_scale, out);
}

Buffer Block::run(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, const BlockCache* cache) {
  const bool keep = keeps == Keeps::all || keeps == Keeps::all_for_now;
  // The arena is filled from both ends. Tensors that stay until the backward pass lie low, shorter-lived ones high, so that neither leaves holes
  // in the other.
  const Placement place = keeps == Keeps::all && !again ? Placement::low : Placement::high;
  const std::int64_t tokens = batch.sequences.tokens, f = ffn_;
  const DType dtype = ops_.compute_dtype();
  const Tensor x = saved.x;
  const auto make_inner = [&](const std::unique_ptr<LinearGroup>& group, Buffer& inner) {
    if (group && group->has_pairs()) inner = arena_.tensor("LoRA's inner vectors", DType::f32, tokens, group->inner_cols());
  };
  if (!again) {  // first of all: under checkpointing they stay when what lies behind them goes
    make_inner(qkv_, saved.inner_qkv);
    mixer_->make_inner(saved, tokens);
    make_inner(o_, saved.inner_o);
    make_inner(gate_up_, saved.inner_gate_up);
    make_inner(down_, saved.inner_down);
    make_inner(shared_gate_, saved.inner_shared_gate);
  }
  // Every linear's input has room for LoRA's inner columns behind its own, except for hidden states that no norm wrote.
  const auto room_of = [&](const LinearGroup& group) { return ops_.room_for_lora(group.inner_cols()); };
  const auto linear = [&](const LinearGroup& group, const Tensor& in, const Tensor& inner, const Tensor& residual, const Tensor& out) {
    return LinearForward{in, &group.weight(), group.lora(batch.dropout()), inner, residual, out, &batch.sequences, true, again};
  };
  // Where the backward pass needs a product as it was before DoRA's gains.
  const auto before_of = [&](const LinearGroup& group, Buffer& before) {
    if (keep && group.has_gains()) before = arena_.tensor("a product before its gains", dtype, tokens, group.weight().out, place);
    return before ? before.tensor() : Tensor();
  };
  const auto normed_linear = [&](const LinearGroup& group, const Tensor& in, const Tensor& norm, const Tensor& normed, const Tensor& inner, Buffer& before,
                                 const Tensor& out) {
    LinearForward call = linear(group, norm ? normed : in, inner, Tensor(), out);
    call.x_has_room = call.x_unread = static_cast<bool>(norm);
    group.forward(call, before_of(group, before), [&](const LinearForward& product) {
      if (norm && !group.watched()) return ops_.norm_linear_forward(in, norm, norm_rule(arch_), product);
      if (norm) ops_.rmsnorm_forward(in, norm, norm_rule(arch_), product.x);
      ops_.linear_forward(product);
    });
  };
  const auto room_for_norm = [&](const Tensor& norm, const LinearGroup& group) {
    return norm ? arena_.workspace("a norm's output", dtype, tokens, arch_.hidden + room_of(group)) : Buffer();
  };
  const auto normed_in = [&](const Buffer& buffer) { return buffer ? buffer.tensor().columns(0, arch_.hidden) : Tensor(); };

  Buffer storage = room_for_norm(attn_norm_, *qkv_);
  Buffer product;
  if (!moves_.empty()) product = arena_.workspace("a product to be arranged", dtype, tokens, mixer_->in_cols());
  saved.qkv = arena_.tensor("what attention starts from", dtype, tokens, mixer_->in_cols(), place);
  normed_linear(*qkv_, x, attn_norm_, normed_in(storage), saved.inner_qkv, saved.before_qkv, product ? product.tensor() : saved.qkv.tensor());
  storage.reset();
  if (product) arrange(product, saved.qkv, false);
  product.reset();

  mixer_->forward({batch, saved, keep, again, place, cache, room_of(*o_)});
  Buffer gated;
  const Tensor attn = mixer_->output(saved, room_of(*o_), gated);
  if (!keep) saved.qkv.reset();
  if (!keep) saved.lse.reset();

  // Adds the output of attention or MLP to the residual: in the product itself, or after a norm or a factor of its own. `multiply` may make the input, too.
  const auto add_linear = [&](const LinearGroup& group, const Tensor& in_rows, const Tensor& inner, Buffer& before, const Tensor& residual, const Tensor& post,
                              Buffer& kept, const Buffer& to, const auto& multiply) {
    if (!post && arch_.residual_scale == 1) return group.forward(linear(group, in_rows, inner, residual, to), before_of(group, before), multiply);
    Buffer own;
    Buffer& branch = post && keep ? kept : own;
    branch = post && keep ? arena_.tensor("what a norm takes", dtype, tokens, arch_.hidden, place) : arena_.workspace("what a branch adds", dtype, tokens, arch_.hidden);
    group.forward(linear(group, in_rows, inner, Tensor(), branch), before_of(group, before), multiply);
    if (to) add_branch(residual, branch, post, to);
  };
  saved.mid = arena_.tensor("the hidden state after attention", dtype, tokens, arch_.hidden, place);
  add_linear(*o_, attn, saved.inner_o, saved.before_o, x, attn_post_norm_, saved.attn_out, saved.mid, [&](const LinearForward& call) { ops_.linear_forward(call); });
  gated.reset();
  if (!keep) saved.attn.reset();
  if (keeps == Keeps::nothing && !arch_.parallel) saved.x.reset();

  if (experts_) return run_experts(batch, saved, keeps, again, place);
  const Tensor& mlp_norm = arch_.parallel ? attn_norm_ : mlp_norm_;
  storage = room_for_norm(mlp_norm, *gate_up_);
  saved.gate_up = arena_.tensor("gate and up", dtype, tokens, 2 * f, place);
  normed_linear(*gate_up_, arch_.parallel ? x : saved.mid.tensor(), mlp_norm, normed_in(storage), saved.inner_gate_up, saved.before_gate_up, saved.gate_up);
  storage.reset();
  if (keeps == Keeps::nothing) saved.x.reset();
  if (again && !mlp_post_norm_ && !down_->has_gains()) return Buffer();

  const Tensor gate = saved.gate_up.tensor().columns(0, f), up = saved.gate_up.tensor().columns(f, f);
  storage = arena_.workspace("SwiGLU's output", dtype, tokens, f + room_of(*down_));
  const Tensor act = storage.tensor().columns(0, f);
  Buffer out;
  if (!again) out = arena_.tensor("a block's output", dtype, tokens, arch_.hidden);
  add_linear(*down_, act, saved.inner_down, saved.before_down, saved.mid, mlp_post_norm_, saved.mlp_out, out, [&](const LinearForward& call) {
    if (call.y && !down_->watched()) return ops_.swiglu_linear_forward(gate, up, call, arch_.activation);
    ops_.swiglu_forward(gate, up, act, arch_.activation);
    if (call.y) ops_.linear_forward(call);
  });
  return out;
}

Buffer Block::forward(const Batch& batch, Buffer x, BlockSaved* saved, Keeps keeps, const BlockCache* cache) {
  BlockSaved own;
  own.x = std::move(x);
  Buffer out = run(batch, own, keeps, false, cache);
  if (keeps == Keeps::inputs) {
    for (Buffer* large : {&own.qkv, &own.expanded, &own.attn, &own.lse, &own.mid, &own.gate_up, &own.share}) large->reset();
    own.experts = ExpertsSaved();
  }
  if (keeps != Keeps::nothing) *saved = std::move(own);
  return out;
}

}  // namespace pipelora
