// The half of a block that is a mixture of experts, beside a shared expert where there is one: an MLP that every token goes through, and
// that may have a gate of its own, sigma(h wᵀ).
#include "pipelora/model/block.h"

namespace pipelora {

namespace {
LinearForward plain(const Batch& batch, const LinearGroup& group, const Tensor& x, const Tensor& inner, const Tensor& residual, const Tensor& y,
                    bool again) {
  return {x, &group.weight(), group.lora(batch.dropout()), inner, residual, y, &batch.sequences, false, again};
}
}  // namespace

Buffer Block::normed_mid(const BlockSaved& saved) {
  const Tensor mid = saved.mid;
  Buffer h = arena_.workspace("a norm's output", mid.dtype, mid.rows, mid.cols);
  if (mlp_norm_)
    ops_.rmsnorm_forward(mid, mlp_norm_, norm_rule(arch_), h);
  else
    ops_.copy(mid, h);
  return h;
}

Buffer Block::run_experts(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, Placement place) {
  const bool keep = keeps == Keeps::all || keeps == Keeps::all_for_now;
  const std::int64_t tokens = batch.sequences.tokens;
  const DType dtype = ops_.compute_dtype();
  const auto before_of = [&](const LinearGroup& group, Buffer& before, DType of) {
    if (keep && group.has_gains()) before = arena_.tensor("a product before its gains", of, tokens, group.weight().out, place);
    return before ? before.tensor() : Tensor();
  };
  Buffer h = normed_mid(saved);
  if (gate_up_) {
    saved.gate_up = arena_.tensor("gate and up", dtype, tokens, gate_up_->weight().out, place);
    gate_up_->forward(plain(batch, *gate_up_, h, saved.inner_gate_up, Tensor(), saved.gate_up, again), before_of(*gate_up_, saved.before_gate_up, dtype));
  }
  if (shared_gate_) {
    saved.share = arena_.tensor("a shared expert's share", DType::f32, tokens, 1, place);
    shared_gate_->forward(plain(batch, *shared_gate_, h, saved.inner_shared_gate, Tensor(), saved.share, again),
                          before_of(*shared_gate_, saved.before_shared_gate, DType::f32));
    ops_.sigmoid(saved.share);
  }
  experts_->begin(batch, h, saved.experts, keep, place);
  h.reset();
  if (again && !mlp_post_norm_ && !(down_ && down_->has_gains())) return Buffer();

  Buffer out;
  if (!again) out = arena_.tensor("a block's output", dtype, tokens, arch_.hidden);
  const bool apart = mlp_post_norm_ || arch_.residual_scale != 1;
  if (apart) saved.mlp_out = arena_.tensor("what a norm takes", dtype, tokens, arch_.hidden, place);
  const Tensor to = apart ? saved.mlp_out.tensor() : out.tensor();
  Tensor residual = apart ? Tensor() : saved.mid.tensor();
  if (gate_up_) {
    Buffer act = arena_.workspace("SwiGLU's output", dtype, tokens, down_->weight().in);
    ops_.gate_forward({saved.gate_up, saved.share, Tensor(), {arch_.activation}, act});
    down_->forward(plain(batch, *down_, act, saved.inner_down, residual, to, again), before_of(*down_, saved.before_down, dtype));
    residual = to;
  }
  experts_->finish(residual, saved.experts, keep, to);
  if (apart && out) add_branch(saved.mid, saved.mlp_out, mlp_post_norm_, out);
  if (apart && !(keep && mlp_post_norm_)) saved.mlp_out.reset();
  return out;
}

void Block::experts_backward(const Batch& batch, BlockSaved& saved, const Tensor& dout, bool into_input) {
  const std::int64_t tokens = batch.sequences.tokens;
  const DType dtype = ops_.compute_dtype();
  const Buffer own = branch_grad(dout, saved.mlp_out, mlp_post_norm_);
  const Tensor dy = own ? own.tensor() : dout;
  const Buffer h = normed_mid(saved);
  const Buffer dh = arena_.workspace("gradient of a norm's output", dtype, tokens, arch_.hidden);
  ops_.zero(dh);
  const auto back = [&](const LinearGroup& group, const Tensor& dout_of, const Tensor& before, const Tensor& inner, const Tensor& x, const Tensor& dx) {
    const Buffer scaled = group.product_grad(dout_of, before, batch.dropout());
    const Tensor dz = scaled ? scaled.tensor() : dout_of;
    Buffer inner_grad;
    if (!dx && !group.has_pairs()) return inner_grad;
    if (group.has_pairs()) inner_grad = arena_.workspace("gradient of LoRA's inner vectors", DType::f32, tokens, group.inner_cols());
    const LoraSet lora = group.lora(batch.dropout());
    group.input_grad({dz, &group.weight(), lora, inner, inner_grad, dx, &batch.sequences}, before);
    if (group.has_pairs() && x) ops_.lora_a_grad({x, inner_grad, lora, &batch.sequences});
    return inner_grad;
  };
  const auto into_h = [&](const LinearGroup& group, const Tensor& dz, const Tensor& before, const Tensor& inner) {
    if (!into_input && !group.trainable()) return;
    Buffer part;
    if (into_input) part = arena_.workspace("a part of a gradient of hidden states", dtype, tokens, arch_.hidden);
    back(group, dz, before, inner, h, part);
    if (part) ops_.add(dh, part, 1, dh);
  };
  if (gate_up_ && (into_input || gate_up_->trainable() || down_->trainable() || (shared_gate_ && shared_gate_->trainable()))) {
    Buffer act = arena_.workspace("SwiGLU's output and its gradient", dtype, tokens, down_->weight().in);
    Buffer shares;
    if (shared_gate_) shares = arena_.workspace("gradient of a shared expert's share", DType::f32, tokens, 1);
    {
      const Buffer inner_grad = back(*down_, dy, saved.before_down, saved.inner_down, Tensor(), act);
      ops_.gate_backward({saved.gate_up, saved.share, Tensor(), {arch_.activation}, act, shares});
      if (down_->has_pairs()) ops_.lora_a_grad({act, inner_grad, down_->lora(batch.dropout()), &batch.sequences});
    }
    act.reset();
    into_h(*gate_up_, saved.gate_up, saved.before_gate_up, saved.inner_gate_up);
    if (shared_gate_) {
      ops_.sigmoid_backward(saved.share, shares);
      const Buffer dz = arena_.workspace("gradient of a shared expert's gate", dtype, tokens, 1);
      ops_.copy(shares, dz);
      into_h(*shared_gate_, dz, saved.before_shared_gate, saved.inner_shared_gate);
    }
  }
  saved.gate_up.reset();
  if (into_input || experts_->trainable()) experts_->backward(batch, h, dy, saved.experts, into_input, dh);
  if (!into_input) return;
  if (mlp_norm_)
    ops_.rmsnorm_backward({saved.mid, mlp_norm_, dh, dout, dout, Tensor(), norm_rule(arch_)});
  else
    ops_.add(dout, dh, 1, dout);
}

}  // namespace pipelora
