// LoRA beside a product: by the kernels that kernel_choice.h names, or as products of their own through cuBLASLt.
//
// As products, operands are in the compute dtype (A, B and the vectors between them are rounded to it, as peft's are under
// autocast) and sums in f32. What dropout leaves of an input is written for each pair, since every pair drops other elements.
#include <algorithm>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "ops/cuda/lora/lora.h"

namespace pipelora::cuda {

namespace {

constexpr const char *kDropped = "LoRA's input after dropout", *kTerm = "LoRA's term of an input's gradient";

bool drops(const LoraSet& lora, const LoraView& pair) { return lora.dropout != nullptr && pair.dropout > 0; }
bool any_drops(const LoraSet& lora) {
  return std::any_of(lora.pairs.begin(), lora.pairs.end(), [&](const LoraView& pair) { return drops(lora, pair); });
}
/// What dropout multiplies kept elements by.
float kept_factor(const LoraSet& lora, const LoraView& pair) { return drops(lora, pair) ? 1.0f / (1.0f - pair.dropout) : 1.0f; }

/// Where a pair's B stands in what stacked_b gives, and its input or term in what dropped_inputs gives.
Tensor b_in(const Buffer& stacked, const LoraView& pair) {
  return stacked.tensor().columns(0, pair.bt.cols).row_range(pair.first_inner, pair.bt.rows);
}
Tensor part_of(const Tensor& inputs, const LoraSet& lora, std::size_t pair, std::int64_t in) {
  return inputs.columns(static_cast<std::int64_t>(pair) * (inputs.cols / static_cast<std::int64_t>(lora.pairs.size())), in);
}

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
  std::vector<CopyJob> jobs;
  for (const LoraView& pair : lora.pairs) jobs.push_back({pair.a, stacked.tensor().columns(0, in).row_range(pair.first_inner, pair.a.rows)});
  copy_all(jobs, device_.stream());
  return stacked;
}

Buffer CudaOps::stacked_b(const LoraSet& lora) {
  std::int64_t widest = 0;
  for (const LoraView& pair : lora.pairs) widest = std::max(widest, pair.bt.cols);
  Buffer stacked = computed("LoRA's B in the compute dtype", lora.inner_cols, widest);
  std::vector<CopyJob> jobs;
  for (const LoraView& pair : lora.pairs) jobs.push_back({pair.bt, b_in(stacked, pair)});
  copy_all(jobs, device_.stream());
  return stacked;
}

Buffer CudaOps::dropped_inputs(const char* what, const LoraSet& lora, std::int64_t rows, std::int64_t in) {
  return computed(what, rows, static_cast<std::int64_t>(lora.pairs.size()) * ((in + 63) / 64 * 64));
}

void CudaOps::inner_of(const LoraSet& lora, const Tensor& inputs, std::int64_t in, const Tensor& inner) {
  const Buffer stacked = stacked_a(lora, in);
  const Tensor a = stacked.tensor().columns(0, in);
  for (std::size_t i = 0; i < lora.pairs.size(); ++i) {
    const LoraView& pair = lora.pairs[i];
    multiply({.a = part_of(inputs, lora, i, in), .b = a.row_range(pair.first_inner, pair.a.rows), .d = inner.columns(pair.first_inner, pair.a.rows),
              .alpha = kept_factor(lora, pair)});
  }
}

void CudaOps::inner_as_products(const Tensor& x, const LoraSet& lora, const Sequences* sequences, const Tensor& inner) {
  if (!any_drops(lora)) {
    const Buffer stacked = stacked_a(lora, x.cols);
    return multiply({.a = x, .b = stacked.tensor().columns(0, x.cols), .d = inner});
  }
  const Buffer dropped = dropped_inputs(kDropped, lora, x.rows, x.cols);
  cuda::lora_drop(x, lora, *sequences, dropped, device_.stream());
  inner_of(lora, dropped, x.cols, inner);
}

void CudaOps::make_inner(const LinearForward& call) {
  const LoraKernel kernel = choose(LoraOp::inner, call.lora, call.x);
  if (kernel == LoraKernel::products) return inner_as_products(call.x, call.lora, call.sequences, call.inner);
  inner_products(call.x, forward_tiles(call.lora, call.x.cols), kernel, call.lora.dropout, call.sequences, call.inner, Tensor(), 0);
}

void CudaOps::add_output(const LoraSet& lora, const Tensor& inner, const Tensor& y) {
  if (!lora.pairs.empty()) write_output(lora, inner, y, y);
}

void CudaOps::write_output(const LoraSet& lora, const Tensor& inner, const Tensor& residual, const Tensor& y) {
  const Buffer rounded = rounded_inner(inner), stacked = stacked_b(lora);
  for (const LoraView& pair : lora.pairs) {
    const std::int64_t first = pair.first_column, count = pair.bt.cols;
    multiply({.a = rounded.tensor().columns(pair.first_inner, pair.bt.rows), .b = b_in(stacked, pair), .b_transposed = false,
              .c = residual ? residual.columns(first, count) : Tensor(), .d = y.columns(first, count), .alpha = pair.scale});
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
  const Buffer rounded = rounded_inner(call.inner), stacked = stacked_b(call.lora);
  for (const LoraView& pair : call.lora.pairs) {
    const std::int64_t ranks = pair.bt.rows;
    const Tensor dy = call.dy.columns(pair.first_column, pair.bt.cols);
    multiply({.a = dy, .b = b_in(stacked, pair), .d = call.inner_grad.columns(pair.first_inner, ranks), .alpha = pair.scale});
    multiply({.a = rounded.tensor().columns(pair.first_inner, ranks), .b = dy, .b_transposed = false, .c = pair.grad_bt, .d = pair.grad_bt,
              .a_transposed = true, .alpha = pair.scale});
  }
}

void CudaOps::terms_of(const LoraSet& lora, const Tensor& rounded, std::int64_t in, const Tensor& terms) {
  const Buffer stacked = stacked_a(lora, in);
  for (std::size_t i = 0; i < lora.pairs.size(); ++i) {
    const LoraView& pair = lora.pairs[i];
    multiply({.a = rounded.columns(pair.first_inner, pair.a.rows), .b = stacked.tensor().columns(0, in).row_range(pair.first_inner, pair.a.rows),
              .b_transposed = false, .d = part_of(terms, lora, i, in), .alpha = kept_factor(lora, pair)});
  }
}

void CudaOps::add_input_grad(const LinearInputGrad& call) {
  const LoraKernel kernel = choose(LoraOp::input_grad, call.lora, call.dx);
  if (kernel != LoraKernel::products)
    return lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, kernel == LoraKernel::fused, device_.stream());
  const Buffer rounded = rounded_inner(call.inner_grad);
  const std::int64_t in = call.dx.cols;
  if (!any_drops(call.lora)) {
    const Buffer stacked = stacked_a(call.lora, in);
    return multiply({.a = rounded.tensor().columns(0, call.inner_grad.cols), .b = stacked.tensor().columns(0, in), .b_transposed = false,
                     .c = call.dx, .d = call.dx});
  }
  const Buffer terms = dropped_inputs(kTerm, call.lora, call.dx.rows, in);
  terms_of(call.lora, rounded, in, terms);
  lora_add_kept(terms, call.lora, *call.sequences, call.dx, device_.stream());
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
  if (!any_drops(call.lora)) return a_grad_of(call.lora, call.x, false, rounded);
  const Buffer dropped = dropped_inputs(kDropped, call.lora, call.x.rows, call.x.cols);
  cuda::lora_drop(call.x, call.lora, *call.sequences, dropped, device_.stream());
  a_grad_of(call.lora, dropped, true, rounded);
}

void CudaOps::a_grad_of(const LoraSet& lora, const Tensor& inputs, bool apart, const Tensor& rounded) {
  for (std::size_t i = 0; i < lora.pairs.size(); ++i) {
    const LoraView& pair = lora.pairs[i];
    multiply({.a = rounded.columns(pair.first_inner, pair.a.rows), .b = apart ? part_of(inputs, lora, i, pair.a.cols) : inputs,
              .b_transposed = false, .c = pair.grad_a, .d = pair.grad_a, .a_transposed = true, .alpha = kept_factor(lora, pair)});
  }
}

bool CudaOps::drops_apart(LoraOp op, const LoraSet& lora, const Tensor& x) const {
  return lora.pairs.size() == 1 && any_drops(lora) && choose(op, lora, x) == LoraKernel::products;
}

bool CudaOps::swiglu_inner_as_products(const Tensor& gate, const Tensor& up, const LinearForward& call, Activation activation) {
  if (call.inner_known || gate.rows == 0 || !drops_apart(LoraOp::inner, call.lora, call.x)) return false;
  const Buffer dropped = dropped_inputs(kDropped, call.lora, call.x.rows, call.x.cols);
  swiglu_dropped(gate, up, call.lora, *call.sequences, call.x, dropped.tensor().columns(0, call.x.cols), activation, device_.stream());
  inner_of(call.lora, dropped, call.x.cols, call.inner);
  return true;
}

bool CudaOps::swiglu_grad_as_products(const LinearInputGrad& call, const SwiGluGrads& grads, Activation activation) {
  if (!drops_apart(LoraOp::a_grad, call.lora, call.dx)) return false;
  const std::int64_t in = call.dx.cols;
  const Buffer rounded = rounded_inner(call.inner_grad);
  {
    const Buffer term = dropped_inputs(kTerm, call.lora, call.dx.rows, in);
    terms_of(call.lora, rounded, in, term);
    swiglu_dropped_grad({grads.gate, grads.up, call.dx, term.tensor().columns(0, in), grads.dgate, grads.dup}, call.lora, *call.sequences,
                        activation, device_.stream());
  }
  a_grad_of(call.lora, call.dx, false, rounded);
  return true;
}

void CudaOps::lora_drop(const LoraDrop& call) {
  if (!any_drops(call.lora)) return copy(call.x, call.to);
  cuda::lora_drop(call.x, call.lora, *call.sequences, call.to, device_.stream(), Kept::scaled);
}

void CudaOps::lora_drop_backward(const LoraDrop& call) {
  if (!any_drops(call.lora)) return add(call.to, call.x, 1, call.to);
  cuda::lora_add_kept(call.x, call.lora, *call.sequences, call.to, device_.stream(), Kept::scaled);
}

}  // namespace pipelora::cuda
