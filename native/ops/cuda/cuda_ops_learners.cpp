// Kinds of adapters beside LoRA on linears.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/learners/learners.h"

namespace pipelora::cuda {

void CudaOps::sum_rows(const RowSums& call) { cuda::sum_rows(call, device_.stream()); }
void CudaOps::low_rank_forward(const LowRank& call) { cuda::low_rank_forward(call, device_.stream()); }
void CudaOps::low_rank_backward(const LowRankBackward& call) { cuda::low_rank_backward(call, device_.stream()); }

void CudaOps::weight_grad(const WeightGrad& call) {
  if (call.x.rows == 0) return;
  Product product;
  product.a = call.dy;
  product.a_transposed = true;
  product.b = call.x;
  product.b_transposed = false;
  product.c = call.grad;
  product.d = call.grad;
  product.alpha = call.factor;
  multiply(product);
}

void CudaOps::column_sums(const Tensor& dy, float factor, const Tensor& grad) { cuda::column_sums(dy, factor, grad, device_.stream()); }
void CudaOps::add_column_squares(const Tensor& y, const Tensor& squares) { cuda::add_column_squares(y, squares, device_.stream()); }

void CudaOps::dora_norms(const DoraNorms& call) {
  if (call.gram) return cuda::dora_norms(call, call.gram, device_.stream());
  const Buffer gram = arena_->workspace("A Aᵀ", DType::f32, call.a.rows, call.a.rows);
  cuda::dora_norms(call, gram, device_.stream());
}
void CudaOps::column_gains(const ColumnGains& call) { cuda::column_gains(call, device_.stream()); }
void CudaOps::column_gains_backward(const ColumnGainsBackward& call) { cuda::column_gains_backward(call, device_.stream()); }

}  // namespace pipelora::cuda
