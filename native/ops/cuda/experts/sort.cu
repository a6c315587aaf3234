// A stable sort of choices by expert, by counting: each block ranks a piece of the choices among themselves, one block adds the pieces'
// counts up in their order, and every choice then knows its row. Nothing depends on which block or thread comes first.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/experts/experts.h"

namespace pipelora::cuda {

namespace {

constexpr int kPiece = 256;

std::int64_t pieces_of(std::int64_t choices) { return (choices + kPiece - 1) / kPiece; }

/// rank[i]: choices of its expert before it in its piece; counts[piece][e].
__global__ void __launch_bounds__(kPiece) rank_kernel(const std::int32_t* experts, std::int64_t choices, std::int32_t count, std::int32_t* rank,
                                                      std::int32_t* counts) {
  __shared__ std::int32_t own[kPiece];
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kPiece + threadIdx.x;
  std::int32_t* of_piece = counts + static_cast<std::int64_t>(blockIdx.x) * count;
  const int here = static_cast<int>(min(static_cast<std::int64_t>(kPiece), choices - static_cast<std::int64_t>(blockIdx.x) * kPiece));
  for (int e = static_cast<int>(threadIdx.x); e < count; e += kPiece) of_piece[e] = 0;
  const std::int32_t expert = i < choices ? experts[i] : -1;
  own[threadIdx.x] = expert;
  __syncthreads();
  if (i >= choices) return;
  std::int32_t before = 0, after = 0;
  for (int j = 0; j < here; ++j) {
    if (own[j] != expert) continue;
    before += j < static_cast<int>(threadIdx.x);
    after += j > static_cast<int>(threadIdx.x);
  }
  rank[i] = before;
  if (after == 0) of_piece[expert] = before + 1;
}

/// counts[piece][e] becomes the row that the piece's first choice of e has; starts: rows of each expert.
__global__ void __launch_bounds__(1024) starts_kernel(std::int32_t* counts, std::int64_t pieces, std::int32_t count, std::int32_t* starts) {
  __shared__ std::int32_t totals[1024];
  const int e = static_cast<int>(threadIdx.x);
  std::int32_t total = 0;
  if (e < count)
    for (std::int64_t p = 0; p < pieces; ++p) total += counts[p * count + e];
  totals[e] = e < count ? total : 0;
  __syncthreads();
  for (int step = 1; step < 1024; step *= 2) {
    const std::int32_t left = e >= step ? totals[e - step] : 0;
    __syncthreads();
    totals[e] += left;
    __syncthreads();
  }
  if (e >= count) return;
  std::int32_t row = totals[e] - total;
  starts[e] = row;
  if (e == count - 1) starts[count] = totals[e];
  for (std::int64_t p = 0; p < pieces; ++p) {
    const std::int32_t own = counts[p * count + e];
    counts[p * count + e] = row;
    row += own;
  }
}

__global__ void __launch_bounds__(kPiece) place_kernel(const std::int32_t* experts, std::int64_t choices, std::int32_t count,
                                                       const std::int32_t* rank, const std::int32_t* counts, std::int32_t* place,
                                                       std::int32_t* order) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kPiece + threadIdx.x;
  if (i >= choices) return;
  const std::int32_t row = counts[static_cast<std::int64_t>(blockIdx.x) * count + experts[i]] + rank[i];
  place[i] = row;
  order[row] = static_cast<std::int32_t>(i);
}

}  // namespace

std::size_t sort_bytes(std::int64_t choices, std::int64_t experts) {
  return static_cast<std::size_t>(choices + pieces_of(choices) * experts) * sizeof(std::int32_t);
}

void sort_choices(const Routes& routes, std::int64_t experts, void* room, cudaStream_t stream) {
  const std::int64_t choices = routes.order.cols;
  auto* rank = static_cast<std::int32_t*>(room);
  std::int32_t* counts = rank + choices;
  const auto* chosen = routes.experts.as<std::int32_t>();
  const auto blocks = static_cast<unsigned>(pieces_of(choices));
  const auto count = static_cast<std::int32_t>(experts);
  rank_kernel<<<blocks, kPiece, 0, stream>>>(chosen, choices, count, rank, counts);
  starts_kernel<<<1, 1024, 0, stream>>>(counts, blocks, count, routes.starts.as<std::int32_t>());
  place_kernel<<<blocks, kPiece, 0, stream>>>(chosen, choices, count, rank, counts, routes.place.as<std::int32_t>(), routes.order.as<std::int32_t>());
  check_launch("sort_choices");
}

}  // namespace pipelora::cuda
