// The term that LoRA adds to an input's gradient, keep * (inner_grad A) / (1 - p), on tensor cores.
//
// A warp takes 64 columns of eight tokens: lane (g, q) gets columns 8 g … 8 g + 7 (the eight elements of one call of dropout's
// generator) of tokens 2 q and 2 q + 1. Rows of A are split into two 16-bit numbers, in the lower and upper half of the inner
// dimension; the gradients of the inner vectors are rounded to 16 bits.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cuda/lora.h"
#include "ops/cuda/lora_device.cuh"
#include "ops/cuda/mma.cuh"

namespace pipelora::cuda {

/// Up to eight ranks of one pair.
struct TermTile {
  const float* rows;  // of A, [rank, in]
  std::int64_t stride;
  int rank, inner_column;
  float factor;
  std::uint32_t module, threshold;
  bool masked;
};

template <int NT>
struct TermTiles {
  TermTile tile[NT];
};

struct TermRows {
  std::uint32_t high[8], low[8];  // a column's two ranks of this lane
};

/// `c`: this lane's first column.
template <class T>
__device__ inline TermRows load_term_rows(const TermTile& tile, std::int64_t c, std::int64_t cols) {
  const int q = static_cast<int>(threadIdx.x) % 4;
  Floats<8> a{}, b{};
  if (c < cols && 2 * q < tile.rank) a = load<8>(tile.rows + 2 * q * tile.stride + c);
  if (c < cols && 2 * q + 1 < tile.rank) b = load<8>(tile.rows + (2 * q + 1) * tile.stride + c);
  TermRows rows;
#pragma unroll
  for (int i = 0; i < 8; ++i) split2<T>(a.v[i], b.v[i], rows.high[i], rows.low[i]);
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

/// Adds the term to this lane's columns of its two tokens, t0 and t0 + 1, where they are kept. Called by whole warps.
template <class T>
__device__ inline void add_term(const TermTile& tile, const TermRows& rows, std::uint32_t side, const Mask& mask, std::int64_t t0,
                                std::int64_t tokens, std::int64_t c, bool in, Floats<8>& out0, Floats<8>& out1) {
  std::uint32_t keep0 = 0xFFu, keep1 = 0xFFu;
  if (tile.masked && in) {
    if (t0 < tokens) keep0 = keep_bits(mask, t0, c, tile.module, tile.threshold);
    if (t0 + 1 < tokens) keep1 = keep_bits(mask, t0 + 1, c, tile.module, tile.threshold);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float sum[4] = {};
    mma(T{}, sum, rows.high[2 * j], rows.high[2 * j + 1], rows.low[2 * j], rows.low[2 * j + 1], side, side);
    if (keep0 >> (2 * j) & 1u) out0.v[2 * j] += sum[0];
    if (keep1 >> (2 * j) & 1u) out1.v[2 * j] += sum[1];
    if (keep0 >> (2 * j + 1) & 1u) out0.v[2 * j + 1] += sum[2];
    if (keep1 >> (2 * j + 1) & 1u) out1.v[2 * j + 1] += sum[3];
  }
}

inline std::vector<TermTile> term_tiles(const LoraSet& lora, std::int64_t in) {
  std::vector<TermTile> tiles;
  for (const LoraTile& from : forward_tiles(lora, in))
    tiles.push_back({from.rows, from.stride, from.rank, from.inner_column, from.factor, from.module, from.threshold, from.masked});
  return tiles;
}

/// Whether tensor cores take these tiles with these 16-bit tensors.
inline bool suits_terms(const std::vector<TermTile>& tiles, std::initializer_list<Tensor> tensors) {
  bool suits = !tiles.empty();
  for (const Tensor& tensor : tensors) suits = suits && tensor.dtype != DType::f32 && eights(tensor);
  return suits && std::all_of(tiles.begin(), tiles.end(), [](const TermTile& tile) {
    return tile.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
  });
}

}  // namespace pipelora::cuda
