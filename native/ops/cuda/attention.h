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

/// attention_decode*.cu: few queries of each sequence over many keys. Whether a call suits it: 16-bit, no lse, one to four queries a
/// sequence. A sequence's results are then the same whatever else the call holds. Reads host arrays alone.
bool suits_decode(const AttentionForward& call);
/// Bytes that attention_decode() must be given; 0: none.
std::size_t decode_room(const AttentionForward& call);
/// `room`: scratch of decode_room() bytes or more, from a multiple of 16 on. The call must suit.
void attention_decode(const AttentionForward& call, const Tensor& room, cudaStream_t stream);

/// `delta` [H, T] f32: scratch. `room`: of attention_room() bytes, or empty; the same results are sooner there with it.
/// `call.rope` is given only where attention_turns_back().
void attention_backward(const AttentionBackward& call, const Tensor& delta, const Tensor& room, cudaStream_t stream);
/// Bytes from which on room is of use, and those beyond which more is of none; zeros: none is.
struct AttentionRoom {
  std::size_t least = 0, most = 0;
};
AttentionRoom attention_room(const AttentionBackward& call);
/// Whether the kernels that write dq and dk make them those before rotary; else a pass of its own must do that behind them.
bool attention_turns_back(const AttentionBackward& call);

// attention_tiles_*.cu: 16-bit, on tensor cores. False where the shape does not suit them (then attention_plain.cu).
bool attention_forward_tiles(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
bool attention_backward_tiles(const AttentionBackward& call, const Tensor& delta, const Tensor& room, cudaStream_t stream);

// attention_hopper_*.cu: the same with compute capability 9.0's warpgroup products. False on other GPUs.
bool attention_forward_hopper(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
void attention_forward_short(const AttentionForward& call, cudaStream_t stream);
bool attention_backward_hopper(const AttentionBackward& call, const Tensor& delta, const Tensor& room, cudaStream_t stream);
AttentionRoom attention_room_hopper(const AttentionBackward& call);
bool attention_turns_back_hopper(const AttentionBackward& call);

}  // namespace pipelora::cuda
