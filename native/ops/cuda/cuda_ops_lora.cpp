// LoRA beside a product: with few ranks by the fused kernels, with more as products of their own through cuBLASLt.
//
// As products, operands are in the compute dtype (A, B and the vectors between them are rounded to it, as peft's are under
// autocast) and sums in f32. What dropout leaves of an input is written once for each use, since every pair drops other elements.
#include <algorithm>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/lora.h"

namespace pipelora::cuda {

namespace {

constexpr const char* kDropped = "LoRA's input after dropout";

bool drops(const LoraSet& lora, const LoraView& pair) { return lora.dropout != nullptr && pair.dropout > 0; }
bool any_drops(const LoraSet& lora) {
  return std::any_of(lora.pairs.begin(), lora.pairs.end(), [&](const LoraView& pair) { return drops(lora, pair); });
}
/// What dropout multiplies kept elements by.
float kept_factor(const LoraSet& lora, const LoraView& pair) { return drops(lora, pair) ? 1.0f / (1.0f - pair.dropout) : 1.0f; }

}  // namespace

bool lora_runs_as_products(const LoraSet& lora) {
  return std::any_of(lora.pairs.begin(), lora.pairs.end(), [](const LoraView& pair) { return pair.a.rows > kMostFusedRank; });
}

Buffer CudaOps::computed(const char* what, std::int64_t rows, std::int64_t cols) {
  return arena_->workspace(what, context_.compute, rows, (cols + 63) / 64 * 64);
}

Buffer CudaOps::rounded_inner(const Tensor& inner) {
  Buffer rounded = computed("inner vectors in the compute dtype", inner.rows, inner.cols);
  copy(inner, rounded.tensor().columns(0, inner.cols));
  return rounded;
}

Buffer CudaOps::stacked_a(const LoraSet& lora, std::int64_t in) {
  Buffer stacked = computed("LoRA's A in the compute dtype", lora.inner_cols, in);
  for (const LoraView& pair : lora.pairs) copy(pair.a, stacked.tensor().columns(0, in).row_range(pair.first_inner, pair.a.rows));
  return stacked;
}

void CudaOps::inner_as_products(const Tensor& x, const LoraSet& lora, const Sequences* sequences, const Tensor& inner) {
  const Buffer stacked = stacked_a(lora, x.cols);
  const Tensor a = stacked.tensor().columns(0, x.cols);
  if (!any_drops(lora)) return multiply({.a = x, .b = a, .d = inner});
  const Buffer dropped = computed(kDropped, x.rows, x.cols);
  const Tensor kept = dropped.tensor().columns(0, x.cols);
  for (const LoraView& pair : lora.pairs) {
    if (drops(lora, pair)) lora_drop(x, pair, *lora.dropout, *sequences, kept, device_.stream());
    multiply({.a = drops(lora, pair) ? kept : x, .b = a.row_range(pair.first_inner, pair.a.rows),
              .d = inner.columns(pair.first_inner, pair.a.rows), .alpha = kept_factor(lora, pair)});
  }
}

void CudaOps::make_inner(const LinearForward& call) {
  if (lora_runs_as_products(call.lora) && call.x.rows > kFewTokens)
    inner_as_products(call.x, call.lora, call.sequences, call.inner);
  else
    inner_products(call.x, forward_tiles(call.lora, call.x.cols), call.lora.dropout, call.sequences, call.inner, Tensor(), 0);
}

void CudaOps::add_output(const LoraSet& lora, const Tensor& inner, const Tensor& y) {
  if (lora.pairs.empty()) return;
  const Buffer rounded = rounded_inner(inner);
  for (const LoraView& pair : lora.pairs) {
    const Buffer bt = computed("LoRA's B in the compute dtype", pair.bt.rows, pair.bt.cols);
    const Tensor b = bt.tensor().columns(0, pair.bt.cols), target = y.columns(pair.first_column, pair.bt.cols);
    copy(pair.bt, b);
    multiply({.a = rounded.tensor().columns(pair.first_inner, pair.bt.rows), .b = b, .b_transposed = false, .c = target, .d = target,
              .alpha = pair.scale});
  }
}

void CudaOps::output_grads(const LinearInputGrad& call) {
  if (lora_runs_as_products(call.lora)) return output_grads_as_products(call);
  const LoraBGrad grads{call.dy, call.inner, call.inner_grad, call.lora};
  if (lora_b_grad_suits(grads)) {
    const Buffer partial = bytes("partial gradients of LoRA's B", lora_b_grad_bytes(grads));
    return lora_b_grad(grads, partial.tensor().data, device_.stream());
  }
  inner_products(call.dy, backward_tiles(call.lora), nullptr, call.sequences, call.inner_grad, Tensor(), 0);
  const Buffer partial = bytes("partial gradients of LoRA's B", lora_b_grad_plain_bytes(grads));
  lora_b_grad_plain(grads, scratch(partial), device_.stream());
}

void CudaOps::output_grads_as_products(const LinearInputGrad& call) {
  const Buffer rounded = rounded_inner(call.inner);
  for (const LoraView& pair : call.lora.pairs) {
    const std::int64_t ranks = pair.bt.rows, out = pair.bt.cols;
    const Buffer bt = computed("LoRA's B in the compute dtype", ranks, out);
    const Tensor b = bt.tensor().columns(0, out), dy = call.dy.columns(pair.first_column, out);
    copy(pair.bt, b);
    multiply({.a = dy, .b = b, .d = call.inner_grad.columns(pair.first_inner, ranks), .alpha = pair.scale});
    multiply({.a = rounded.tensor().columns(pair.first_inner, ranks), .b = dy, .b_transposed = false, .c = pair.grad_bt, .d = pair.grad_bt,
              .a_transposed = true, .alpha = pair.scale});
  }
}

void CudaOps::add_input_grad(const LinearInputGrad& call) {
  if (!lora_runs_as_products(call.lora)) return lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, device_.stream());
  const Buffer rounded = rounded_inner(call.inner_grad), stacked = stacked_a(call.lora, call.dx.cols);
  const Tensor z = rounded.tensor().columns(0, call.inner_grad.cols), a = stacked.tensor().columns(0, call.dx.cols);
  if (!any_drops(call.lora)) return multiply({.a = z, .b = a, .b_transposed = false, .c = call.dx, .d = call.dx});
  const Buffer storage = computed("LoRA's term of an input's gradient", call.dx.rows, call.dx.cols);
  const Tensor term = storage.tensor().columns(0, call.dx.cols);
  for (const LoraView& pair : call.lora.pairs) {
    const bool masked = drops(call.lora, pair);
    multiply({.a = z.columns(pair.first_inner, pair.a.rows), .b = a.row_range(pair.first_inner, pair.a.rows), .b_transposed = false,
              .c = masked ? Tensor() : call.dx, .d = masked ? term : call.dx, .alpha = kept_factor(call.lora, pair)});
    if (masked) lora_add_kept(term, pair, *call.lora.dropout, *call.sequences, call.dx, device_.stream());
  }
}

void CudaOps::lora_a_grad(const LoraAGrad& call) {
  if (call.lora.pairs.empty() || call.x.rows == 0) return;
  if (lora_runs_as_products(call.lora)) return a_grad_as_products(call);
  if (lora_a_grad_suits(call)) {
    const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_bytes(call));
    return cuda::lora_a_grad(call, partial.tensor().data, device_.stream());
  }
  const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_plain_bytes(call));
  lora_a_grad_plain(call, scratch(partial), device_.stream());
}

void CudaOps::a_grad_as_products(const LoraAGrad& call) {
  const Buffer rounded = rounded_inner(call.inner_grad);
  Buffer dropped;
  if (any_drops(call.lora)) dropped = computed(kDropped, call.x.rows, call.x.cols);
  for (const LoraView& pair : call.lora.pairs) {
    const bool masked = drops(call.lora, pair);
    const Tensor x = masked ? dropped.tensor().columns(0, call.x.cols) : call.x;
    if (masked) lora_drop(call.x, pair, *call.lora.dropout, *call.sequences, x, device_.stream());
    multiply({.a = rounded.tensor().columns(pair.first_inner, pair.a.rows), .b = x, .b_transposed = false, .c = pair.grad_a, .d = pair.grad_a,
              .a_transposed = true, .alpha = kept_factor(call.lora, pair)});
  }
}

}  // namespace pipelora::cuda
