// Causal attention over flat tokens: the launchers of its kernels. Which one a call takes: kernel_choice.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/kernel_choice.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

// plain.cu: any dtype and head width.
void attention_forward_plain(const AttentionForward& call, cudaStream_t stream);
/// Here and below `delta` [H, T] f32 is scratch: rowsum(dout * out).
void attention_backward_plain(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream);

// tiles_*.cu: 16-bit, on tensor cores of any GPU.
void attention_forward_tiles(const AttentionForward& call, const AttentionTiles& tiles, cudaStream_t stream);
void attention_backward_tiles(const AttentionBackward& call, const AttentionTiles& tiles, const Tensor& delta, cudaStream_t stream);

// hopper_*.cu: the same with compute capability 9.0's warpgroup products. Heads of more than 128 columns: attention_forward_short, and no room for dS.
/// `counter` is 0 before and after.
void attention_forward_long(const AttentionForward& call, std::uint32_t* counter, cudaStream_t stream);
void attention_forward_short(const AttentionForward& call, cudaStream_t stream);
/// Bytes from which on room for dS is of use, and those beyond which more is of none; zeros: none is.
struct AttentionRoom {
  std::size_t least = 0, most = 0;
};
AttentionRoom attention_room(const AttentionBackward& call);
/// `room`: of attention_room() bytes, or empty; the same results are sooner there with it. `call.rope` may be given.
void attention_backward_hopper(const AttentionBackward& call, bool long_rows, const Tensor& delta, const Tensor& room, cudaStream_t stream);

// decode*.cu: few queries of each sequence over many keys; 16-bit, no log-sum-exp. A sequence's results are the same whatever
// else the call holds.
/// Most blocks over one sequence's keys. Reads host arrays alone.
std::int64_t decode_splits(const AttentionForward& call);
/// Bytes that attention_decode() must be given; 0: none.
std::size_t decode_room(const AttentionForward& call);
/// `room`: scratch of decode_room() bytes or more, from a multiple of 16 on.
void attention_decode(const AttentionForward& call, const Tensor& room, cudaStream_t stream);

// latent_heads.cu
void latent_heads_forward(const LatentHeads& call, cudaStream_t stream);
void latent_heads_backward(const LatentHeadsBackward& call, cudaStream_t stream);
/// Heads of `from_dim` columns as heads of `to_dim`: cut off, or zeros behind.
void head_widths(const Tensor& from, std::int64_t from_dim, const Tensor& to, std::int64_t to_dim, cudaStream_t stream);

/// Whether every head's row can be read 16 bytes at a time.
bool aligned(const AttentionForward& call);
bool aligned(const AttentionBackward& call);

}  // namespace pipelora::cuda
