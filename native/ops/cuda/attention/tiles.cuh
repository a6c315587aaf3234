// What the attention kernels on tensor cores of any GPU share: tiles in shared memory, products of tiles, rows written out.
// Tiles have E columns, 64, 128 or 256; heads that are narrower are padded with zeros there.
#pragma once

#include "ops/cuda/attention/common.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

/// Byte offset of 16-byte piece `piece` of a row of E 16-bit numbers: pieces are permuted so that eight rows of one
/// column of pieces lie in different banks.
template <int E>
__device__ inline int at(int row, int piece) {
  return row * (E * 2) + ((piece ^ (row & 7)) << 4);
}

/// Rows [first, first + rows) of a head into a tile; rows at or past `limit` and columns past the head's width become zero.
template <int E, int kThreads, class T>
__device__ inline void load_tile(std::uint32_t to, const T* from, std::int64_t stride, int first, int rows, int limit, const Shape& shape) {
  constexpr int kPieces = E / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const T* source = from + (first + row) * stride + piece * 8;
    if (shape.aligned) {
      const bool valid = first + row < limit && piece * 8 < shape.width;
      copy_async(to + at<E>(row, piece), valid ? source : from, valid);
      continue;
    }
    union {
      uint4 all;
      std::uint16_t one[8];
    } piece_bits;
#pragma unroll
    for (int c = 0; c < 8; ++c)
      piece_bits.one[c] = first + row < limit && piece * 8 + c < shape.width ? reinterpret_cast<const std::uint16_t*>(source)[c] : 0;
    store_shared(to + at<E>(row, piece), piece_bits.all);
  }
}

/// A operand: rows [row, row + 16), columns [16 kk, 16 kk + 16).
template <int E>
__device__ inline void load_a(std::uint32_t (&r)[4], std::uint32_t tile, int row, int kk) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(r, tile + at<E>(row + lane % 16, kk * 2 + lane / 16));
}
/// B operand of x yᵀ: y's rows [row, row + 16) are columns of the product; r[0..1] the first eight, r[2..3] the others.
template <int E>
__device__ inline void load_b(std::uint32_t (&r)[4], std::uint32_t tile, int row, int kk) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(r, tile + at<E>(row + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
}
/// B operand of p y: y's rows [row, row + 16) are the inner dimension, columns [16 n, 16 n + 16).
template <int E>
__device__ inline void load_b_rows(std::uint32_t (&r)[4], std::uint32_t tile, int row, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices_transposed(r, tile + at<E>(row + lane % 16, n * 2 + lane / 16));
}

/// sums [16, 64] of this warp += a's rows [row, row + 16) times the tile's 64 rows transposed.
template <int E, class T>
__device__ inline void product_transposed(float (&sums)[8][4], std::uint32_t a, int row, std::uint32_t tile) {
#pragma unroll
  for (int kk = 0; kk < E / 16; ++kk) {
    std::uint32_t left[4];
    load_a<E>(left, a, row, kk);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      std::uint32_t right[4];
      load_b<E>(right, tile, n * 16, kk);
      mma(T{}, sums[2 * n], left[0], left[1], left[2], left[3], right[0], right[1]);
      mma(T{}, sums[2 * n + 1], left[0], left[1], left[2], left[3], right[2], right[3]);
    }
  }
}

/// sums [16, E] += p [16, 64] times the tile [64, E].
template <int E, class T>
__device__ inline void product_rows(float (&sums)[E / 8][4], const float (&p)[8][4], std::uint32_t tile) {
#pragma unroll
  for (int kk = 0; kk < 4; ++kk) {
    const std::uint32_t a0 = pack2(T{}, p[2 * kk][0], p[2 * kk][1]), a1 = pack2(T{}, p[2 * kk][2], p[2 * kk][3]);
    const std::uint32_t a2 = pack2(T{}, p[2 * kk + 1][0], p[2 * kk + 1][1]), a3 = pack2(T{}, p[2 * kk + 1][2], p[2 * kk + 1][3]);
#pragma unroll
    for (int n = 0; n < E / 16; ++n) {
      std::uint32_t right[4];
      load_b_rows<E>(right, tile, kk * 16, n);
      mma(T{}, sums[2 * n], a0, a1, a2, a3, right[0], right[1]);
      mma(T{}, sums[2 * n + 1], a0, a1, a2, a3, right[2], right[3]);
    }
  }
}

/// A warp's [16, E] sums to rows of global memory, through 16 rows of shared memory that this warp alone uses.
template <int E, class T>
__device__ inline void write_rows(char* shared, std::uint32_t tile, int row, const float (&sums)[E / 8][4], float factor0, float factor1,
                                  T* to, std::int64_t stride, int first, int limit, const Shape& shape) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < E / 8; ++n) {
    *reinterpret_cast<std::uint32_t*>(shared + at<E>(row + g, n) + q * 4) = pack2(T{}, sums[n][0] * factor0, sums[n][1] * factor0);
    *reinterpret_cast<std::uint32_t*>(shared + at<E>(row + g + 8, n) + q * 4) =
        pack2(T{}, sums[n][2] * factor1, sums[n][3] * factor1);
  }
  __syncwarp();
  constexpr int kPieces = E / 8;
  for (int i = lane; i < 16 * kPieces; i += 32) {
    const int r = i / kPieces, piece = i % kPieces;
    if (first + r >= limit) continue;
    T* target = to + (first + r) * stride + piece * 8;
    const char* source = shared + at<E>(row + r, piece);
    if (!shape.aligned) {
      for (int c = 0; c < min(8, shape.width - piece * 8); ++c) target[c] = reinterpret_cast<const T*>(source)[c];
    } else if (piece * 8 < shape.width) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    }
  }
}

}  // namespace pipelora::cuda
