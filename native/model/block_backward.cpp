// The backward pass through a block; block.cpp has the forward pass.
#include "pipelora/model/block.h"

namespace pipelora {

Buffer Block::branch_grad(const Tensor& dout, const Tensor& branch, const Tensor& post) {
  if (!post && arch_.residual_scale == 1) return Buffer();
  Buffer gradient = arena_.workspace("gradient of what a branch adds", dout.dtype, dout.rows, dout.cols);
  if (post) ops_.rmsnorm_backward({branch, post, dout, Tensor(), gradient, Tensor(), norm_rule(arch_)});
  if (arch_.residual_scale != 1) ops_.add(Tensor(), post ? gradient.tensor() : dout, arch_.residual_scale, gradient);
  return gradient;
}

Buffer Block::backward(const Batch& batch, BlockSaved saved, Buffer dout, bool needs_input_grad) {
  if (!saved.qkv) run(batch, saved, Keeps::all, true, nullptr);

  const std::int64_t tokens = batch.sequences.tokens, f = ffn_;
  const DType dtype = ops_.compute_dtype();
  const Sequences* sequences = &batch.sequences;
  const bool parallel = arch_.parallel;
  // How far down gradients must go: to whatever is trainable, or to the input.
  const bool into_qkv = needs_input_grad || qkv_->trainable();
  const bool into_mixer = into_qkv || mixer_->trainable();
  const bool into_attention = into_mixer || o_->trainable();
  const bool into_mlp_input = parallel ? needs_input_grad : into_attention;
  const bool into_mlp = into_mlp_input || (gate_up_ && gate_up_->trainable());

  const auto inner_grad_for = [&](const LinearGroup& group) {
    return group.has_pairs() ? arena_.workspace("gradient of LoRA's inner vectors", DType::f32, tokens, group.inner_cols()) : Buffer();
  };
  const auto input_grad = [&](const LinearGroup& group, const Tensor& dy, const Tensor& inner, const Tensor& inner_grad, const Tensor& dx) {
    return LinearInputGrad{dy, &group.weight(), group.lora(batch.dropout()), inner, inner_grad, dx, sequences};
  };
  const auto a_grad = [&](const LinearGroup& group, const Tensor& x, const Buffer& inner_grad) {
    if (group.has_pairs()) ops_.lora_a_grad({x, inner_grad, group.lora(batch.dropout()), sequences});
  };
  // Backward through a product and the norm before it. `to` = residual + the gradient of the norm's input, if it is wanted.
  const auto through = [&](const LinearGroup& group, const Tensor& dout_of, const Tensor& before, const Tensor& inner, const Tensor& x, const Tensor& norm,
                           bool wanted, const Tensor& residual, const Tensor& to) {
    const Buffer plain = group.product_grad(dout_of, before, batch.dropout());
    const Tensor dy = plain ? plain.tensor() : dout_of;
    if (!wanted && !group.has_pairs()) return;
    Buffer inner_grad = inner_grad_for(group);
    Buffer normed = arena_.workspace("a norm's output and its gradient", dtype, tokens, arch_.hidden);
    if (!norm) {
      group.input_grad(input_grad(group, dy, inner, inner_grad, wanted ? normed.tensor() : Tensor()), before);
      if (wanted) ops_.add(residual, normed, 1, to);
      return a_grad(group, x, inner_grad);
    }
    if (wanted) {
      group.input_grad_norm(input_grad(group, dy, inner, inner_grad, normed), before, {x, norm, normed, residual, to, normed, norm_rule(arch_)});
    } else {
      group.input_grad(input_grad(group, dy, inner, inner_grad, Tensor()), before);
      ops_.rmsnorm_forward(x, norm, norm_rule(arch_), normed);
    }
    a_grad(group, normed, inner_grad);
  };

  // y = mid + act Wd
  Buffer dx;  // in parallel: where the gradient of x gathers
  if (experts_) {
    experts_backward(batch, saved, dout, into_attention);
  } else {
    const Tensor gate = saved.gate_up.tensor().columns(0, f), up = saved.gate_up.tensor().columns(f, f);
    {
      const Buffer own = branch_grad(dout, saved.mlp_out, mlp_post_norm_);
      const Buffer plain = down_->product_grad(own ? own : dout, saved.before_down, batch.dropout());
      const Tensor dy = plain ? plain.tensor() : own ? own.tensor() : dout.tensor();
      Buffer inner_grad = inner_grad_for(*down_);
      Buffer act = arena_.workspace("SwiGLU's output and its gradient", dtype, tokens, f);
      if (into_mlp) {
        down_->input_grad_swiglu(input_grad(*down_, dy, saved.inner_down, inner_grad, act), saved.before_down, gate, up, arch_.activation);
      } else if (down_->has_pairs()) {
        down_->input_grad(input_grad(*down_, dy, saved.inner_down, inner_grad, Tensor()), saved.before_down);
        ops_.swiglu_forward(gate, up, act, arch_.activation);
        a_grad(*down_, act, inner_grad);
      }
    }
    saved.mlp_out.reset();
    saved.before_down.reset();

    // g, u = norm(mid) Wgu; `gate_up` holds their gradients now, and dout becomes the gradient of mid. In parallel they come from x.
    if (into_mlp) {
      if (parallel && needs_input_grad) dx = arena_.workspace("gradient of a block's input", dtype, tokens, arch_.hidden);
      through(*gate_up_, saved.gate_up, saved.before_gate_up, saved.inner_gate_up, parallel ? saved.x : saved.mid, parallel ? attn_norm_ : mlp_norm_, into_mlp_input, dout,
              parallel ? dx : dout);
    }
  }
  if (!into_attention) return Buffer();
  saved.experts = ExpertsSaved();
  for (Buffer* done : {&saved.gate_up, &saved.share, &saved.mlp_out, &saved.mid, &saved.before_gate_up}) done->reset();

  // mid = x + attn Wo
  Buffer dqkv;
  {
    const Buffer own = branch_grad(dout, saved.attn_out, attn_post_norm_);
    const Buffer plain = o_->product_grad(own ? own : dout, saved.before_o, batch.dropout());
    Buffer inner_grad = inner_grad_for(*o_);
    Buffer dattn;
    if (into_mixer) dattn = arena_.workspace("gradient of attention's output", dtype, tokens, mixer_->out_cols());
    if (into_mixer || o_->has_pairs()) o_->input_grad(input_grad(*o_, plain ? plain : own ? own : dout, saved.inner_o, inner_grad, dattn), saved.before_o);
    saved.before_o.reset();
    if (o_->has_pairs()) {
      Buffer gated;
      a_grad(*o_, mixer_->output(saved, 0, gated), inner_grad);
    }
    if (!into_mixer) return Buffer();
    inner_grad.reset();
    dqkv = mixer_->backward(batch, saved, std::move(dattn), into_qkv);
  }
  saved.attn.reset();
  saved.expanded.reset();
  saved.attn_out.reset();
  saved.qkv.reset();
  if (!into_qkv) return Buffer();
  if (!moves_.empty()) {
    Buffer product = arena_.workspace("gradient of a product to be arranged", dtype, tokens, mixer_->in_cols());
    arrange(product, dqkv, true);
    dqkv = std::move(product);
  }

  // q, k, v = norm(x) Wqkv; dout, or dx, becomes the gradient of x.
  Buffer& gradient = parallel ? dx : dout;
  through(*qkv_, dqkv, saved.before_qkv, saved.inner_qkv, saved.x, attn_norm_, needs_input_grad, gradient, gradient);
  return needs_input_grad ? std::move(gradient) : Buffer();
}

}  // namespace pipelora
