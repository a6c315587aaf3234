// What the gradients of LoRA's A and B share: sums over tokens of outer products, left[t, :] right[t, :], cut into blocks of
// columns and splits of the tokens. Every block leaves partial sums, a second kernel adds them in a fixed order.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

constexpr int kOuterWarps = 4;
constexpr int kOuterThreads = kOuterWarps * 32;
constexpr int kOuterWarpColumns = 64;
constexpr int kOuterColumns = kOuterWarps * kOuterWarpColumns;  // of a block
constexpr int kMaxOuterJobs = 8;

/// Up to 8 or 16 ranks of one pair.
struct OuterJob {
  const void* right;
  std::int64_t right_stride, columns;
  const float* left;  // [tokens, rank]
  std::int64_t left_stride;
  float* grad;  // [rank, columns]
  std::int64_t grad_stride;
  float factor;
  int rank;
  int first_block, blocks;  // of kOuterColumns columns
  // A: dropout of `right`.
  std::uint32_t module, threshold;
  bool masked;
  // B: its rows, and where the inner vectors' gradient goes.
  const float* rows;
  std::int64_t rows_stride;
  float* inner_grad;
  std::int64_t inner_grad_stride;
};
struct OuterJobs {
  OuterJob job[kMaxOuterJobs];
  int count, blocks;
};

struct OuterPartial {
  float* grads;  // [splits, blocks, 8 or 16, kOuterColumns]
  float* inner;  // B: [blocks, tokens, 8 or 16]
};

/// What a call asks of a pair, before it is cut into jobs.
struct Outer {
  Tensor right, left, grad;
  float factor = 1;
  const LoraView* pair = nullptr;
  bool masked = false;
  Tensor inner_grad;  // B alone
};

/// Ranks of a job: 8 where no pair has more, else 16.
int ranks_of(const std::vector<Outer>& outers);

struct OuterCut {
  std::int64_t splits, tokens_per_split;
};
struct OuterLaunch {
  OuterJobs jobs;
  OuterCut cut;
};
/// kMaxOuterJobs jobs a launch.
std::vector<OuterLaunch> outer_launches(const std::vector<Outer>& outers);
std::vector<Outer> outers_of(const LoraAGrad& call);
inline std::int64_t grads_size(const OuterLaunch& launch, int ranks) { return launch.cut.splits * launch.jobs.blocks * ranks * kOuterColumns; }

/// Adds the parts that the blocks left; with partial.inner the inner vectors' gradients too.
void add_outer_parts(const OuterLaunch& launch, std::int64_t tokens, int ranks, const OuterPartial& partial, cudaStream_t stream);

__device__ inline const OuterJob& job_of(const OuterJobs& jobs, int block) {
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_block <= block) ++which;
  return jobs.job[which];
}

// A lane (g, q) that holds eight neighbouring columns of some tokens, in 16 bits, has its part of products whose inner
// dimension are the tokens: of the product for column j of each eight, n = g stands for column 8 g + j.

/// Where a warp's rows of 64 columns hold eight of them: a lane takes pieces from its own rows, eight lanes of a copy one row, and
/// neither meets another's banks.
__device__ inline std::uint32_t piece_at(int row, int piece) { return static_cast<std::uint32_t>(row * 128 + (piece ^ (row & 6)) * 16); }

/// Column j of two tokens whose eight columns are given.
__device__ inline std::uint32_t column_of(const uint4& a, const uint4& b, int j) {
  const std::uint32_t wa[4] = {a.x, a.y, a.z, a.w}, wb[4] = {b.x, b.y, b.z, b.w};
  return __byte_perm(wa[j / 2], wb[j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
}

/// The left side of products whose 16 rows are 8 NT ranks, two values (of tokens, or of columns) a register: eight ranks with what their rounding left
/// over in rows 8-15, or sixteen rounded ranks.
template <class T, int NT>
__device__ inline void left_side(const float (&first)[NT], const float (&second)[NT], std::uint32_t (&rows)[2]) {
  if constexpr (NT == 1) {
    split2<T>(first[0], second[0], rows[0], rows[1]);
  } else {
    rows[0] = pack2(T{}, first[0], second[0]);
    rows[1] = pack2(T{}, first[1], second[1]);
  }
}

/// A lane's sums of one column: of rank 8 n + g.
template <int NT>
__device__ inline float sum_of_rank(const float (&acc)[4], int n, int column) {
  return NT == 1 ? acc[column] + acc[2 + column] : acc[2 * n + column];
}

/// This lane's sums: rank g of 16 neighbouring columns from 16 q, and rank 8 + g where there are sixteen. `to`: the warp's columns of rank g.
template <int NT>
__device__ inline void store_outer(const float (&acc)[8][4], float* to) {
  const int q = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    float4* at = reinterpret_cast<float4*>(to + n * 8 * kOuterColumns + 16 * q);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        at[2 * half + j / 4] = make_float4(sum_of_rank<NT>(acc[j], n, half), sum_of_rank<NT>(acc[j + 1], n, half), sum_of_rank<NT>(acc[j + 2], n, half),
                                           sum_of_rank<NT>(acc[j + 3], n, half));
    }
  }
}

}  // namespace pipelora::cuda
