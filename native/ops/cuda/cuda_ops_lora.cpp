// LoRA beside a product: by the kernels that kernel_choice.h names, or as products of their own through cuBLASLt.
//
// As products, operands are in the compute dtype (A, B and the vectors between them are rounded to it, as peft's are under
// autocast) and sums in f32. What dropout leaves of an input is written once for each use, since every pair drops other elements.
#include <algorithm>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "ops/cuda/lora/lora.h"

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

LoraKernel CudaOps::choose(LoraOp op, const LoraSet& lora, const Tensor& x, std::initializer_list<Tensor> others) const {
  LoraTraits traits;
  traits.dtype = x.dtype;
  traits.tokens = x.rows;
  traits.columns = x.cols;
  traits.pairs = static_cast<std::int64_t>(lora.pairs.size());
  traits.aligned = eights(x) && std::all_of(others.begin(), others.end(), eights);
  for (const LoraView& pair : lora.pairs) {
    traits.most_rank = std::max(traits.most_rank, pair.a.rows);
    traits.tiles += (pair.a.rows + 7) / 8;
    traits.dropout = traits.dropout || drops(lora, pair);
    const auto rows = [&] {
      switch (op) {
        case LoraOp::output_grads:
          return fours(pair.bt) && fours(pair.grad_bt) && pair.first_column % 8 == 0 && pair.bt.cols % 8 == 0;
        case LoraOp::a_grad: return fours(pair.grad_a);
        case LoraOp::swiglu_grad: return fours(pair.a) && fours(pair.grad_a);
        default: return fours(pair.a);
      }
    };
    traits.aligned = traits.aligned && rows();
  }
  return lora_choice(op, traits, gpu_);
}

void CudaOps::inner_products(const Tensor& x, const std::vector<LoraTile>& tiles, LoraKernel kernel, const DropoutKey* dropout,
                             const Sequences* sequences, const Tensor& inner, const Tensor& copy, std::int64_t tail) {
  if (kernel == LoraKernel::few) return lora_inner_few({x}, tiles, inner, device_.stream());
  const Buffer partial = bytes("partial inner vectors", lora_inner_bytes(x, tiles.size()));
  lora_inner(x, tiles, dropout, sequences, inner, copy, tail, kernel == LoraKernel::fused, scratch(partial), device_.stream());
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
  const LoraKernel kernel = choose(LoraOp::inner, call.lora, call.x);
  if (kernel == LoraKernel::products) return inner_as_products(call.x, call.lora, call.sequences, call.inner);
  inner_products(call.x, forward_tiles(call.lora, call.x.cols), kernel, call.lora.dropout, call.sequences, call.inner, Tensor(), 0);
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
  const LoraKernel kernel = choose(LoraOp::output_grads, call.lora, call.dy);
  if (kernel == LoraKernel::products) return output_grads_as_products(call);
  const LoraBGrad grads{call.dy, call.inner, call.inner_grad, call.lora};
  if (kernel == LoraKernel::fused) {
    const Buffer partial = bytes("partial gradients of LoRA's B", lora_b_grad_bytes(grads));
    return lora_b_grad(grads, partial.tensor().data, device_.stream());
  }
  inner_products(call.dy, backward_tiles(call.lora), LoraKernel::plain, nullptr, call.sequences, call.inner_grad, Tensor(), 0);
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
  const LoraKernel kernel = choose(LoraOp::input_grad, call.lora, call.dx);
  if (kernel != LoraKernel::products)
    return lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, kernel == LoraKernel::fused, device_.stream());
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
  const LoraKernel kernel = choose(LoraOp::a_grad, call.lora, call.x);
  if (kernel == LoraKernel::products) return a_grad_as_products(call);
  if (kernel == LoraKernel::fused) {
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
