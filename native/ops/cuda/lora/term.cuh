// The term that LoRA adds to an input's gradient, keep * (inner_grad A) / (1 - p), on tensor cores.
//
// A warp takes 64 columns of eight tokens: lane (g, q) gets columns 8 g … 8 g + 7 (the eight elements of one call of dropout's
// generator) of tokens 2 q and 2 q + 1. Rows of A are split into two 16-bit numbers, in the lower and upper half of the inner
// dimension; the gradients of the inner vectors are rounded to 16 bits.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

/// Up to eight ranks of one pair.
struct TermTile {
  const float* rows;  // of A, [rank, in]
  std::int64_t stride;
  int rank, inner_column;
  float factor;
  std::uint32_t module, threshold;
  bool masked, same_mask;  // as the tile before
};

template <int NT>
struct TermTiles {
  TermTile tile[NT];
};

/// Four columns of this lane's two ranks.
struct TermRows {
  std::uint32_t high[4], low[4];
};

template <class T>
__device__ inline TermRows load_term_rows(const TermTile& tile, std::int64_t c, std::int64_t cols) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  float4 a = make_float4(0, 0, 0, 0), b = a;
  if (c < cols && 2 * q < tile.rank) a = __ldg(reinterpret_cast<const float4*>(tile.rows + 2 * q * tile.stride + c));
  if (c < cols && 2 * q + 1 < tile.rank) b = __ldg(reinterpret_cast<const float4*>(tile.rows + (2 * q + 1) * tile.stride + c));
  TermRows rows;
  split2<T>(a.x, b.x, rows.high[0], rows.low[0]);
  split2<T>(a.y, b.y, rows.high[1], rows.low[1]);
  split2<T>(a.z, b.z, rows.high[2], rows.low[2]);
  split2<T>(a.w, b.w, rows.high[3], rows.low[3]);
  return rows;
}

/// What the inner gradients of the eight tokens from `first` are as the products' right side.
template <class T>
__device__ inline std::uint32_t load_term_side(const TermTile& tile, const float* inner_grad, std::int64_t stride, std::int64_t first,
                                               std::int64_t tokens) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  const std::int64_t t = first + static_cast<int>(threadIdx.x) % 32 / 4;
  if (t >= tokens) return 0;
  const float* z = inner_grad + t * stride + tile.inner_column + 2 * q;
  return pack2(T{}, 2 * q < tile.rank ? __ldg(z) * tile.factor : 0.0f, 2 * q + 1 < tile.rank ? __ldg(z + 1) * tile.factor : 0.0f);
}

/// Which of this lane's eight columns are kept, for its two tokens.
struct TermKeep {
  std::uint32_t bits[2];
};
__device__ inline TermKeep load_term_keep(const TermTile& tile, const Mask& mask, std::int64_t t0, std::int64_t tokens, std::int64_t c) {
  TermKeep keep{{0xFFu, 0xFFu}};
  if (tile.masked) {  // of tokens and columns behind the last too: two chains of operations without a branch between them
#pragma unroll
    for (int i = 0; i < 2; ++i) keep.bits[i] = keep_bits(mask, token_place(mask, min(t0 + i, tokens - 1)), c, tile.module, tile.threshold);
  }
  return keep;
}

/// Of all tiles of a set: what dropout's generator gives is asked once a pair.
template <int NT>
__device__ inline void load_term_keeps(const TermTiles<NT>& tiles, const Mask& mask, std::int64_t t0, std::int64_t tokens, std::int64_t c,
                                       TermKeep (&keep)[NT]) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    if (n > 0 && tiles.tile[n].same_mask)
      keep[n] = keep[n - 1];
    else
      keep[n] = load_term_keep(tiles.tile[n], mask, t0, tokens, c);
  }
}

/// Adds the term to four of this lane's columns (the first or the second four) of its two tokens. Called by whole warps.
template <class T>
__device__ inline void add_term(const TermRows& rows, std::uint32_t side, const TermKeep& keep, int half, float (&out)[2][4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float sum[4] = {};
    mma(T{}, sum, rows.high[2 * j], rows.high[2 * j + 1], rows.low[2 * j], rows.low[2 * j + 1], side, side);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (keep.bits[i] >> (4 * half + 2 * j) & 1u) out[i][2 * j] += sum[i];
      if (keep.bits[i] >> (4 * half + 2 * j + 1) & 1u) out[i][2 * j + 1] += sum[2 + i];
    }
  }
}

/// All eight columns of both tokens.
template <class T>
__device__ inline void add_terms(const TermRows (&rows)[2], std::uint32_t side, const TermKeep& keep, Floats<8> (&out)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float part[2][4];
#pragma unroll
    for (int k = 0; k < 8; ++k) part[k / 4][k % 4] = out[k / 4].v[4 * half + k % 4];
    add_term<T>(rows[half], side, keep, half, part);
#pragma unroll
    for (int k = 0; k < 8; ++k) out[k / 4].v[4 * half + k % 4] = part[k / 4][k % 4];
  }
}

inline std::vector<TermTile> term_tiles(const LoraSet& lora, std::int64_t in) {
  std::vector<TermTile> tiles;
  for (const LoraTile& from : forward_tiles(lora, in))
    tiles.push_back({from.rows, from.stride, from.rank, from.inner_column, from.factor, from.module, from.threshold, from.masked, from.same_mask});
  return tiles;
}

}  // namespace pipelora::cuda
