// A mixture of experts around its products, and attention's sinks.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/experts/experts.h"

namespace pipelora::cuda {

void CudaOps::route(const Route& call) {
  if (call.logits.rows == 0) return;
  route_tokens(call, device_.stream());
  const Buffer room = bytes("counts of choices", sort_bytes(call.routes.order.cols, call.rule.experts));
  sort_choices(call.routes, call.rule.experts, room.tensor().data, device_.stream());
}

void CudaOps::route_backward(const RouteBackward& call) {
  if (call.logits.rows > 0) cuda::route_backward(call, device_.stream());
}

void CudaOps::gather_choices(const Tensor& from, const Routes& routes, const Tensor& to) {
  cuda::gather_choices(from, routes, to, device_.stream());
}
void CudaOps::gate_forward(const GateForward& call) { cuda::gate_forward(call, device_.stream()); }
void CudaOps::gate_backward(const GateBackward& call) { cuda::gate_backward(call, device_.stream()); }
void CudaOps::combine(const Combine& call) { cuda::combine(call, device_.stream()); }
void CudaOps::attention_sinks(const AttentionSinks& call) { cuda::attention_sinks(call, device_.stream()); }
void CudaOps::sigmoid(const Tensor& x) { cuda::sigmoid(x, device_.stream()); }
void CudaOps::sigmoid_backward(const Tensor& shares, const Tensor& grads) { cuda::sigmoid_backward(shares, grads, device_.stream()); }

}  // namespace pipelora::cuda
