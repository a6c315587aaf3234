// The launchers of a mixture of experts' kernels (pipelora/ops/routing.h says what they compute) and of attention's sinks.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "pipelora/ops/routing.h"

namespace pipelora::cuda {

// route.cu: experts and weights of every token.
void route_tokens(const Route& call, cudaStream_t stream);
void route_backward(const RouteBackward& call, cudaStream_t stream);

// sort.cu: order, place and starts from the chosen experts.
/// Bytes of `room` for that many choices of that many experts.
std::size_t sort_bytes(std::int64_t choices, std::int64_t experts);
void sort_choices(const Routes& routes, std::int64_t experts, void* room, cudaStream_t stream);

// rows.cu
void gather_choices(const Tensor& from, const Routes& routes, const Tensor& to, cudaStream_t stream);
void combine(const Combine& call, cudaStream_t stream);
void attention_sinks(const AttentionSinks& call, cudaStream_t stream);
void sigmoid(const Tensor& x, cudaStream_t stream);
void sigmoid_backward(const Tensor& shares, const Tensor& grads, cudaStream_t stream);

// gate.cu
void gate_forward(const GateForward& call, cudaStream_t stream);
void gate_backward(const GateBackward& call, cudaStream_t stream);

}  // namespace pipelora::cuda
