// Causal attention over flat tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pipelora/ops.h"

namespace pipelora::cuda {

/// Largest head width of the kernels.
inline constexpr std::int64_t kMaxHeadDim = 256;

/// `counter` is 0 before and after.
void attention_forward(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);

struct BackwardScratch {
  Tensor delta;            // [H, T] f32
  Tensor sums;             // [1, attention_backward_floats()] f32
  std::uint32_t* counter;  // 0 before and after
};
std::int64_t attention_backward_floats(const AttentionBackward& call);
void attention_backward(const AttentionBackward& call, const BackwardScratch& scratch, cudaStream_t stream);

// attention_tiles.cu: 16-bit, on tensor cores. False where the shape does not suit them (then attention_plain.cu).
bool attention_forward_tiles(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
bool attention_backward_tiles(const AttentionBackward& call, const BackwardScratch& scratch, cudaStream_t stream);

// attention_hopper.cu: the same with compute capability 9.0's warpgroup products. False on other GPUs.
bool attention_forward_hopper(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
bool attention_backward_hopper(const AttentionBackward& call, const BackwardScratch& scratch, cudaStream_t stream);

// attention_hopper_forward.cu and attention_hopper_backward.cu: for long rows; the latter for heads of more than 64 columns.
void attention_forward_long(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
std::int64_t attention_backward_long_floats(const AttentionBackward& call);
void attention_backward_long(const AttentionBackward& call, const BackwardScratch& scratch, cudaStream_t stream);

}  // namespace pipelora::cuda
