// Products of all experts in one launch, where that suits; else an expert after the other (Ops).
#include <algorithm>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/device/alignment.h"
#include "ops/cuda/experts/grouped.h"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

/// All experts' A or B, from the first one's: they stand below each other.
Tensor stacked(const Tensor& first, std::size_t experts) { return Tensor(first.data, first.dtype, static_cast<std::int64_t>(experts) * first.rows, first.cols); }

}  // namespace

// The pool then holds this many bytes of experts at a time, whatever the mixture has.
std::int64_t CudaOps::experts_together(std::int64_t experts, std::int64_t in, std::int64_t out) const {
  return experts_of_a_weight(experts, in, out, context_.compute);
}

Buffer CudaOps::narrowed(const char* what, const Tensor& from, float factor) {
  Buffer to = computed(what, from.rows, from.cols);
  cuda::copy(from, to.tensor().columns(0, from.cols), device_.stream(), factor);
  return to;
}

ExpertsKernel CudaOps::experts_kernel(const ExpertsWeight& weight, std::int64_t rows) const {
  const auto& one = static_cast<const CudaLinear&>(*weight.weights.front());
  const bool e4m3 = one.is_fp8();
  // As the first one's products, and not LLM.int8()'s.
  const auto suits = [e4m3](const std::unique_ptr<LinearWeight>& other) {
    const auto& own = static_cast<const CudaLinear&>(*other);
    return own.is_fp8() == e4m3 && !own.is_int8();
  };
  if (!std::all_of(weight.weights.begin(), weight.weights.end(), suits)) return ExpertsKernel::each;
  // Whether a weight is cached is not asked: the bits would depend on it.
  return experts_choice({context_.compute, one.in, one.out / weight.together(), rows, one.is_quantised(), e4m3}, gpu_);
}

// Where LoRA reads the rows in 16 bits they are written.
CudaOps::Fp8Input CudaOps::gathered_in_e4m3(const Tensor& from, const Routes& routes, const ExpertsWeight& weight, std::span<const LoraView> lora) {
  const std::int64_t rows = routes.order.cols;
  if (!lora.empty() || rows == 0 || !eights(from) || experts_kernel(weight, rows) != ExpertsKernel::grouped_e4m3) return {};
  Fp8Input made = room_in_e4m3(rows, from.cols);
  fp8_gathered_rows(from, routes.order.as<std::int32_t>(), routes.experts.cols, rows, made.rows(), device_.stream());
  return made;
}

void CudaOps::experts_forward(const ExpertsForward& call) {
  if (call.x.rows == 0) return;
  const ExpertsKernel kernel = experts_kernel(call.weight, call.x.rows);
  if (kernel == ExpertsKernel::each) return Ops::experts_forward(call);
  grouped_forward(call, kernel == ExpertsKernel::grouped_e4m3 && call.y ? in_e4m3(call.x) : Fp8Input());
}

void CudaOps::gathered_experts_forward(const Tensor& from, const Routes& routes, const ExpertsForward& call) {
  const Fp8Input codes = gathered_in_e4m3(from, routes, call.weight, call.lora);
  if (!codes) return Ops::gathered_experts_forward(from, routes, call);
  grouped_forward(call, codes);
}

void CudaOps::gathered_experts_input_grad(const Tensor& from, const Routes& routes, const ExpertsInputGrad& call) {
  const Fp8Input codes = gathered_in_e4m3(from, routes, call.weight, call.lora);
  if (!codes) return Ops::gathered_experts_input_grad(from, routes, call);
  grouped_input_grad(call, codes);
}

void CudaOps::grouped_forward(const ExpertsForward& call, const Fp8Input& codes) {
  cudaStream_t stream = device_.stream();
  const auto* starts = call.rows.starts.as<std::int32_t>();
  const std::int64_t together = call.weight.together();
  Buffer b, inner;
  if (!call.lora.empty()) {
    const LoraView& pair = call.lora.front();
    const Buffer a = narrowed("LoRA's A of all experts", stacked(pair.a, call.lora.size()), 1);
    grouped_product({.a = call.x, .b = a.tensor().columns(0, call.x.cols), .starts = starts, .experts = call.weight.experts, .d = call.inner}, stream);
    if (!call.y) return;
    inner = narrowed("LoRA's inner vectors as a product takes them", call.inner, pair.scale);
    b = narrowed("LoRA's B of all experts", stacked(pair.bt, call.lora.size()), 1);
  }
  for (std::size_t i = 0; call.y && i < call.weight.weights.size(); ++i) {
    const auto& weight = static_cast<const CudaLinear&>(*call.weight.weights[i]);
    GroupedProduct product{.a = call.x, .b = weight.expanded(true), .starts = starts, .first = static_cast<std::int64_t>(i) * together,
                           .experts = together, .bias = weight.bias(), .d = call.y};
    if (codes) codes.into(product, weight, true);
    if (inner) {
      const std::int64_t rank = call.inner.cols;
      product.a2 = inner.tensor().columns(0, rank);
      product.b2 = b.tensor().columns(0, call.y.cols).row_range(product.first * rank, together * rank);
    }
    grouped_product(product, stream);
    weight.done(true);
  }
}

void CudaOps::experts_input_grad(const ExpertsInputGrad& call) {
  if (call.dy.rows == 0) return;
  const ExpertsKernel kernel = experts_kernel(call.weight, call.dy.rows);
  if (kernel == ExpertsKernel::each) return Ops::experts_input_grad(call);
  grouped_input_grad(call, kernel == ExpertsKernel::grouped_e4m3 && call.dx ? in_e4m3(call.dy) : Fp8Input());
}

void CudaOps::grouped_input_grad(const ExpertsInputGrad& call, const Fp8Input& codes) {
  cudaStream_t stream = device_.stream();
  const auto* starts = call.rows.starts.as<std::int32_t>();
  const std::int64_t together = call.weight.together();
  Buffer a, inner_grad;
  if (!call.lora.empty()) {
    const LoraView& pair = call.lora.front();
    {
      const Buffer b = narrowed("LoRA's B of all experts", stacked(pair.bt, call.lora.size()), 1);
      grouped_product({.a = call.dy, .b = b.tensor().columns(0, call.dy.cols), .starts = starts, .experts = call.weight.experts, .d = call.inner_grad, .factor = pair.scale}, stream);
      const Buffer inner = narrowed("LoRA's inner vectors as a product takes them", call.inner, 1);
      grouped_grads({inner.tensor().columns(0, call.inner.cols), call.dy, starts, call.weight.experts, pair.scale, stacked(pair.grad_bt, call.lora.size())}, stream);
    }
    if (!call.dx) return;
    inner_grad = narrowed("gradient of LoRA's inner vectors as a product takes it", call.inner_grad, 1);
    a = narrowed("LoRA's A of all experts", stacked(pair.a, call.lora.size()), 1);
  }
  for (std::size_t i = 0; call.dx && i < call.weight.weights.size(); ++i) {
    const auto& weight = static_cast<const CudaLinear&>(*call.weight.weights[i]);
    GroupedProduct product{.a = call.dy, .b = weight.expanded(false), .b_transposed = false, .starts = starts,
                           .first = static_cast<std::int64_t>(i) * together, .experts = together, .d = call.dx};
    if (codes) codes.into(product, weight, false);
    if (inner_grad) {
      const std::int64_t rank = call.inner_grad.cols;
      product.a2 = inner_grad.tensor().columns(0, rank);
      product.b2 = a.tensor().columns(0, call.dx.cols).row_range(product.first * rank, together * rank);
    }
    grouped_product(product, stream);
    weight.done(false);
  }
}

void CudaOps::experts_a_grad(const ExpertsAGrad& call) {
  if (call.x.rows == 0) return;
  const LoraView& pair = call.lora.front();
  const auto experts = static_cast<std::int64_t>(call.lora.size());
  if (experts_choice({context_.compute, call.x.cols, pair.bt.cols, call.x.rows, false}, gpu_) != ExpertsKernel::grouped) return Ops::experts_a_grad(call);
  const Buffer inner_grad = narrowed("gradient of LoRA's inner vectors as a product takes it", call.inner_grad, 1);
  grouped_grads({inner_grad.tensor().columns(0, call.inner_grad.cols), call.x, call.rows.starts.as<std::int32_t>(), experts, 1,
                 stacked(pair.grad_a, call.lora.size())},
                device_.stream());
}

}  // namespace pipelora::cuda
