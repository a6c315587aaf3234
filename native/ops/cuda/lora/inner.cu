// LoRA's inner products, forward (A) and backward (Bᵀ).
//
// A block takes 16 tokens, its warps share the columns; on 16-bit inputs tensor cores multiply x (exact) by the f32 rows split
// into two 16-bit numbers, so that the inner vectors keep f32's quality; those of pairs of more than eight ranks are rounded. The
// eight columns that a thread holds are the eight elements of one call of dropout's generator.
#include <algorithm>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/pointwise/activation.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kMaxTiles = 8;

struct TileSet {
  LoraTile tile[kMaxTiles];
  int count = 0;
};

template <class T>
struct InnerCall {
  const T* x;  // or gate
  std::int64_t x_stride, tokens, cols;
  const T* up;  // with SwiGLU
  std::int64_t up_stride;
  T* copy;  // null: neither copy nor tail
  std::int64_t copy_stride;
  bool tail_only;  // x itself has the tail behind its columns: copy is x
  bool has_tail;
  float* inner;
  std::int64_t inner_stride;
  int tail_begin, tail_end;  // columns behind x that this launch fills beyond its own tiles, with zeros
  Mask mask;
  float* partial;  // [splits, token blocks, 16, tiles * 8]
  std::uint32_t* counters;
  std::int64_t cols_per_split;
};

constexpr int kInnerWarps = 8;
constexpr int kInnerTokens = 16;
/// Blocks of a multiprocessor that inner_splits counts on: the registers of few tiles leave room for them if the compiler is told.
constexpr int kInnerBlocks = 3;

/// f32 as the sum of two 16-bit numbers, eight of them.
template <class T>
__device__ inline void split8(const float4& a, const float4& b, std::uint32_t (&high)[4], std::uint32_t (&low)[4]) {
  const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) split2<T>(v[2 * i], v[2 * i + 1], high[i], low[i]);
}

template <class T>
__device__ inline void round8(const float4& a, const float4& b, std::uint32_t (&high)[4]) {
  high[0] = pack2(T{}, a.x, a.y);
  high[1] = pack2(T{}, a.z, a.w);
  high[2] = pack2(T{}, b.x, b.y);
  high[3] = pack2(T{}, b.z, b.w);
}

/// What the columns are: x as it is given, or a gate's activation A times up.
struct Given {
  static constexpr bool kGated = false;
};
template <class A>
struct Gated {
  static constexpr bool kGated = true;
  using Activation = A;
};

template <class A, class T>
__device__ inline uint4 gated(const uint4& gate, const uint4& up) {
  const std::uint32_t g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
  std::uint32_t a[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 gs = unpack2(T{}, g[i]), us = unpack2(T{}, u[i]);
    a[i] = pack2(T{}, A::value(gs.x) * us.x, A::value(gs.y) * us.y);
  }
  return make_uint4(a[0], a[1], a[2], a[3]);
}

template <class T, int NT, class Source>
__global__ void __launch_bounds__(kInnerWarps * 32, NT <= 2 ? kInnerBlocks : 1) lora_inner_kernel(InnerCall<T> call, TileSet set) {
  constexpr int kWidth = NT * 8;
  __shared__ __align__(16) float sums[kInnerWarps][kInnerTokens][kWidth];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kInnerTokens;
  const std::int64_t t0 = first + g, t1 = first + g + 8;
  const bool has0 = t0 < call.tokens, has1 = t1 < call.tokens;
  const std::int64_t begin = blockIdx.y * call.cols_per_split, end = min(call.cols, begin + call.cols_per_split);
  const bool copies = call.copy != nullptr && !call.tail_only;
  float acc[NT][4] = {};
  TokenPlace place0{}, place1{};
  if (call.mask.position != nullptr) {
    place0 = token_place(call.mask, min(t0, call.tokens - 1));
    place1 = token_place(call.mask, min(t1, call.tokens - 1));
  }

  const uint4 none = make_uint4(0, 0, 0, 0);
  constexpr std::int64_t kStep = kInnerWarps * 32;
  const auto read = [&](std::int64_t c, uint4& x0, uint4& x1) {
    x0 = c < end && has0 ? *reinterpret_cast<const uint4*>(call.x + t0 * call.x_stride + c) : none;
    x1 = c < end && has1 ? *reinterpret_cast<const uint4*>(call.x + t1 * call.x_stride + c) : none;
  };
  const auto read_up = [&](std::int64_t c, uint4& x0, uint4& x1) {
    x0 = c < end && has0 ? *reinterpret_cast<const uint4*>(call.up + t0 * call.up_stride + c) : none;
    x1 = c < end && has1 ? *reinterpret_cast<const uint4*>(call.up + t1 * call.up_stride + c) : none;
  };
  uint4 next0, next1, up0, up1;
  read(begin + warp * 32 + q * 8, next0, next1);
  if constexpr (Source::kGated) read_up(begin + warp * 32 + q * 8, up0, up1);
  for (std::int64_t c = begin + warp * 32 + q * 8; c - q * 8 < end; c += kStep) {
    const bool in = c < end;
    uint4 x0 = next0, x1 = next1;
    if constexpr (Source::kGated) {
      x0 = gated<typename Source::Activation, T>(next0, up0);
      x1 = gated<typename Source::Activation, T>(next1, up1);
    }
    read(c + kStep, next0, next1);
    if constexpr (Source::kGated) read_up(c + kStep, up0, up1);
    if (copies && in) {
      if (has0) *reinterpret_cast<uint4*>(call.copy + t0 * call.copy_stride + c) = x0;
      if (has1) *reinterpret_cast<uint4*>(call.copy + t1 * call.copy_stride + c) = x1;
    }
    uint4 d0 = x0, d1 = x1;
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const LoraTile& tile = set.tile[i];
      const std::int64_t base = c - q * 8;
      if (base + 32 <= tile.first_column || base >= tile.first_column + tile.columns) continue;
      float4 b0 = make_float4(0, 0, 0, 0), b1 = b0;
      const std::int64_t at = c - tile.first_column;
      if (g < tile.rank && at >= 0 && at < tile.columns) {
        const float4* row = reinterpret_cast<const float4*>(tile.rows + g * tile.stride + at);
        b0 = __ldg(row);
        b1 = __ldg(row + 1);
      }
      if (!tile.same_mask) {
        d0 = x0;
        d1 = x1;
        if (tile.masked) {
          d0 = both(x0, keep_words(call.mask, place0, c, tile.module, tile.threshold));
          d1 = both(x1, keep_words(call.mask, place1, c, tile.module, tile.threshold));
        }
      }
      std::uint32_t high[4], low[4];
      if (tile.rounded)
        round8<T>(b0, b1, high);
      else
        split8<T>(b0, b1, high, low);
      mma(T{}, acc[i], d0.x, d1.x, d0.y, d1.y, high[0], high[1]);
      mma(T{}, acc[i], d0.z, d1.z, d0.w, d1.w, high[2], high[3]);
      if (tile.rounded) continue;
      mma(T{}, acc[i], d0.x, d1.x, d0.y, d1.y, low[0], low[1]);
      mma(T{}, acc[i], d0.z, d1.z, d0.w, d1.w, low[2], low[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    sums[warp][g][i * 8 + 2 * q] = acc[i][0];
    sums[warp][g][i * 8 + 2 * q + 1] = acc[i][1];
    sums[warp][g + 8][i * 8 + 2 * q] = acc[i][2];
    sums[warp][g + 8][i * 8 + 2 * q + 1] = acc[i][3];
  }
  __syncthreads();

  // Sum of the warps; then, by the block that comes last of those that share these tokens, of the splits in their order.
  const bool splits = gridDim.y > 1;
  const std::int64_t block_size = kInnerTokens * kWidth;
  if (splits) {
    float* mine = part_of(call.partial, blockIdx.y, block_size);
    for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * kWidth; item += kInnerWarps * 32) {
      mine[item] = sum_of_warps(sums, item / kWidth, item % kWidth);
    }
    if (!comes_last(call.counters)) return;
  }
  for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * kWidth; item += kInnerWarps * 32) {
    const int t = item / kWidth, j = item % kWidth;
    if (first + t >= call.tokens) continue;
    const LoraTile& tile = set.tile[j / 8];
    if (j % 8 >= tile.rank) continue;
    const float total = (splits ? sum_of_splits(call.partial, block_size, item) : sum_of_warps(sums, t, j)) * tile.factor;
    const int column = tile.inner_column + j % 8;
    call.inner[(first + t) * call.inner_stride + column] = total;
    if (call.copy != nullptr && call.has_tail) {
      call.copy[(first + t) * call.copy_stride + call.cols + column] = narrow<T>(total * tile.tail_factor);
    }
  }
  if (call.copy != nullptr && call.has_tail) {
    const int width = call.tail_end - call.tail_begin;
    for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * width; item += kInnerWarps * 32) {
      const int t = item / width, j = call.tail_begin + item % width;
      if (first + t < call.tokens) call.copy[(first + t) * call.copy_stride + call.cols + j] = narrow<T>(0.0f);
    }
  }
}

/// Tiles that the kernel is compiled for where a launch has `count`: the partial sums are as wide.
constexpr int compiled_tiles(std::size_t count) { return count <= 4 ? static_cast<int>(count) : kMaxTiles; }

/// Splits of the columns: no more blocks than run at once (on 132 multiprocessors), each warp with at least two pieces.
/// Where one split makes more, the fewest of up to four whose last wave leaves little idle. Depends on shapes alone.
std::int64_t inner_splits(std::int64_t tokens, std::int64_t cols) {
  constexpr std::int64_t kAtOnce = 132 * kInnerBlocks, kMostWaves = 4;
  const std::int64_t blocks = (tokens + kInnerTokens - 1) / kInnerTokens, most = std::max<std::int64_t>(1, cols / (2 * kInnerWarps * 32));
  if (blocks <= kAtOnce) return std::clamp<std::int64_t>(kAtOnce / blocks, 1, most);
  for (std::int64_t splits = 1; splits <= std::min(kMostWaves, most); ++splits) {
    const std::int64_t waves = (splits * blocks + kAtOnce - 1) / kAtOnce;
    if (10 * splits * blocks >= 9 * waves * kAtOnce) return splits;
  }
  return 1;
}

// Any dtype and any alignment: a block a token, a warp a rank.
template <class T>
__global__ void lora_inner_plain_kernel(InnerCall<T> call, TileSet set) {
  const std::int64_t t = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const T* x = call.x + t * call.x_stride;
  T* copy = call.copy != nullptr ? call.copy + t * call.copy_stride : nullptr;
  if (copy != nullptr) {
    for (std::int64_t c = threadIdx.x; c < call.cols && !call.tail_only; c += blockDim.x) copy[c] = x[c];
    for (int j = call.tail_begin + static_cast<int>(threadIdx.x); j < call.tail_end; j += static_cast<int>(blockDim.x))
      copy[call.cols + j] = narrow<T>(0.0f);
  }
  for (int item = warp; item < set.count * 8; item += static_cast<int>(blockDim.x) / 32) {
    const LoraTile& tile = set.tile[item / 8];
    const int r = item % 8;
    if (r >= tile.rank) continue;
    float total = 0;
    for (std::int64_t c = lane; c < tile.columns; c += 32) {
      const std::int64_t at = tile.first_column + c;
      if (tile.masked && !keep_one(call.mask, t, at, tile.module, tile.threshold)) continue;
      total += widen(x[at]) * tile.rows[r * tile.stride + c];
    }
    total = warp_sum(total) * tile.factor;
    if (lane == 0) {
      const int column = tile.inner_column + r;
      call.inner[t * call.inner_stride + column] = total;
      if (copy != nullptr) copy[call.cols + column] = narrow<T>(total * tile.tail_factor);
    }
  }
}

template <class T>
InnerCall<T> inner_call(const Tensor& x, const Mask& mask, const Tensor& inner, const Tensor& copy, const LoraScratch& scratch,
                        std::int64_t splits) {
  InnerCall<T> call{};
  call.x = x.as<T>();
  call.x_stride = x.stride;
  call.tokens = x.rows;
  call.cols = x.cols;
  call.copy = copy.as<T>();
  call.copy_stride = copy.stride;
  call.has_tail = true;
  call.inner = inner.as<float>();
  call.inner_stride = inner.stride;
  call.mask = mask;
  call.partial = static_cast<float*>(scratch.partial);
  call.counters = scratch.counters;
  call.cols_per_split = ((x.cols + splits - 1) / splits + 255) / 256 * 256;
  return call;
}

template <class Source, class T>
void launch_inner(const InnerCall<T>& call, TileSet set, cudaStream_t stream) {
  const dim3 grid(blocks_for(call.tokens, kInnerTokens), blocks_for(call.cols, call.cols_per_split));
  const auto launch = [&]<int NT>() {
    for (int i = set.count; i < NT; ++i) set.tile[i] = LoraTile{};
    lora_inner_kernel<T, NT, Source><<<grid, kInnerWarps * 32, 0, stream>>>(call, set);
  };
  switch (compiled_tiles(static_cast<std::size_t>(set.count))) {
    case 1: return launch.template operator()<1>();
    case 2: return launch.template operator()<2>();
    case 3: return launch.template operator()<3>();
    case 4: return launch.template operator()<4>();
    default: return launch.template operator()<kMaxTiles>();
  }
}

}  // namespace

std::size_t lora_inner_bytes(const Tensor& x, std::size_t tiles) {
  const std::int64_t splits = inner_splits(x.rows, x.cols), blocks = (x.rows + kInnerTokens - 1) / kInnerTokens;
  if (splits == 1) return 0;
  return static_cast<std::size_t>(splits * blocks * kInnerTokens * 8 * compiled_tiles(tiles)) * sizeof(float);
}

void lora_inner(const Tensor& x, const std::vector<LoraTile>& tiles, const DropoutKey* dropout, const Sequences* sequences,
                const Tensor& inner, const Tensor& copy, std::int64_t tail, bool tensor_cores, const LoraScratch& scratch, cudaStream_t stream) {
  if (x.rows == 0) return;
  const Mask mask = mask_of(dropout, sequences, x.cols);
  const std::int64_t splits = blocks_for(x.rows, kInnerTokens) <= kLoraCounters ? inner_splits(x.rows, x.cols) : 1;
  for (std::size_t first = 0; first < tiles.size(); first += kMaxTiles) {
    TileSet set;
    set.count = static_cast<int>(std::min<std::size_t>(kMaxTiles, tiles.size() - first));
    std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(first), set.count, set.tile);
    set.tile[0].same_mask = false;
    with_float(x.dtype, [&]<class T>(T) {
      InnerCall<T> call = inner_call<T>(x, mask, inner, copy, scratch, splits);
      call.tail_only = copy.data == x.data || first > 0;
      if (first + kMaxTiles >= tiles.size()) {
        call.tail_begin = static_cast<int>(inner.cols);
        call.tail_end = static_cast<int>(tail);
      }
      if constexpr (sizeof(T) == 2) {
        if (tensor_cores) return launch_inner<Given, T>(call, set, stream);
      }
      lora_inner_plain_kernel<T><<<static_cast<unsigned>(x.rows), 256, 0, stream>>>(call, set);
    });
    check_launch("lora_inner");
  }
}

void swiglu_lora_inner(const Tensor& gate, const Tensor& up, Activation activation, const std::vector<LoraTile>& tiles, const DropoutKey* dropout,
                       const Sequences* sequences, const Tensor& inner, const Tensor& act, std::int64_t tail, const LoraScratch& scratch,
                       cudaStream_t stream) {
  TileSet set;
  set.count = static_cast<int>(tiles.size());
  std::copy(tiles.begin(), tiles.end(), set.tile);
  with_float(gate.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      InnerCall<T> call = inner_call<T>(gate, mask_of(dropout, sequences, gate.cols), inner, act, scratch, inner_splits(gate.rows, gate.cols));
      call.up = up.as<T>();
      call.up_stride = up.stride;
      call.has_tail = tail > 0;
      call.tail_begin = static_cast<int>(inner.cols);
      call.tail_end = static_cast<int>(tail);
      with_activation(activation, [&]<class A>(A) { launch_inner<Gated<A>, T>(call, set, stream); });
    }
  });
  check_launch("swiglu_lora_inner");
}

}  // namespace pipelora::cuda
