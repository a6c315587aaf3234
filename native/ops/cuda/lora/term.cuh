// The term that LoRA adds to an input's gradient, keep * (inner_grad A) / (1 - p), on tensor cores.
//
// A warp takes 64 columns of eight tokens: lane (g, q) gets columns 8 g … 8 g + 7 (the eight elements of one call of dropout's
// generator) of tokens 2 q and 2 q + 1. Rows of A are split into two 16-bit numbers, in the lower and upper half of the inner
// dimension, or those of two tiles are rounded and stand there; the gradients of the inner vectors are rounded to 16 bits.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

/// Up to eight ranks of one pair, or up to sixteen.
struct TermTile {
  const float* rows;  // of A, [rank, in]
  std::int64_t stride;
  int rank, inner_column;
  int second_rank;  // how many there are beyond the eighth
  float factor;
  std::uint32_t module, threshold;
  bool masked, same_mask;  // as the tile before
};

template <int NT>
struct TermTiles {
  TermTile tile[NT];
};

/// Four columns of this lane's two ranks: rounded, and what the rounding left over; or of those two and of the two that are eight further, rounded.
struct TermRows {
  std::uint32_t high[4], low[4];
};

/// Four columns of the rows 2 q and 2 q + 1 of `count`.
__device__ inline void read_term_rows(const float* from, std::int64_t stride, int count, std::int64_t c, std::int64_t cols, float4& a, float4& b) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  a = b = make_float4(0, 0, 0, 0);
  if (c < cols && 2 * q < count) a = __ldg(reinterpret_cast<const float4*>(from + 2 * q * stride + c));
  if (c < cols && 2 * q + 1 < count) b = __ldg(reinterpret_cast<const float4*>(from + (2 * q + 1) * stride + c));
}

/// kSixteens, here and below: of tiles of up to sixteen ranks, else of up to eight.
template <class T, bool kSixteens>
__device__ inline TermRows load_term_rows(const TermTile& tile, std::int64_t c, std::int64_t cols) {
  float4 a, b;
  read_term_rows(tile.rows, tile.stride, tile.rank, c, cols, a, b);
  TermRows rows;
  if constexpr (kSixteens) {
    const auto round = [](const float4& x, const float4& y, std::uint32_t (&to)[4]) {
      to[0] = pack2(T{}, x.x, y.x);
      to[1] = pack2(T{}, x.y, y.y);
      to[2] = pack2(T{}, x.z, y.z);
      to[3] = pack2(T{}, x.w, y.w);
    };
    round(a, b, rows.high);
    read_term_rows(tile.rows + 8 * tile.stride, tile.stride, tile.second_rank, c, cols, a, b);
    round(a, b, rows.low);
    return rows;
  }
  split2<T>(a.x, b.x, rows.high[0], rows.low[0]);
  split2<T>(a.y, b.y, rows.high[1], rows.low[1]);
  split2<T>(a.z, b.z, rows.high[2], rows.low[2]);
  split2<T>(a.w, b.w, rows.high[3], rows.low[3]);
  return rows;
}

/// What the inner gradients of eight tokens are as the products' right side: of rows.high and of rows.low.
template <bool kSixteens>
struct TermSide {
  std::uint32_t first = 0;
  __device__ std::uint32_t second() const { return first; }
};
template <>
struct TermSide<true> {
  std::uint32_t first = 0, behind = 0;
  __device__ std::uint32_t second() const { return behind; }
};
/// Of the eight tokens from `first`.
template <class T, bool kSixteens>
__device__ inline TermSide<kSixteens> load_term_side(const TermTile& tile, const float* inner_grad, std::int64_t stride, std::int64_t first, std::int64_t tokens) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  const std::int64_t t = first + static_cast<int>(threadIdx.x) % 32 / 4;
  if (t >= tokens) return {};
  const auto two = [&](const float* z, int count) {
    return pack2(T{}, 2 * q < count ? __ldg(z) * tile.factor : 0.0f, 2 * q + 1 < count ? __ldg(z + 1) * tile.factor : 0.0f);
  };
  const float* z = inner_grad + t * stride + tile.inner_column + 2 * q;
  TermSide<kSixteens> side;
  side.first = two(z, tile.rank);
  if constexpr (kSixteens) side.behind = two(z + 8, tile.second_rank);
  return side;
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
template <class T, bool kSixteens>
__device__ inline void add_term(const TermRows& rows, const TermSide<kSixteens>& side, const TermKeep& keep, int half, float (&out)[2][4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float sum[4] = {};
    mma(T{}, sum, rows.high[2 * j], rows.high[2 * j + 1], rows.low[2 * j], rows.low[2 * j + 1], side.first, side.second());
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (keep.bits[i] >> (4 * half + 2 * j) & 1u) out[i][2 * j] += sum[i];
      if (keep.bits[i] >> (4 * half + 2 * j + 1) & 1u) out[i][2 * j + 1] += sum[2 + i];
    }
  }
}

/// All eight columns of both tokens.
template <class T, bool kSixteens>
__device__ inline void add_terms(const TermRows (&rows)[2], const TermSide<kSixteens>& side, const TermKeep& keep, Floats<8> (&out)[2]) {
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

/// Whether any pair has more than eight ranks: then tiles take up to sixteen, all rounded.
inline bool by_sixteens(const LoraSet& lora) {
  return std::any_of(lora.pairs.begin(), lora.pairs.end(), [](const LoraView& pair) { return pair.a.rows > 8; });
}
inline std::vector<TermTile> term_tiles(const LoraSet& lora, std::int64_t in, bool sixteens) {
  std::vector<TermTile> tiles;
  for (const LoraTile& from : forward_tiles(lora, in)) {
    if (sixteens && from.same_mask && tiles.back().second_rank == 0)
      tiles.back().second_rank = from.rank;
    else
      tiles.push_back({from.rows, from.stride, from.rank, from.inner_column, 0, from.factor, from.module, from.threshold, from.masked, from.same_mask});
  }
  return tiles;
}

}  // namespace pipelora::cuda
