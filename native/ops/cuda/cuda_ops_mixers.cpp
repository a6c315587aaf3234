// The kinds of attention beyond softmax over heads of one width.
#include <algorithm>

#include "ops/cuda/attention/attention.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/delta/delta.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

void CudaOps::short_conv_forward(const ShortConv& call) {
  if (call.x.rows > 0) cuda::short_conv_forward(call, device_.stream());
}
void CudaOps::short_conv_backward(const ShortConvBackward& call) {
  if (call.x.rows > 0) cuda::short_conv_backward(call, device_.stream());
}

void CudaOps::head_gate_forward(const HeadGate& call) {
  if (call.x.rows > 0) cuda::head_gate_forward(call, device_.stream());
}
void CudaOps::head_gate_backward(const HeadGateBackward& call) {
  if (call.x.rows > 0) cuda::head_gate_backward(call, device_.stream());
}

void CudaOps::latent_heads_forward(const LatentHeads& call) {
  if (call.q.rows > 0) cuda::latent_heads_forward(call, device_.stream());
}
void CudaOps::latent_heads_backward(const LatentHeadsBackward& call) {
  if (call.dq.rows > 0) cuda::latent_heads_backward(call, device_.stream());
}

namespace {
void check_shape(const DeltaShape& shape) {
  if (shape.key_dim > kMostDeltaDim || shape.value_dim > kMostDeltaDim)
    throw Error(kTensorMismatch, "expected heads of a gated delta net of at most " + std::to_string(kMostDeltaDim) + " columns, got " +
                                     std::to_string(shape.key_dim) + " and " + std::to_string(shape.value_dim));
}
}  // namespace

/// q and k at length 1, and the gates, in the arena.
struct CudaOps::HeldInputs {
  Buffer q, k, lengths, gates;
  DeltaInputs inputs;
};

CudaOps::HeldInputs CudaOps::delta_inputs(const Tensor& qkv, const Tensor& b, const Tensor& a, const Tensor& a_log, const Tensor& dt_bias, const DeltaShape& shape) {
  check_shape(shape);
  const std::int64_t width = delta_key_width(shape.key_dim);
  HeldInputs held;
  held.q = arena_->workspace("queries of length 1", DType::f32, qkv.rows, shape.key_heads * width);
  held.k = arena_->workspace("keys of length 1", DType::f32, qkv.rows, shape.key_heads * width);
  held.lengths = arena_->workspace("lengths of queries and keys", DType::f32, qkv.rows, 2 * shape.key_heads);
  held.gates = arena_->workspace("beta and decay", DType::f32, qkv.rows, 2 * shape.value_heads);
  held.inputs = {held.q, held.k, held.lengths, held.gates, width};
  delta_prepare(qkv, b, a, a_log, dt_bias, shape, held.inputs, device_.stream());
  return held;
}

void CudaOps::delta_rule_forward(const DeltaRule& call) {
  if (call.qkv.rows == 0) return;
  const HeldInputs held = delta_inputs(call.qkv, call.b, call.a, call.a_log, call.dt_bias, call.shape);
  delta_scan(call.qkv, held.inputs, call.out, call.state, {}, *call.sequences, call.shape, device_.stream());
}

void CudaOps::delta_rule_backward(const DeltaRuleBackward& call) {
  if (call.qkv.rows == 0) return;
  const DeltaShape& shape = call.shape;
  const std::size_t needed = delta_backward_shared(shape);
  if (needed > gpu_.block_bytes)
    throw Error(kDeviceUnavailable, "the gated delta net's way back takes " + std::to_string(needed >> 10) + " KiB of shared memory a block, this GPU has " +
                                        std::to_string(gpu_.block_bytes >> 10) + ": run it on a GPU of compute capability 9.0 or later, or on CPU workers");
  const HeldInputs held = delta_inputs(call.qkv, call.b, call.a, call.a_log, call.dt_bias, shape);
  const std::int64_t tokens = call.qkv.rows;
  const Buffer changes = arena_->workspace("what a delta rule changed", DType::f32, tokens, shape.values());
  const Buffer states = arena_->workspace("states before chunks", DType::f32, std::max<std::int64_t>(1, delta_chunks(tokens)), shape.state());
  const Buffer grads = arena_->workspace("gradients of a delta rule's queries and keys", DType::f32, tokens, 2 * shape.value_heads * shape.key_dim);
  const DeltaRecord record{changes, states};
  delta_scan(call.qkv, held.inputs, Tensor(), Tensor(), record, *call.sequences, shape, device_.stream());
  delta_backward(call, held.inputs, record, grads, device_.stream());
}

namespace {
/// Heads of another width, zeros behind; the tensor itself where they have it.
struct Widened {
  Buffer storage;
  Tensor tensor;
};
}  // namespace

/// Attention whose heads of v differ from those of q and k: the narrower ones are widened with zeros, which change no score and no sum.
bool CudaOps::attention_by_widening(const AttentionForward& call) {
  const std::int64_t e = call.head_dim, ev = call.value_width(), wide = std::max(e, ev);
  if (e == ev) return false;
  cudaStream_t stream = device_.stream();
  const auto widened = [&](const Tensor& tensor, std::int64_t width) {
    if (width == wide) return Widened{Buffer(), tensor};
    Widened made{arena_->workspace("wider heads", tensor.dtype, tensor.rows, tensor.cols / width * wide), Tensor()};
    made.tensor = made.storage;
    head_widths(tensor, width, made.tensor, wide, stream);
    return made;
  };
  const Widened q = widened(call.q, e), k = widened(call.k, e), v = widened(call.v, ev);
  const Buffer out = ev == wide ? Buffer() : arena_->workspace("attention's wider output", call.out.dtype, call.out.rows, call.out.cols / ev * wide);
  AttentionForward plain = call;
  plain.q = q.tensor, plain.k = k.tensor, plain.v = v.tensor;
  plain.out = out ? out.tensor() : call.out;
  plain.head_dim = wide;
  plain.value_dim = 0;
  attention_forward(plain);
  if (out) head_widths(out, wide, call.out, ev, stream);
  return true;
}

bool CudaOps::attention_by_widening(const AttentionBackward& call) {
  const std::int64_t e = call.head_dim, ev = call.value_width(), wide = std::max(e, ev);
  if (e == ev) return false;
  if (call.rope) throw Error(kEngineFailed, "attention with heads of two widths does not turn its gradients back");
  cudaStream_t stream = device_.stream();
  const auto room = [&](const Tensor& tensor, std::int64_t width) {
    if (width == wide) return Widened{Buffer(), tensor};
    Widened made{arena_->workspace("wider heads", tensor.dtype, tensor.rows, tensor.cols / width * wide), Tensor()};
    made.tensor = made.storage;
    return made;
  };
  const auto widened = [&](const Tensor& tensor, std::int64_t width) {
    Widened made = room(tensor, width);
    if (made.storage) head_widths(tensor, width, made.tensor, wide, stream);
    return made;
  };
  const Widened q = widened(call.q, e), k = widened(call.k, e), v = widened(call.v, ev), out = widened(call.out, ev), dout = widened(call.dout, ev);
  const Widened dq = room(call.dq, e), dk = room(call.dk, e), dv = room(call.dv, ev);
  AttentionBackward plain = call;
  plain.q = q.tensor, plain.k = k.tensor, plain.v = v.tensor, plain.out = out.tensor, plain.dout = dout.tensor;
  plain.dq = dq.tensor, plain.dk = dk.tensor, plain.dv = dv.tensor;
  plain.head_dim = wide;
  plain.value_dim = 0;
  attention_backward(plain);
  if (dq.storage) head_widths(dq.tensor, wide, call.dq, e, stream);
  if (dk.storage) head_widths(dk.tensor, wide, call.dk, e, stream);
  if (dv.storage) head_widths(dv.tensor, wide, call.dv, ev, stream);
  return true;
}

}  // namespace pipelora::cuda
