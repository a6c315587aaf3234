// How a product of few tokens is divided on Hopper (quant4_few_hopper.cu): tiles of rows, steps of columns, shares of blocks.
#pragma once

#include "ops/cuda/base/quant4_few.cuh"

namespace pipelora::cuda::few {

// A product is tiles of 128 rows and steps of 256 columns; each block takes as many steps in a row as any other, of one tile after the
// other, and adds up what it has of a tile. Whoever is the last of those that share a tile adds their sums in the order of their
// columns. How a product is divided depends on the weight and the GPU alone, and a token's sums on no other token: its numbers are the
// same alone and in a batch.

constexpr int kRowWarps = 8, kColumnWarps = 2, kMultiply = kRowWarps * kColumnWarps * 32, kBring = 128, kThreads = kMultiply + kBring;
constexpr int kRows = kRowWarps * 16, kBlocks = 4, kStep = kBlocks * 64;  // kBlocks: of 64 columns a step
static_assert(kRows == kBring, "each of the threads that make scales makes a row's");
constexpr int kCodeBytes = kRows * kStep / 2, kScaleBytes = kRows * 16, kMapBytes = 256 * 4;
constexpr int kRawStages = 3;          // of what scales are made of
constexpr int kSumStride = kRows + 8;  // floats of a token's sums: lanes that write four tokens together meet no bank twice

template <class T>
struct Call {
  FewCall<T> few;  // parts begin with tiles
  int tiles;
  FewScratch scratch;
};

/// Rows of one part.
struct Tile {
  int part, first, rows;
};
template <class T>
__device__ inline Tile tile_at(const FewCall<T>& call, int number) {
  int p = 0;
  while (p + 1 < call.parts && number >= static_cast<int>(call.part[p + 1].first_unit)) ++p;
  const int first = (number - static_cast<int>(call.part[p].first_unit)) * kRows;
  return {p, first, static_cast<int>(min(static_cast<std::int64_t>(kRows), call.part[p].w.rows - first))};
}

/// The steps of one block: of all tiles' steps in a row as many as any other block's.
struct Share {
  int steps;  // of a tile
  int tiles, begin, end;
  __device__ Share(int in, int tiles_)
      : steps((in + kStep - 1) / kStep), tiles(tiles_), begin(begin_of(static_cast<int>(blockIdx.x))), end(begin_of(static_cast<int>(blockIdx.x) + 1)) {}
  __device__ int begin_of(int block) const { return static_cast<int>(static_cast<std::int64_t>(block) * tiles * steps / gridDim.x); }
  /// Who has a step.
  __device__ int block_of(int unit) const {
    int block = static_cast<int>(static_cast<std::int64_t>(unit) * gridDim.x / (static_cast<std::int64_t>(tiles) * steps));
    while (begin_of(block + 1) <= unit) ++block;
    while (begin_of(block) > unit) --block;
    return block;
  }
};

/// A tile and a step of it, in the order of a share.
struct Place {
  int tile, step;
  __device__ explicit Place(const Share& share) : tile(share.begin / share.steps), step(share.begin - tile * share.steps) {}
  /// Whether a new tile begins.
  __device__ bool next(const Share& share) {
    if (++step < share.steps) return false;
    step = 0;
    ++tile;
    return true;
  }
};

}  // namespace pipelora::cuda::few
