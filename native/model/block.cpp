// h = norm(x); q, k, v = h Wqkv; mid = x + attention(rope(q), rope(k), v) Wo; g, u = norm(mid) Wgu; y = mid + (silu(g) u) Wd.
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
  const std::int64_t q = arch.heads * arch.head_dim, kv = arch.kv_heads * arch.head_dim, d = arch.hidden, f = arch.ffn;
  qkv_ = make_group(ops, spec_, "q, k and v", pick(spec_, {Role::qkv, Role::q, Role::k, Role::v}), d, q + 2 * kv);
  o_ = make_group(ops, spec_, "o", pick(spec_, {Role::o}), q, d);
  gate_up_ = make_group(ops, spec_, "gate and up", pick(spec_, {Role::gate, Role::up}), d, 2 * f);
  down_ = make_group(ops, spec_, "down", pick(spec_, {Role::down}), f, d);

  std::vector<std::pair<std::string, std::int64_t>> wanted{{spec_.attn_norm, d}, {spec_.mlp_norm, d}};
  if (spec_.q_norm.empty() != spec_.k_norm.empty())
    throw Error(kTensorMismatch, "block " + std::to_string(spec_.index) + ": q and k need a norm both, or neither");
  if (!spec_.q_norm.empty()) {
    wanted.emplace_back(spec_.q_norm, arch.head_dim);
    wanted.emplace_back(spec_.k_norm, arch.head_dim);
  }
  std::int64_t total = 0;
  for (const auto& [name, size] : wanted) total += size;
  norm_memory_ = ops.allocate("norm weights", static_cast<std::size_t>(total) * sizeof(float), true);
  float* at = static_cast<float*>(norm_memory_->data());
  for (const auto& [name, size] : wanted) {
    norms_.push_back({name, Tensor(at, DType::f32, 1, size)});
    at += size;
  }
}

bool Block::trainable() const {
  return qkv_->trainable() || o_->trainable() || gate_up_->trainable() || down_->trainable();
}

std::vector<LinearGroup*> Block::groups() { return {qkv_.get(), o_.get(), gate_up_.get(), down_.get()}; }

Tensor Block::q_norm() const { return norms_.size() > 2 ? norms_[2].weight : Tensor(); }
Tensor Block::k_norm() const { return norms_.size() > 2 ? norms_[3].weight : Tensor(); }

Buffer Block::run(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, const Tensor* cache) {
  const bool keep = keeps == Keeps::all || keeps == Keeps::all_for_now;
  // What goes before what comes after it has gone stands apart from what stays: no holes between that.
  const Placement place = keeps == Keeps::all && !again ? Placement::low : Placement::high;
  const std::int64_t tokens = batch.sequences.tokens, e = arch_.head_dim, f = arch_.ffn;
  const std::int64_t q_cols = arch_.heads * e, kv_cols = arch_.kv_heads * e;
  const DType dtype = ops_.compute_dtype();
  const Tensor x = saved.x;
  const auto make_inner = [&](const LinearGroup& group, Buffer& inner) {
    if (group.trainable()) inner = arena_.tensor("LoRA's inner vectors", DType::f32, tokens, group.inner_cols());
  };
  if (!again) {  // first of all: under checkpointing they stay when what lies behind them goes
    make_inner(*qkv_, saved.inner_qkv);
    make_inner(*o_, saved.inner_o);
    make_inner(*gate_up_, saved.inner_gate_up);
    make_inner(*down_, saved.inner_down);
  }
  // Every input of a linear has room behind its columns.
  const auto room_of = [&](const LinearGroup& group) { return ops_.room_for_lora(group.inner_cols()); };
  const auto linear = [&](const LinearGroup& group, const Tensor& in, const Tensor& inner, const Tensor& residual, const Tensor& out) {
    return LinearForward{in, &group.weight(), group.lora(batch.dropout()), inner, residual, out, &batch.sequences, true, again};
  };

  Buffer storage = arena_.workspace("a norm's output", dtype, tokens, arch_.hidden + room_of(*qkv_));
  Tensor normed = storage.tensor().columns(0, arch_.hidden);
  saved.qkv = arena_.tensor("q, k and v", dtype, tokens, q_cols + 2 * kv_cols, place);
  ops_.norm_linear_forward(x, norms_[0].weight, arch_.rms_eps, linear(*qkv_, normed, saved.inner_qkv, Tensor(), saved.qkv));
  storage.reset();

  const Tensor q_in = saved.qkv.tensor().columns(0, q_cols), k_in = saved.qkv.tensor().columns(q_cols, kv_cols);
  const Tensor v = saved.qkv.tensor().columns(q_cols + kv_cols, kv_cols);
  Tensor q = q_in, k = k_in;
  Buffer turned;  // with norms on heads, backward needs what stood before them
  if (q_norm() && keep) {
    turned = arena_.workspace("q and k after rotary", dtype, tokens, q_cols + kv_cols);
    q = turned.tensor().columns(0, q_cols);
    k = turned.tensor().columns(q_cols, kv_cols);
  }
  ops_.qk_rope_forward({q_in, k_in, q, k, q_norm(), k_norm(), arch_.rms_eps, batch.rope.values, &batch.rope_row,
                        batch.q_scale.tensor(), e});

  saved.attn = arena_.tensor("attention's output", dtype, tokens, q_cols + room_of(*o_), place);
  const Tensor attn = saved.attn.tensor().columns(0, q_cols);
  if (keep) saved.lse = arena_.tensor("attention's log-sum-exp", DType::f32, arch_.heads, tokens, place);
  AttentionForward attention{q, k, v, attn, saved.lse, &batch.sequences, e, spec_.sliding_window,
                             1.0f / std::sqrt(static_cast<float>(e))};
  if (cache != nullptr) {
    const Sequences& s = batch.sequences;
    for (std::int64_t i = 0; i < s.count(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int64_t first = s.cu_queries.host[at], count = s.cu_queries.host[at + 1] - first;
      const std::int64_t row = s.key_start.host[at] + s.key_length.host[at] - count;
      ops_.copy(saved.qkv.tensor().columns(q_cols, 2 * kv_cols).row_range(first, count), cache->row_range(row, count));
    }
    attention.k = cache->columns(0, kv_cols);
    attention.v = cache->columns(kv_cols, kv_cols);
  }
  ops_.attention_forward(attention);
  turned.reset();
  if (!keep) saved.qkv.reset();

  saved.mid = arena_.tensor("the hidden state after attention", dtype, tokens, arch_.hidden, place);
  ops_.linear_forward(linear(*o_, attn, saved.inner_o, x, saved.mid));
  if (!keep) saved.attn.reset();
  if (keeps == Keeps::nothing) saved.x.reset();

  storage = arena_.workspace("a norm's output", dtype, tokens, arch_.hidden + room_of(*gate_up_));
  normed = storage.tensor().columns(0, arch_.hidden);
  saved.gate_up = arena_.tensor("gate and up", dtype, tokens, 2 * f, place);
  ops_.norm_linear_forward(saved.mid, norms_[1].weight, arch_.rms_eps,
                           linear(*gate_up_, normed, saved.inner_gate_up, Tensor(), saved.gate_up));
  storage.reset();
  if (again) return Buffer();

  const Tensor gate = saved.gate_up.tensor().columns(0, f), up = saved.gate_up.tensor().columns(f, f);
  storage = arena_.workspace("SwiGLU's output", dtype, tokens, f + room_of(*down_));
  const Tensor act = storage.tensor().columns(0, f);
  Buffer out = arena_.tensor("a block's output", dtype, tokens, arch_.hidden);
  ops_.swiglu_linear_forward(gate, up, linear(*down_, act, saved.inner_down, saved.mid, out));
  return out;
}

Buffer Block::forward(const Batch& batch, Buffer x, BlockSaved* saved, Keeps keeps, const Tensor* cache) {
  BlockSaved own;
  own.x = std::move(x);
  Buffer out = run(batch, own, keeps, false, cache);
  if (keeps == Keeps::inputs) {
    for (Buffer* large : {&own.qkv, &own.attn, &own.lse, &own.mid, &own.gate_up}) large->reset();
  }
  if (keeps != Keeps::nothing) *saved = std::move(own);
  return out;
}

Buffer Block::backward(const Batch& batch, BlockSaved saved, Buffer dout, bool needs_input_grad) {
  if (!saved.qkv) run(batch, saved, Keeps::all, true, nullptr);

  const std::int64_t tokens = batch.sequences.tokens, e = arch_.head_dim, f = arch_.ffn;
  const std::int64_t q_cols = arch_.heads * e, kv_cols = arch_.kv_heads * e;
  const DType dtype = ops_.compute_dtype();
  const Sequences* sequences = &batch.sequences;
  // How far down gradients must go: to whatever is trainable, or to the input.
  const bool into_qkv = needs_input_grad || qkv_->trainable();
  const bool into_attention = into_qkv || o_->trainable();
  const bool into_mlp = into_attention || gate_up_->trainable();

  const auto inner_grad_for = [&](const LinearGroup& group) {
    return group.trainable() ? arena_.workspace("gradient of LoRA's inner vectors", DType::f32, tokens, group.inner_cols()) : Buffer();
  };
  const auto input_grad = [&](const LinearGroup& group, const Tensor& dy, const Tensor& inner, const Tensor& inner_grad, const Tensor& dx) {
    return LinearInputGrad{dy, &group.weight(), group.lora(batch.dropout()), inner, inner_grad, dx, sequences};
  };
  const auto a_grad = [&](const LinearGroup& group, const Tensor& x, const Buffer& inner_grad) {
    if (group.trainable()) ops_.lora_a_grad({x, inner_grad, group.lora(batch.dropout()), sequences});
  };

  // y = mid + act Wd
  const Tensor gate = saved.gate_up.tensor().columns(0, f), up = saved.gate_up.tensor().columns(f, f);
  {
    Buffer inner_grad = inner_grad_for(*down_);
    Buffer act = arena_.workspace("SwiGLU's output and its gradient", dtype, tokens, f);
    if (into_mlp) {
      ops_.swiglu_linear_input_grad(input_grad(*down_, dout, saved.inner_down, inner_grad, act), gate, up, gate, up);
    } else {
      ops_.linear_input_grad(input_grad(*down_, dout, saved.inner_down, inner_grad, Tensor()));
      ops_.swiglu_forward(gate, up, act);
      a_grad(*down_, act, inner_grad);
      return Buffer();
    }
  }

  // g, u = norm(mid) Wgu; `gate_up` holds their gradients now, and dout becomes the gradient of mid.
  {
    Buffer inner_grad = inner_grad_for(*gate_up_);
    Buffer normed = arena_.workspace("a norm's output and its gradient", dtype, tokens, arch_.hidden);
    if (into_attention) {
      ops_.linear_input_grad_norm(input_grad(*gate_up_, saved.gate_up, saved.inner_gate_up, inner_grad, normed),
                                  {saved.mid, norms_[1].weight, normed, dout, dout, normed, arch_.rms_eps});
    } else {
      ops_.linear_input_grad(input_grad(*gate_up_, saved.gate_up, saved.inner_gate_up, inner_grad, Tensor()));
      ops_.rmsnorm_forward(saved.mid, norms_[1].weight, arch_.rms_eps, normed);
    }
    a_grad(*gate_up_, normed, inner_grad);
    if (!into_attention) return Buffer();
  }
  saved.gate_up.reset();
  saved.mid.reset();

  // mid = x + attn Wo
  Buffer dqkv;
  {
    Buffer inner_grad = inner_grad_for(*o_);
    Buffer dattn;
    if (into_qkv) dattn = arena_.workspace("gradient of attention's output", dtype, tokens, q_cols);
    const Tensor attn = saved.attn.tensor().columns(0, q_cols);
    ops_.linear_input_grad(input_grad(*o_, dout, saved.inner_o, inner_grad, dattn));
    a_grad(*o_, attn, inner_grad);
    if (!into_qkv) return Buffer();

    const Tensor q_in = saved.qkv.tensor().columns(0, q_cols), k_in = saved.qkv.tensor().columns(q_cols, kv_cols);
    const Tensor v = saved.qkv.tensor().columns(q_cols + kv_cols, kv_cols);
    Tensor q = q_in, k = k_in;
    Buffer turned;
    if (q_norm()) {
      turned = arena_.workspace("q and k after rotary", dtype, tokens, q_cols + kv_cols);
      q = turned.tensor().columns(0, q_cols);
      k = turned.tensor().columns(q_cols, kv_cols);
      ops_.qk_rope_forward({q_in, k_in, q, k, q_norm(), k_norm(), arch_.rms_eps, batch.rope.values, &batch.rope_row, Tensor(), e});
    }
    dqkv = arena_.workspace("gradient of q, k and v", dtype, tokens, q_cols + 2 * kv_cols);
    const Tensor dq = dqkv.tensor().columns(0, q_cols), dk = dqkv.tensor().columns(q_cols, kv_cols);
    const Tensor dv = dqkv.tensor().columns(q_cols + kv_cols, kv_cols);
    ops_.attention_backward({q, k, v, attn, saved.lse, dattn, dq, dk, dv, sequences, e, spec_.sliding_window,
                             1.0f / std::sqrt(static_cast<float>(e)), q_norm() ? Tensor() : batch.rope.values, &batch.rope_row});
    if (q_norm()) ops_.qk_rope_backward({dq, dk, q_in, k_in, q_norm(), k_norm(), arch_.rms_eps, batch.rope.values, &batch.rope_row, e});
  }
  saved.attn.reset();
  saved.qkv.reset();

  // q, k, v = norm(x) Wqkv; dout becomes the gradient of x.
  Buffer inner_grad = inner_grad_for(*qkv_);
  Buffer normed = arena_.workspace("a norm's output and its gradient", dtype, tokens, arch_.hidden);
  if (needs_input_grad) {
    ops_.linear_input_grad_norm(input_grad(*qkv_, dqkv, saved.inner_qkv, inner_grad, normed),
                                {saved.x, norms_[0].weight, normed, dout, dout, normed, arch_.rms_eps});
  } else {
    ops_.linear_input_grad(input_grad(*qkv_, dqkv, saved.inner_qkv, inner_grad, Tensor()));
    ops_.rmsnorm_forward(saved.x, norms_[0].weight, arch_.rms_eps, normed);
  }
  a_grad(*qkv_, normed, inner_grad);
  return needs_input_grad ? std::move(dout) : Buffer();
}

}  // namespace pipelora
