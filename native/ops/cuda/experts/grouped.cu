// One warp asks for tiles of 128 bytes of both operands' rows, two warpgroups of 64 rows each multiply what has come. Blocks stay and take one
// tile of 128 x 256 after the other (128 x 64 where no more columns are wanted: LoRA's inner vectors, whose time is the reading of their
// input); tiles of one expert's columns follow each other, so that its weights are read once from memory. A row's sum is in the same order
// wherever its tile lies: no number depends on who else chose the expert.
// In e4m3 a stage has 128 columns in the bytes of 64. Sums are scaled in registers when the weight's product is done; LoRA's, in 16 bits, goes on top.
#include "ops/cuda/experts/grouped.h"

#include <algorithm>
#include <type_traits>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/device/bulk_copy.cuh"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/tensor_map.h"
#include "ops/cuda/device/warp_roles.cuh"
#include "ops/cuda/device/wgmma.cuh"

namespace pipelora::cuda {

namespace {

using e4m3 = __nv_fp8_e4m3;

constexpr int kRows = 128, kStep = static_cast<int>(kPanelColumns), kRowBytes = static_cast<int>(kPanelRowBytes), kStages = 4;
constexpr int kLoaders = 128, kThreads = kLoaders + 256;
constexpr int kLeftBytes = kRows * kRowBytes;

/// Columns of an operand that a stage brings: kStep of one in 16 bits.
template <class A>
inline constexpr int kColumnsOf = kRowBytes / static_cast<int>(sizeof(A));

/// What a tile of kColumns columns takes: products of 128 or 64 columns each, shared memory, blocks and registers.
template <int kWidth>
struct Cut {
  static constexpr int kColumns = kWidth, kHalves = kWidth > 128 ? 2 : 1, kHalf = kWidth / kHalves, kBlocks = kWidth > 128 ? 1 : 2;
  static constexpr int kRightBytes = kWidth * kRowBytes, kStageBytes = kLeftBytes + kRightBytes;
  static constexpr int kBarriers = kStages * kStageBytes, kTable = kBarriers + 2 * kStages * 8;
  using Sums = float[kHalves][kHalf / 8][4];
};
using Wide = Cut<256>;
using Narrow = Cut<64>;

struct Shape {
  const std::int32_t* starts;
  int first, experts;
  int columns, inner;  // N, K
  int rank;            // R, or 0
  int stage_bytes;     // that a and b bring: fewer than a stage has room for where b has fewer rows than a tile columns
  const float *row_scales, *column_scales;  // e4m3: [P], [experts * N]
};

#ifdef PIPELORA_HOPPER

constexpr int kPanelBytes = kStep * kRowBytes;  // of a right operand whose rows are the inner dimension

struct Tile {
  int expert;  // of `experts`
  int row, end;  // of a and d; the expert's rows end at `end`
  int column;
};

/// Tiles in the order blocks take them. `table` [experts + 1]: row tiles of the experts before.
class Tiles {
 public:
  __device__ Tiles(const Shape& shape, const int* table, int columns)
      : shape_(shape), table_(table), columns_(columns), across_((shape.columns + columns - 1) / columns) {}

  /// Made by one warp.
  __device__ static void fill(const Shape& shape, int* table) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int before = 0;
    for (int base = 0; base < shape.experts; base += 32) {
      const int e = base + lane;
      int count = 0;
      if (e < shape.experts) count = (shape.starts[shape.first + e + 1] - shape.starts[shape.first + e] + kRows - 1) / kRows;
      int sum = count;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xFFFFFFFFu, sum, d);
        if (lane >= d) sum += other;
      }
      if (e < shape.experts) table[e + 1] = before + sum;
      before += __shfl_sync(0xFFFFFFFFu, sum, 31);
    }
    if (lane == 0) table[0] = 0;
  }

  __device__ bool next(Tile& tile) {
    if (number_ >= table_[shape_.experts] * across_) return false;
    while (number_ >= table_[expert_ + 1] * across_) ++expert_;
    const int down = table_[expert_ + 1] - table_[expert_], own = number_ - table_[expert_] * across_;
    tile.expert = expert_;
    tile.row = shape_.starts[shape_.first + expert_] + own % down * kRows;
    tile.end = shape_.starts[shape_.first + expert_ + 1];
    tile.column = own / down * columns_;
    number_ += static_cast<int>(gridDim.x);
    return true;
  }

 private:
  const Shape& shape_;
  const int* table_;
  int columns_, across_, number_ = static_cast<int>(blockIdx.x), expert_ = 0;
};

template <class C>
__device__ inline std::uint32_t full(std::uint32_t base, std::uint32_t stage) { return base + C::kBarriers + stage * 8; }
template <class C>
__device__ inline std::uint32_t empty(std::uint32_t base, std::uint32_t stage) { return base + C::kBarriers + (kStages + stage) * 8; }

/// The right operand's columns run along its rows in memory: panels of 64.
template <class C>
__device__ inline void copy_panels(std::uint32_t to, const CUtensorMap& map, int row, int column, std::uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < C::kColumns / kStep; ++panel) copy_tile(to + panel * kPanelBytes, map, row, column + panel * kStep, barrier);
}

template <class C, class A, bool kTransposed>
__device__ inline void load_all(const CUtensorMap& left, const CUtensorMap& right, const CUtensorMap& left2, const CUtensorMap& right2,
                                const Shape& shape, std::uint32_t base, const int* table) {
  const bool asks = threadIdx.x == 0;
  Tiles tiles(shape, table, C::kColumns);
  Ring<kStages> ring;
  const auto ask = [&](const Tile& tile, int k, bool second) {
    const std::uint32_t to = base + ring.stage * C::kStageBytes, barrier = full<C>(base, ring.stage);
    barrier_expect(barrier, second ? C::kStageBytes : shape.stage_bytes);
    if (second) {
      copy_tile(to, left2, tile.row, k - shape.inner, barrier);
      copy_panels<C>(to + kLeftBytes, right2, tile.expert * shape.rank + k - shape.inner, tile.column, barrier);
      return;
    }
    copy_tile(to, left, tile.row, k, barrier);
    if (kTransposed)
      copy_tile(to + kLeftBytes, right, tile.expert * shape.columns + tile.column, k, barrier);
    else
      copy_panels<C>(to + kLeftBytes, right, tile.expert * shape.inner + k, tile.column, barrier);
  };
  for (Tile tile{}; tiles.next(tile);) {
    for (int k = 0; k < shape.inner + shape.rank;) {
      const bool second = k >= shape.inner;
      barrier_wait(empty<C>(base, ring.stage), ring.parity ^ 1);
      if (asks) ask(tile, k, second);
      ring.step();
      k = second ? k + kStep : min(k + kColumnsOf<A>, shape.inner);
    }
  }
}

/// sums += one stage's product.
template <class C, class A, bool kTransposed>
__device__ inline void multiply_stage(typename C::Sums& sums, std::uint32_t left, std::uint32_t right, bool add) {
  const SharedMatrix a(left, 16);
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) {
    // Rows of b (128 of them are a half of the wide cut), or its panels.
    const SharedMatrix b(right + half * (C::kRightBytes / C::kHalves), kTransposed ? 16 : kPanelBytes);
#pragma unroll
    for (int kk = 0; kk < kRowBytes / 32; ++kk)
      wgmma_shared<false, !kTransposed>(A{}, sums[half], a.at(kk * 32), b.at(kTransposed ? kk * 32 : kk * 16 * 128), add || kk > 0);
  }
}

/// What four lanes of a row hold of 32 columns, eight columns each: lane q's word i is word q of what lane i had.
__device__ inline void exchange(std::uint32_t (&words)[4], int quad) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const bool high = (quad & step) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & step) != 0) continue;
      const std::uint32_t mine = high ? words[i] : words[i + step];
      const std::uint32_t theirs = __shfl_xor_sync(0xFFFFFFFFu, mine, step);
      if (high)
        words[i] = theirs;
      else
        words[i + step] = theirs;
    }
  }
}

/// A row's 8 J columns, `columns` of which are there.
template <class T, int J>
__device__ inline void write_row(const float (&sums)[J][4], int half, int quad, const T* bias, float, T* to, bool inside, int columns) {
#pragma unroll
  for (int group = 0; group < J / 4; ++group) {
    std::uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = group * 32 + j * 8 + quad * 2;
      float first = sums[group * 4 + j][2 * half], second = sums[group * 4 + j][2 * half + 1];
      if (bias != nullptr && column < columns) {
        first += widen(bias[column]);
        second += widen(bias[column + 1]);
      }
      words[j] = pack2(T{}, first, second);
    }
    exchange(words, quad);
    const int column = group * 32 + quad * 8;
    if (inside && column < columns) *reinterpret_cast<uint4*>(to + column) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <class T, int J>
__device__ inline void write_row(const float (&sums)[J][4], int half, int quad, const T*, float factor, float* to, bool inside, int columns) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = j * 8 + quad * 2 + i;
      if (inside && column < columns) to[column] = factor * sums[j][2 * half + i];
    }
  }
}

/// Asks the compiler to leave sums alone that products work on.
template <class C>
__device__ inline void hold(typename C::Sums& sums) {
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) wgmma_hold(sums[half]);
}

/// Asks for the tile's scales, a lane a line of 128 bytes: they are there when its sums are done.
template <class C>
__device__ inline void fetch_scales(const Shape& shape, const Tile& tile, int lane) {
  constexpr int kLine = 32, kLines = (C::kColumns + kLine - 1) / kLine;
  static_assert(kLines + kRows / kLine <= 32);
  const bool of_rows = lane >= kLines;
  const int first = of_rows ? tile.row + (lane - kLines) * kLine : tile.column + lane * kLine, end = of_rows ? min(tile.end, tile.row + kRows) : shape.columns;
  const float* from = of_rows ? shape.row_scales : shape.column_scales + static_cast<std::int64_t>(tile.expert) * shape.columns;
  if (first < end) asm volatile("prefetch.L1 [%0];\n" ::"l"(from + first));
}

/// sums [row][column] *= the row's scale times the column's.
template <class C>
__device__ inline void scale_sums(typename C::Sums& sums, const Shape& shape, const Tile& tile, int own, int quad) {
  float of_row[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = tile.row + own + h * 8;
    of_row[h] = row < tile.end ? shape.row_scales[row] : 0.0f;
  }
  const float* of_columns = shape.column_scales + static_cast<std::int64_t>(tile.expert) * shape.columns;
#pragma unroll
  for (int half = 0; half < C::kHalves; ++half) {
#pragma unroll
    for (int j = 0; j < C::kHalf / 8; ++j) {
      const int column = tile.column + half * C::kHalf + j * 8 + quad * 2;
      if (column >= shape.columns) continue;
      const float2 two = __ldg(reinterpret_cast<const float2*>(of_columns + column));
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        sums[half][j][2 * h] = sums[half][j][2 * h] * of_row[h] * two.x;
        sums[half][j][2 * h + 1] = sums[half][j][2 * h + 1] * of_row[h] * two.y;
      }
    }
  }
}

template <class C, class A, class T, class D, bool kTransposed>
__device__ inline void compute_all(const Shape& shape, const T* bias, D* d, std::int64_t stride, float factor, std::uint32_t base, const int* table) {
  const int thread = static_cast<int>(threadIdx.x) - kLoaders, group = thread / 128, lane = thread % 32, quad = lane % 4;
  const int own = group * 64 + thread % 128 / 32 * 16 + lane / 4;
  Tiles tiles(shape, table, C::kColumns);
  Ring<kStages> ring;
  const auto release = [&](std::uint32_t stage) {
    if (lane == 0) barrier_arrive(empty<C>(base, stage));
  };
  const int inner_steps = (shape.inner + kColumnsOf<A> - 1) / kColumnsOf<A>, rank_steps = (shape.rank + kStep - 1) / kStep;
  for (Tile tile{}; tiles.next(tile);) {
    if (tile.row + group * 64 >= tile.end) {  // behind the expert's last row: nothing to multiply
      for (int i = 0; i < inner_steps + rank_steps; ++i) {
        barrier_wait(full<C>(base, ring.stage), ring.parity);
        release(ring.stage);
        ring.step();
      }
      continue;
    }
    if constexpr (std::is_same_v<A, e4m3>) fetch_scales<C>(shape, tile, lane);
    typename C::Sums sums;
    std::uint32_t last = kStages;
    const auto steps = [&]<class Operand, bool kAlong>(Operand, std::bool_constant<kAlong>, int count, bool add) {
      for (int i = 0; i < count; ++i) {
        barrier_wait(full<C>(base, ring.stage), ring.parity);
        const std::uint32_t left = base + ring.stage * C::kStageBytes;
        hold<C>(sums);
        wgmma_fence();
        multiply_stage<C, Operand, kAlong>(sums, left + group * 64 * 128, left + kLeftBytes, add || i > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (last < kStages) release(last);
        last = ring.stage;
        ring.step();
      }
    };
    const auto finish = [&] {
      wgmma_wait<0>();
      if (last < kStages) release(last);
      last = kStages;
      hold<C>(sums);
    };
    steps(A{}, std::bool_constant<kTransposed>(), inner_steps, false);
    if constexpr (std::is_same_v<A, e4m3>) {
      finish();
      scale_sums<C>(sums, shape, tile, own, quad);
    }
    steps(T{}, std::bool_constant<false>(), rank_steps, true);
    finish();
#pragma unroll
    for (int half = 0; half < C::kHalves; ++half) {
      const int column = tile.column + half * C::kHalf;
      if (column >= shape.columns) break;
      const T* own_bias = bias == nullptr ? nullptr : bias + static_cast<std::int64_t>(tile.expert) * shape.columns + column;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = tile.row + own + h * 8;
        write_row(sums[half], h, quad, own_bias, factor, d + row * stride + column, row < tile.end, shape.columns - column);
      }
    }
  }
}

#endif

template <class C, class A, class T, class D, bool kTransposed>
__global__ void __launch_bounds__(kThreads, C::kBlocks)
    grouped_kernel(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right, const __grid_constant__ CUtensorMap left2,
                   const __grid_constant__ CUtensorMap right2, const __grid_constant__ Shape shape, const T* bias, D* d, std::int64_t stride, float factor) {
#ifdef PIPELORA_HOPPER
  char* shared = aligned_shared();
  const std::uint32_t base = shared_address(shared);
  int* table = reinterpret_cast<int*>(shared + C::kTable);
  if (threadIdx.x == 0) {
    for (std::uint32_t stage = 0; stage < kStages; ++stage) {
      barrier_init(full<C>(base, stage), 1);
      barrier_init(empty<C>(base, stage), 8);
    }
    fence_barriers();
  }
  if (threadIdx.x < 32) Tiles::fill(shape, table);
  __syncthreads();
  if (threadIdx.x < kLoaders) {
    give_registers<40>();
    if (threadIdx.x >= 32) return;
    if (threadIdx.x == 0) {
      fetch_map(left);
      fetch_map(right);
    }
    load_all<C, A, kTransposed>(left, right, left2, right2, shape, base, table);
  } else {
    take_registers<C::kBlocks == 1 ? 232 : 96>();
    compute_all<C, A, T, D, kTransposed>(shape, bias, d, stride, factor, base, table);
  }
#endif
}

template <class C, class A, class T, class D, bool kTransposed>
void launch(const GroupedProduct& call, cudaStream_t stream) {
  const bool second = static_cast<bool>(call.a2);
  // Of an operand whose rows are columns of d, no more rows than there are columns, in eights as shared memory holds them.
  const int box = static_cast<int>(std::min<std::int64_t>(C::kColumns, (call.d.cols + 7) / 8 * 8));
  const CUtensorMap left = tensor_map(call.a, kRows), right = tensor_map(call.b, static_cast<std::uint32_t>(kTransposed ? box : kStep));
  const CUtensorMap left2 = second ? tensor_map(call.a2, kRows) : left, right2 = second ? tensor_map(call.b2, kStep) : right;
  Shape shape{};
  shape.starts = call.starts;
  shape.first = static_cast<int>(call.first);
  shape.experts = static_cast<int>(call.experts);
  shape.columns = static_cast<int>(call.d.cols);
  shape.inner = static_cast<int>(call.a.cols);
  shape.stage_bytes = kTransposed ? kLeftBytes + box * kRowBytes : C::kStageBytes;
  shape.row_scales = call.a_scales;
  shape.column_scales = call.b_scales;
  shape.rank = second ? static_cast<int>(call.a2.cols) : 0;
  const auto kernel = grouped_kernel<C, A, T, D, kTransposed>;
  const std::size_t bytes = C::kTable + static_cast<std::size_t>(call.experts + 1) * sizeof(int) + kAlignmentBytes;
  allow_shared(kernel, bytes);
  const std::int64_t most = (call.a.rows / kRows + std::min(call.experts, call.a.rows)) * ((call.d.cols + C::kColumns - 1) / C::kColumns);
  const unsigned blocks = static_cast<unsigned>(std::min<std::int64_t>(most, std::int64_t{C::kBlocks} * processors()));
  kernel<<<blocks, kThreads, bytes, stream>>>(left, right, left2, right2, shape, static_cast<const T*>(call.bias), call.d.as<D>(), call.d.stride,
                                              call.factor);
}

}  // namespace

void grouped_product(const GroupedProduct& call, cudaStream_t stream) {
  if (call.a.rows == 0 || call.experts == 0) return;
  const bool eight = call.a.dtype == DType::f8;
  with_half(eight ? call.d.dtype : call.a.dtype, [&]<class T>(T) {
    const bool floats = call.d.dtype == DType::f32;
    if (eight)
      launch<Wide, e4m3, T, T, true>(call, stream);
    else if (floats && call.b_transposed && !call.a2 && call.d.cols <= Narrow::kColumns)
      launch<Narrow, T, T, float, true>(call, stream);
    else if (floats)
      call.b_transposed ? launch<Wide, T, T, float, true>(call, stream) : launch<Wide, T, T, float, false>(call, stream);
    else
      call.b_transposed ? launch<Wide, T, T, T, true>(call, stream) : launch<Wide, T, T, T, false>(call, stream);
  });
  check_launch("grouped_product");
}

}  // namespace pipelora::cuda
