// What the attention kernels for Hopper share: tiles in shared memory as wgmma reads them, products of tiles, rows written out.
#pragma once

#include "ops/cuda/attention/common.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/device/wgmma.cuh"

namespace pipelora::cuda {

inline constexpr int kPanelRow = 128;  // bytes: 64 columns of 16 bits

/// Byte offset of 16-byte piece `piece` of row `row` in a matrix of kRows rows.
template <int kRows>
__device__ inline int place(int row, int piece) {
  return piece / 8 * (kRows * kPanelRow) + row * kPanelRow + ((piece % 8 ^ (row & 7)) << 4);
}

/// kRows rows from row `first` on, zeros from row `limit` and column `width` on, by kThreads threads.
template <int E, int kRows, int kThreads, class T>
__device__ inline void load_rows(std::uint32_t to, const T* from, std::int64_t stride, int first, int limit, int width, int thread) {
  constexpr int kPieces = E / 8, kStep = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0);
  const int piece = thread % kPieces, row0 = thread / kPieces;
  const int rows = piece * 8 < width ? limit - first : 0;
  const T* source = from + (first + row0) * stride + piece * 8;
#pragma unroll 4
  for (int row = row0; row < kRows; row += kStep, source += kStep * stride) {
    copy_async(to + place<kRows>(row, piece), row < rows ? source : from, row < rows);
  }
}

/// sums [64, kColumns] = a bᵀ: a's rows from `row` (a multiple of 8) in a matrix of kRows rows, b a matrix of kColumns rows.
template <int E, int kRows, int kColumns, class T>
__device__ inline void product_transposed(float (&sums)[kColumns / 8][4], std::uint32_t a, int row, std::uint32_t b) {
  const SharedMatrix left(a + row * kPanelRow, 16), right(b, 16);
#pragma unroll
  for (int kk = 0; kk < E / 16; ++kk) {
    wgmma_shared(T{}, sums, left.at(kk / 4 * (kRows * kPanelRow) + kk % 4 * 32), right.at(kk / 4 * (kColumns * kPanelRow) + kk % 4 * 32),
                 kk > 0);
  }
}

/// Sums [64, 16 K] as the factor a of a product.
template <class T, int K>
__device__ inline void pack_fragments(std::uint32_t (&a)[K][4], const float (&p)[2 * K][4]) {
#pragma unroll
  for (int kk = 0; kk < K; ++kk) {
    a[kk][0] = pack2(T{}, p[2 * kk][0], p[2 * kk][1]);
    a[kk][1] = pack2(T{}, p[2 * kk][2], p[2 * kk][3]);
    a[kk][2] = pack2(T{}, p[2 * kk + 1][0], p[2 * kk + 1][1]);
    a[kk][3] = pack2(T{}, p[2 * kk + 1][2], p[2 * kk + 1][3]);
  }
}

/// sums [64, E] += a b, b a matrix of 16 K rows. A product makes up to 128 columns.
template <int E, class T, int K>
__device__ inline void product_rows(float (&sums)[E / 8][4], const std::uint32_t (&a)[K][4], std::uint32_t b) {
  if constexpr (E > 128) {
    constexpr int kHalf = E / 2;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      product_rows<kHalf, T>(reinterpret_cast<float(&)[kHalf / 8][4]>(sums[half * (kHalf / 8)]), a, b + half * (kHalf / 64) * (16 * K * kPanelRow));
  } else {
    const SharedMatrix right(b, 16 * K * kPanelRow);
#pragma unroll
    for (int kk = 0; kk < K; ++kk) wgmma_rows(T{}, sums, a[kk], right.at(kk * 16 * kPanelRow));
  }
}

/// sums [64, E] = (add ? sums : 0) + aᵀ b, both matrices of 64 rows; a has 64 columns.
template <int E, class T>
__device__ inline void product_of_rows(float (&sums)[E / 8][4], std::uint32_t a, std::uint32_t b, bool add) {
  const SharedMatrix left(a, 64 * kPanelRow), right(b, 64 * kPanelRow);
#pragma unroll
  for (int kk = 0; kk < 4; ++kk) wgmma_shared<true, true>(T{}, sums, left.at(kk * 16 * kPanelRow), right.at(kk * 16 * kPanelRow), add || kk > 0);
}

/// A query does not see the key that many positions behind it.
__device__ inline bool hidden(int behind, int window) { return behind < 0 || (window > 0 && behind >= window); }

/// Scores of keys that a query does not see become -inf; `position` is that of the thread's first row, `key` its first column.
template <int J>
__device__ inline void hide(float (&s)[J][4], int key, int position, int window) {
#pragma unroll
  for (int n = 0; n < J; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (hidden(position - key + i / 2 * 8 - (n * 8 + i % 2), window)) s[n][i] = -INFINITY;
    }
  }
}

/// A warp's 16 rows of sums to global memory, through rows of shared memory that it alone uses.
template <int E, int kRows, class T>
__device__ inline void write_rows(char* shared, int row, const float (&sums)[E / 8][4], float factor0, float factor1, T* to,
                                  std::int64_t stride, int first, int limit, int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
    *reinterpret_cast<std::uint32_t*>(shared + place<kRows>(row + g, n) + q * 4) = pack2(T{}, sums[n][0] * factor0, sums[n][1] * factor0);
    *reinterpret_cast<std::uint32_t*>(shared + place<kRows>(row + g + 8, n) + q * 4) = pack2(T{}, sums[n][2] * factor1, sums[n][3] * factor1);
  }
  __syncwarp();
  constexpr int kPieces = E / 8;
  for (int i = lane; i < 16 * kPieces; i += 32) {
    const int r = i / kPieces, piece = i % kPieces;
    if (first + r < limit && piece * 8 < width) {
      *reinterpret_cast<uint4*>(to + (first + r) * stride + piece * 8) = *reinterpret_cast<const uint4*>(shared + place<kRows>(row + r, piece));
    }
  }
}

}  // namespace pipelora::cuda
