// LoRA's skinny products.
//
// lora_inner: a block takes 16 tokens, its warps share the columns; on 16-bit inputs tensor cores multiply x (exact) by the
// f32 rows split into two 16-bit numbers, so that the inner vectors keep f32's quality. The eight columns that a thread
// holds are the eight elements of one call of dropout's generator.
// lora_weight_grad: a warp keeps 8 ranks of 64 columns of the gradient in registers while it walks over tokens.
// Where several blocks share an output, each leaves its partial sums and the block that finishes last adds them in order.
#include <algorithm>

#include "ops/cuda/common.cuh"
#include "ops/cuda/lora.h"
#include "ops/cuda/mma.cuh"

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

/// f32 as the sum of two 16-bit numbers, eight of them.
template <class T>
__device__ inline void split(const float4& a, const float4& b, std::uint32_t (&high)[4], std::uint32_t (&low)[4]) {
  const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    high[i] = pack2(T{}, v[2 * i], v[2 * i + 1]);
    const float2 h = unpack2(T{}, high[i]);
    low[i] = pack2(T{}, v[2 * i] - h.x, v[2 * i + 1] - h.y);
  }
}

template <class T>
__device__ inline uint4 masked(uint4 v, std::uint32_t keep) {
  std::uint32_t* words = reinterpret_cast<std::uint32_t*>(&v);
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const std::uint32_t two = keep >> (2 * w);
    words[w] &= (two & 1u ? 0x0000FFFFu : 0u) | (two & 2u ? 0xFFFF0000u : 0u);
  }
  return v;
}

template <class T>
__device__ inline uint4 swiglu(const uint4& gate, const uint4& up) {
  const std::uint32_t g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
  std::uint32_t a[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 gs = unpack2(T{}, g[i]), us = unpack2(T{}, u[i]);
    a[i] = pack2(T{}, gs.x * sigmoid(gs.x) * us.x, gs.y * sigmoid(gs.y) * us.y);
  }
  return make_uint4(a[0], a[1], a[2], a[3]);
}

template <class T, int NT, bool kSwiGlu>
__global__ void __launch_bounds__(kInnerWarps * 32) lora_inner_kernel(InnerCall<T> call, TileSet set) {
  constexpr int kWidth = NT * 8;
  __shared__ float sums[kInnerWarps][kInnerTokens][kWidth];
  __shared__ bool last;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kInnerTokens;
  const std::int64_t t0 = first + g, t1 = first + g + 8;
  const bool has0 = t0 < call.tokens, has1 = t1 < call.tokens;
  const std::int64_t begin = blockIdx.y * call.cols_per_split, end = min(call.cols, begin + call.cols_per_split);
  const bool copies = call.copy != nullptr && !call.tail_only;
  float acc[NT][4] = {};

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
  if constexpr (kSwiGlu) read_up(begin + warp * 32 + q * 8, up0, up1);
  for (std::int64_t c = begin + warp * 32 + q * 8; c - q * 8 < end; c += kStep) {
    const bool in = c < end;
    const uint4 x0 = kSwiGlu ? swiglu<T>(next0, up0) : next0, x1 = kSwiGlu ? swiglu<T>(next1, up1) : next1;
    read(c + kStep, next0, next1);
    if constexpr (kSwiGlu) read_up(c + kStep, up0, up1);
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
        if (tile.masked && in) {
          if (has0) d0 = masked<T>(x0, keep_bits(call.mask, t0, c, tile.module, tile.threshold));
          if (has1) d1 = masked<T>(x1, keep_bits(call.mask, t1, c, tile.module, tile.threshold));
        }
      }
      std::uint32_t high[4], low[4];
      split<T>(b0, b1, high, low);
      mma(T{}, acc[i], d0.x, d1.x, d0.y, d1.y, high[0], high[1]);
      mma(T{}, acc[i], d0.z, d1.z, d0.w, d1.w, high[2], high[3]);
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
    float* mine = call.partial + (blockIdx.y * static_cast<std::int64_t>(gridDim.x) + blockIdx.x) * block_size;
    for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * kWidth; item += kInnerWarps * 32) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kInnerWarps; ++w) total += sums[w][item / kWidth][item % kWidth];
      mine[item] = total;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(&call.counters[blockIdx.x], 1u) == gridDim.y - 1;
      if (last) call.counters[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
  }
  for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * kWidth; item += kInnerWarps * 32) {
    const int t = item / kWidth, j = item % kWidth;
    if (first + t >= call.tokens) continue;
    const LoraTile& tile = set.tile[j / 8];
    if (j % 8 >= tile.rank) continue;
    float total = 0;
    if (splits) {
      for (unsigned s = 0; s < gridDim.y; ++s) {
        total += __ldcg(call.partial + (s * static_cast<std::int64_t>(gridDim.x) + blockIdx.x) * block_size + item);
      }
    } else {
#pragma unroll
      for (int w = 0; w < kInnerWarps; ++w) total += sums[w][t][j];
    }
    total *= tile.factor;
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

/// Splits of the columns: enough blocks for the chip, each warp with at least two pieces. Depends on shapes alone.
std::int64_t inner_splits(std::int64_t tokens, std::int64_t cols) {
  const std::int64_t blocks = (tokens + kInnerTokens - 1) / kInnerTokens;
  return std::clamp<std::int64_t>((528 + blocks - 1) / blocks, 1, std::max<std::int64_t>(1, cols / (2 * kInnerWarps * 32)));
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

Mask mask_of(const DropoutKey* dropout, const Sequences* sequences, std::int64_t in) {
  Mask mask;
  if (dropout == nullptr) return mask;
  mask.key = *dropout;
  mask.row = sequences->row.device.as<std::int32_t>();
  mask.position = sequences->position.device.as<std::int32_t>();
  mask.in = in;
  return mask;
}

}  // namespace

std::vector<LoraTile> forward_tiles(const LoraSet& lora, std::int64_t in) {
  std::vector<LoraTile> tiles;
  for (const LoraView& pair : lora.pairs) {
    const bool drops = lora.dropout != nullptr && pair.dropout > 0;
    for (std::int64_t r = 0; r < pair.a.rows; r += 8) {
      LoraTile tile;
      tile.rows = pair.a.as<float>() + r * pair.a.stride;
      tile.stride = pair.a.stride;
      tile.columns = in;
      tile.rank = static_cast<int>(std::min<std::int64_t>(8, pair.a.rows - r));
      tile.inner_column = static_cast<int>(pair.first_inner + r);
      tile.factor = drops ? 1.0f / (1.0f - pair.dropout) : 1.0f;
      tile.tail_factor = pair.scale;
      tile.module = pair.module_id;
      tile.threshold = dropout_threshold(pair.dropout);
      tile.masked = drops;
      tile.same_mask = r > 0;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

std::vector<LoraTile> backward_tiles(const LoraSet& lora) {
  std::vector<LoraTile> tiles;
  for (const LoraView& pair : lora.pairs) {
    for (std::int64_t r = 0; r < pair.bt.rows; r += 8) {
      LoraTile tile;
      tile.rows = pair.bt.as<float>() + r * pair.bt.stride;
      tile.stride = pair.bt.stride;
      tile.first_column = pair.first_column;
      tile.columns = pair.bt.cols;
      tile.rank = static_cast<int>(std::min<std::int64_t>(8, pair.bt.rows - r));
      tile.inner_column = static_cast<int>(pair.first_inner + r);
      tile.factor = pair.scale;
      tile.same_mask = false;
      tiles.push_back(tile);
    }
  }
  return tiles;
}

std::size_t lora_inner_bytes(const Tensor& x, std::size_t tiles) {
  const std::int64_t splits = inner_splits(x.rows, x.cols), blocks = (x.rows + kInnerTokens - 1) / kInnerTokens;
  if (splits == 1) return 0;
  return static_cast<std::size_t>(splits * blocks * kInnerTokens * 8) * std::min<std::size_t>(tiles, kMaxTiles) * sizeof(float);
}

namespace {

/// Whether the kernel on tensor cores takes these tiles.
bool tiles_suit(const std::vector<LoraTile>& tiles) {
  return std::all_of(tiles.begin(), tiles.end(), [](const LoraTile& tile) {
    return tile.first_column % 8 == 0 && tile.columns % 8 == 0 && tile.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
  });
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

template <bool kSwiGlu, class T>
void launch_inner(const InnerCall<T>& call, TileSet set, cudaStream_t stream) {
  const dim3 grid(blocks_for(call.tokens, kInnerTokens), blocks_for(call.cols, call.cols_per_split));
  const auto launch = [&]<int NT>() {
    for (int i = set.count; i < NT; ++i) set.tile[i] = LoraTile{};
    lora_inner_kernel<T, NT, kSwiGlu><<<grid, kInnerWarps * 32, 0, stream>>>(call, set);
  };
  switch (set.count) {
    case 1: return launch.template operator()<1>();
    case 2: return launch.template operator()<2>();
    case 3: return launch.template operator()<3>();
    case 4: return launch.template operator()<4>();
    default: return launch.template operator()<kMaxTiles>();
  }
}

}  // namespace

void lora_inner(const Tensor& x, const std::vector<LoraTile>& tiles, const DropoutKey* dropout, const Sequences* sequences,
                const Tensor& inner, const Tensor& copy, std::int64_t tail, const LoraScratch& scratch, cudaStream_t stream) {
  if (x.rows == 0) return;
  const Mask mask = mask_of(dropout, sequences, x.cols);
  const bool wide = x.dtype != DType::f32 && eights(x) && (!copy || eights(copy)) && tiles_suit(tiles);
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
        if (wide) return launch_inner<false, T>(call, set, stream);
      }
      lora_inner_plain_kernel<T><<<static_cast<unsigned>(x.rows), 256, 0, stream>>>(call, set);
    });
    check_launch("lora_inner");
  }
}

bool swiglu_lora_inner(const Tensor& gate, const Tensor& up, const std::vector<LoraTile>& tiles, const DropoutKey* dropout,
                       const Sequences* sequences, const Tensor& inner, const Tensor& act, std::int64_t tail, const LoraScratch& scratch,
                       cudaStream_t stream) {
  if (gate.dtype == DType::f32 || !eights(gate) || !eights(up) || !eights(act) || !tiles_suit(tiles) || tiles.empty() ||
      tiles.size() > kMaxTiles || gate.rows == 0 || blocks_for(gate.rows, kInnerTokens) > kLoraCounters)
    return false;
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
      launch_inner<true, T>(call, set, stream);
    }
  });
  check_launch("swiglu_lora_inner");
  return true;
}

namespace {

constexpr int kMaxPairs = 8;

struct AppendPair {
  const float* rows;
  std::int64_t stride;
  std::int64_t first_column, columns;
  int rank, first_inner;
};
struct AppendSet {
  AppendPair pair[kMaxPairs];
  int count;
};

// Eight columns a thread (tails are multiples of 16).
template <class T>
__global__ void append_columns_kernel(T* weight, std::int64_t stride, std::int64_t out, std::int64_t in, AppendSet set, bool wide) {
  const std::int64_t o = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int first = static_cast<int>(blockIdx.y) * 8;
  if (o >= out) return;
  Floats<8> values;
#pragma unroll
  for (int i = 0; i < 8; ++i) values.v[i] = 0;
  for (int p = 0; p < set.count; ++p) {
    const AppendPair& pair = set.pair[p];
    const std::int64_t c = o - pair.first_column;
    if (c < 0 || c >= pair.columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = first + i - pair.first_inner;
      if (r >= 0 && r < pair.rank) values.v[i] = pair.rows[r * pair.stride + c];
    }
  }
  T* to = weight + o * stride + in + first;
  if (wide) {
    store<8>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = narrow<T>(values.v[i]);
  }
}

template <class T>
__global__ void append_rows_kernel(T* weight, std::int64_t stride, std::int64_t out, std::int64_t in, AppendSet set) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int j = static_cast<int>(blockIdx.y);
  if (c >= in) return;
  float value = 0;
  for (int p = 0; p < set.count; ++p) {
    const AppendPair& pair = set.pair[p];
    const int r = j - pair.first_inner;
    if (r >= 0 && r < pair.rank) value = pair.rows[r * pair.stride + c];
  }
  weight[(out + j) * stride + c] = narrow<T>(value);
}

AppendSet append_set(const LoraSet& lora, bool columns) {
  if (lora.pairs.size() > kMaxPairs) throw Error(kTensorMismatch, "more than 8 LoRA pairs on one product");
  AppendSet set{};
  for (const LoraView& pair : lora.pairs) {
    const Tensor& from = columns ? pair.bt : pair.a;
    set.pair[set.count++] = {from.as<float>(), from.stride, columns ? pair.first_column : 0, from.cols,
                             static_cast<int>(from.rows), static_cast<int>(pair.first_inner)};
  }
  return set;
}

}  // namespace

void append_columns(const Tensor& weight, const LoraSet& lora, cudaStream_t stream) {
  const AppendSet set = append_set(lora, true);
  with_float(weight.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(weight.rows, 128), blocks_for(lora.inner_cols, 8));
    append_columns_kernel<T><<<grid, 128, 0, stream>>>(weight.as<T>(), weight.stride, weight.rows, weight.cols, set, eights(weight));
  });
  check_launch("append_columns");
}

void append_rows(const Tensor& weight, const LoraSet& lora, std::int64_t tail, cudaStream_t stream) {
  const AppendSet set = append_set(lora, false);
  with_float(weight.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(weight.cols, 256), static_cast<unsigned>(tail));
    append_rows_kernel<T><<<grid, 256, 0, stream>>>(weight.as<T>(), weight.stride, weight.rows, weight.cols, set);
  });
  check_launch("append_rows");
}

namespace {

constexpr int kGradTokens = 16;

struct GradTile {
  const float* rows;  // A of this pair, [rank, in]
  std::int64_t stride;
  int rank, inner_column;
  float factor;
  std::uint32_t module, threshold;
  bool masked;
};

template <int NT>
struct GradTiles {
  GradTile tile[NT];
};

// V columns a thread, kGradTokens tokens a block: any dtype, any alignment with V = 1.
template <int V, class T>
__global__ void __launch_bounds__(256) add_input_grad_kernel(T* dx, std::int64_t dx_stride, std::int64_t tokens,
                                                             std::int64_t cols, const float* inner_grad,
                                                             std::int64_t inner_stride, GradTile tile, Mask mask) {
  __shared__ float left[kGradTokens][8];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kGradTokens;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(kGradTokens), tokens - first));
  for (int i = static_cast<int>(threadIdx.x); i < kGradTokens * 8; i += 256) {
    const int t = i / 8, r = i % 8;
    left[t][r] = t < count && r < tile.rank ? inner_grad[(first + t) * inner_stride + tile.inner_column + r] * tile.factor : 0.0f;
  }
  __syncthreads();
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x) * V;
  if (c >= cols) return;
  Floats<V> a[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    if (r < tile.rank) {
      a[r] = load<V>(tile.rows + r * tile.stride + c);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) a[r].v[i] = 0;
    }
  }
#pragma unroll 2
  for (int t = 0; t < count; ++t) {
    T* at = dx + (first + t) * dx_stride + c;
    Floats<V> out = load<V>(at);
    std::uint32_t keep = 0xFFu;
    if (tile.masked) {
      if constexpr (V == 8)
        keep = keep_bits(mask, first + t, c, tile.module, tile.threshold);
      else
        keep = keep_one(mask, first + t, c, tile.module, tile.threshold) ? 1u : 0u;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float sum = 0;
#pragma unroll
      for (int r = 0; r < 8; ++r) sum += left[t][r] * a[r].v[i];
      if (keep >> i & 1u) out.v[i] += sum;
    }
    store<V>(at, out);
  }
}

// On tensor cores: a warp takes 32 columns and kGradSteps times 16 tokens. The product's columns are permuted so that a lane
// holds eight neighbours of a row, the eight elements of one call of dropout's generator. Rows of A are split in two 16-bit
// numbers (the upper and lower half of the inner dimension), the gradients of the inner vectors are rounded to 16 bits.
constexpr int kGradSteps = 2;

template <class T>
struct SwiGluGrad {
  const T *gate, *up;
  T *dgate, *dup;
  std::int64_t gate_stride, up_stride, dgate_stride, dup_stride;
};

/// dact becomes act; dgate and dup of eight columns are written.
template <class T>
__device__ inline void swiglu_grad(const SwiGluGrad<T>& s, std::int64_t t, std::int64_t c, Floats<8>& dact) {
  const Floats<8> g = load<8>(s.gate + t * s.gate_stride + c), u = load<8>(s.up + t * s.up_stride + c);
  Floats<8> dg, du;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float sigma = sigmoid(g.v[i]), silu = g.v[i] * sigma, d = dact.v[i];
    du.v[i] = d * silu;
    dg.v[i] = d * u.v[i] * sigma * (1.0f + g.v[i] * (1.0f - sigma));
    dact.v[i] = silu * u.v[i];
  }
  store<8>(s.dgate + t * s.dgate_stride + c, dg);
  store<8>(s.dup + t * s.dup_stride + c, du);
}

template <class T, int NT, bool kSwiGlu>
__global__ void __launch_bounds__(256) add_input_grad_tiles_kernel(T* dx, std::int64_t dx_stride, std::int64_t tokens, std::int64_t cols,
                                                                   const float* inner_grad, std::int64_t inner_stride,
                                                                   GradTiles<NT> tiles, Mask mask, SwiGluGrad<T> swiglu) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * 8 + warp) * 32;
  if (base >= cols) return;
  std::uint32_t high[NT][4], low[NT][4];
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    const GradTile& tile = tiles.tile[i];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t c = base + g / 2 * 8 + 2 * j + g % 2;
      const float a = 2 * q < tile.rank && c < cols ? __ldg(tile.rows + 2 * q * tile.stride + c) : 0.0f;
      const float b = 2 * q + 1 < tile.rank && c < cols ? __ldg(tile.rows + (2 * q + 1) * tile.stride + c) : 0.0f;
      high[i][j] = pack2(T{}, a, b);
      const float2 h = unpack2(T{}, high[i][j]);
      low[i][j] = pack2(T{}, a - h.x, b - h.y);
    }
  }
  const std::int64_t c = base + q * 8;
  const bool in = c < cols;
#pragma unroll
  for (int step = 0; step < kGradSteps; ++step) {
    const std::int64_t t0 = (static_cast<std::int64_t>(blockIdx.y) * kGradSteps + step) * 16 + g, t1 = t0 + 8;
    const bool has0 = in && t0 < tokens, has1 = in && t1 < tokens;
    Floats<8> out0{}, out1{};
    if (has0) out0 = load<8>(dx + t0 * dx_stride + c);
    if (has1) out1 = load<8>(dx + t1 * dx_stride + c);
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const GradTile& tile = tiles.tile[i];
      const auto left = [&](std::int64_t t) -> std::uint32_t {
        if (t >= tokens) return 0;
        const float* z = inner_grad + t * inner_stride + tile.inner_column + 2 * q;
        return pack2(T{}, 2 * q < tile.rank ? z[0] * tile.factor : 0.0f, 2 * q + 1 < tile.rank ? z[1] * tile.factor : 0.0f);
      };
      const std::uint32_t a0 = left(t0), a1 = left(t1);
      std::uint32_t keep0 = 0xFFu, keep1 = 0xFFu;
      if (tile.masked) {
        if (has0) keep0 = keep_bits(mask, t0, c, tile.module, tile.threshold);
        if (has1) keep1 = keep_bits(mask, t1, c, tile.module, tile.threshold);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float sum[4] = {};
        mma(T{}, sum, a0, a1, a0, a1, high[i][j], low[i][j]);
        if (keep0 >> (2 * j) & 1u) out0.v[2 * j] += sum[0];
        if (keep0 >> (2 * j + 1) & 1u) out0.v[2 * j + 1] += sum[1];
        if (keep1 >> (2 * j) & 1u) out1.v[2 * j] += sum[2];
        if (keep1 >> (2 * j + 1) & 1u) out1.v[2 * j + 1] += sum[3];
      }
    }
    if constexpr (kSwiGlu) {
      if (has0) swiglu_grad(swiglu, t0, c, out0);
      if (has1) swiglu_grad(swiglu, t1, c, out1);
    }
    if (has0) store<8>(dx + t0 * dx_stride + c, out0);
    if (has1) store<8>(dx + t1 * dx_stride + c, out1);
  }
}

}  // namespace

namespace {
std::vector<GradTile> grad_tiles(const LoraSet& lora, std::int64_t in) {
  std::vector<GradTile> tiles;
  for (const LoraTile& from : forward_tiles(lora, in)) {
    tiles.push_back({from.rows, from.stride, from.rank, from.inner_column, from.factor, from.module, from.threshold, from.masked});
  }
  return tiles;
}
}  // namespace

bool lora_add_input_grad_swiglu(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences,
                                const Tensor& gate, const Tensor& up, const Tensor& dgate, const Tensor& dup, cudaStream_t stream) {
  const std::vector<GradTile> tiles = grad_tiles(lora, dx.cols);
  bool suits = dx.dtype != DType::f32 && dx.rows > 0 && (tiles.size() == 1 || tiles.size() == 2);
  for (const Tensor& tensor : {dx, gate, up, dgate, dup}) suits = suits && eights(tensor);
  if (!suits) return false;
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  const dim3 grid(blocks_for(dx.cols, 256), blocks_for(dx.rows, 16 * kGradSteps));
  with_float(dx.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      const SwiGluGrad<T> swiglu{gate.as<T>(), up.as<T>(), dgate.as<T>(), dup.as<T>(), gate.stride, up.stride, dgate.stride, dup.stride};
      const auto launch = [&]<int NT>() {
        GradTiles<NT> set;
        std::copy_n(tiles.begin(), NT, set.tile);
        add_input_grad_tiles_kernel<T, NT, true><<<grid, 256, 0, stream>>>(dx.as<T>(), dx.stride, dx.rows, dx.cols, inner_grad.as<float>(),
                                                                           inner_grad.stride, set, mask, swiglu);
      };
      if (tiles.size() == 1)
        launch.template operator()<1>();
      else
        launch.template operator()<2>();
    }
  });
  check_launch("lora_add_input_grad_swiglu");
  return true;
}

void lora_add_input_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences,
                         cudaStream_t stream) {
  if (dx.rows == 0) return;
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  const std::vector<GradTile> tiles = grad_tiles(lora, dx.cols);
  with_float(dx.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      if (eights(dx)) {
        const dim3 grid(blocks_for(dx.cols, 256), blocks_for(dx.rows, 16 * kGradSteps));
        const auto launch = [&]<int NT>(std::size_t first) {
          GradTiles<NT> set;
          std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(first), NT, set.tile);
          add_input_grad_tiles_kernel<T, NT, false><<<grid, 256, 0, stream>>>(
              dx.as<T>(), dx.stride, dx.rows, dx.cols, inner_grad.as<float>(), inner_grad.stride, set, mask, SwiGluGrad<T>{});
        };
        std::size_t first = 0;
        for (; first + 3 <= tiles.size(); first += 3) launch.template operator()<3>(first);
        if (tiles.size() - first == 2) launch.template operator()<2>(first);
        if (tiles.size() - first == 1) launch.template operator()<1>(first);
        return;
      }
    }
    for (const GradTile& tile : tiles) {
      const bool wide = eights(dx) && tile.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
      const auto launch = [&]<int V>() {
        const dim3 grid(blocks_for(dx.cols, 256 * V), blocks_for(dx.rows, kGradTokens));
        add_input_grad_kernel<V, T><<<grid, 256, 0, stream>>>(dx.as<T>(), dx.stride, dx.rows, dx.cols,
                                                              inner_grad.as<float>(), inner_grad.stride, tile, mask);
      };
      if (wide)
        launch.template operator()<8>();
      else
        launch.template operator()<1>();
    }
  });
  check_launch("lora_add_input_grad");
}

namespace {

/// grad[r, c] += factor * sum_t left[t, r] * right[t, c], for eight ranks and a matrix's columns.
struct GradJob {
  const void* right;
  std::int64_t right_stride, columns;
  const float* left;
  std::int64_t left_stride;
  float* grad;
  std::int64_t grad_stride;
  int rank;
  float factor;
  std::uint32_t module, threshold;
  std::int64_t mask_in;  // 0: not masked
  int first_strip;
  bool wide;
};
constexpr int kMaxJobs = 8;
struct GradJobs {
  GradJob job[kMaxJobs];
  int count, strips;
};

constexpr int kStripColumns = 256;
constexpr int kGradWarps = 8;

template <class T>
__global__ void __launch_bounds__(kGradWarps * 32) weight_grad_kernel(GradJobs jobs, std::int64_t tokens,
                                                                      std::int64_t tokens_per_split, Mask mask,
                                                                      float* partial, std::uint32_t* counters) {
  __shared__ float sums[kGradWarps][4][kStripColumns];
  __shared__ bool last;
  const int strip = static_cast<int>(blockIdx.x);
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_strip <= strip) ++which;
  const GradJob& job = jobs.job[which];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t strip_column = static_cast<std::int64_t>(strip - job.first_strip) * kStripColumns;
  const std::int64_t c = strip_column + lane * 8;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  const T* right = static_cast<const T*>(job.right);
  Mask own = mask;
  own.in = job.mask_in;

  float acc[8][8] = {};
  if (c < job.columns) {
#pragma unroll 2
    for (std::int64_t t = begin + warp; t < end; t += kGradWarps) {
      Floats<8> x;
      const T* at = right + t * job.right_stride + c;
      std::uint32_t keep = 0xFFu;
      if (job.wide) {
        x = load<8>(at);
        if (job.mask_in != 0) keep = keep_bits(own, t, c, job.module, job.threshold);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x.v[i] = c + i < job.columns ? widen(at[i]) : 0.0f;
          if (job.mask_in != 0 && c + i < job.columns && !keep_one(own, t, c + i, job.module, job.threshold)) keep &= ~(1u << i);
        }
      }
      const float* left = job.left + t * job.left_stride;
#pragma unroll
      for (int i = 0; i < 8; ++i) x.v[i] = keep >> i & 1u ? x.v[i] : 0.0f;
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const float l = r < job.rank ? left[r] : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) acc[r][i] += l * x.v[i];
      }
    }
  }
  const std::int64_t strips = jobs.strips;
  float* mine = partial + (static_cast<std::int64_t>(blockIdx.y) * strips + strip) * (8 * kStripColumns);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        *reinterpret_cast<float4*>(&sums[warp][r][lane * 8 + i]) =
            make_float4(acc[half * 4 + r][i], acc[half * 4 + r][i + 1], acc[half * 4 + r][i + 2], acc[half * 4 + r][i + 3]);
      }
    }
    __syncthreads();
    for (int item = static_cast<int>(threadIdx.x); item < 4 * kStripColumns; item += kGradWarps * 32) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kGradWarps; ++w) total += sums[w][item / kStripColumns][item % kStripColumns];
      mine[half * 4 * kStripColumns + item] = total;
    }
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&counters[strip], 1u) == gridDim.y - 1;
    if (last) counters[strip] = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int item = static_cast<int>(threadIdx.x); item < 8 * kStripColumns; item += kGradWarps * 32) {
    const int r = item / kStripColumns;
    const std::int64_t column = strip_column + item % kStripColumns;
    if (r >= job.rank || column >= job.columns) continue;
    float total = 0;
    for (unsigned s = 0; s < gridDim.y; ++s) {
      total += __ldcg(partial + (static_cast<std::int64_t>(s) * strips + strip) * (8 * kStripColumns) + item);
    }
    job.grad[r * job.grad_stride + column] += total * job.factor;
  }
}

// On tensor cores: rows 0-7 of the left operand are the ranks of a left matrix rounded to 16 bits, rows 8-15 what the
// rounding left over; 16 tokens are the inner dimension. A lane holds eight neighbouring columns of four tokens (the eight
// elements of one call of dropout's generator), so product j of eight covers columns j, 8 + j, 16 + j, …
constexpr int kTileColumns = 64;

template <class T>
__global__ void __launch_bounds__(kGradWarps * 32) weight_grad_tiles_kernel(GradJobs jobs, std::int64_t tokens,
                                                                            std::int64_t tokens_per_split, Mask mask,
                                                                            float* partial, std::uint32_t* counters) {
  __shared__ float sums[kGradWarps][8][kTileColumns + 4];
  __shared__ bool last;
  const int strip = static_cast<int>(blockIdx.x);
  int which = 0;
  while (which + 1 < jobs.count && jobs.job[which + 1].first_strip <= strip) ++which;
  const GradJob& job = jobs.job[which];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip_column = static_cast<std::int64_t>(strip - job.first_strip) * kTileColumns;
  const std::int64_t c = strip_column + g * 8;
  const bool in = c < job.columns;
  const std::int64_t begin = blockIdx.y * tokens_per_split, end = min(tokens, begin + tokens_per_split);
  const T* right = static_cast<const T*>(job.right) + c;
  Mask own = mask;
  own.in = job.mask_in;
  const bool has_rank = g < job.rank;

  float acc[8][4] = {};
  const uint4 none = make_uint4(0, 0, 0, 0);
  const auto token = [&](std::int64_t t, int i) { return t + 2 * q + (i & 1) + (i >> 1) * 8; };
  const auto read = [&](std::int64_t t, uint4 (&x)[4], float (&l)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t at = token(t, i);
      x[i] = in && at < end ? *reinterpret_cast<const uint4*>(right + at * job.right_stride) : none;
      l[i] = has_rank && at < end ? __ldg(job.left + at * job.left_stride + g) : 0.0f;
    }
  };
  uint4 next[4];
  float next_left[4];
  read(begin + warp * 16, next, next_left);
  for (std::int64_t t = begin + warp * 16; t < end; t += kGradWarps * 16) {
    uint4 x[4];
    float left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = next[i];
      left[i] = next_left[i];
    }
    read(t + kGradWarps * 16, next, next_left);
    if (job.mask_in != 0 && in) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t at = token(t, i);
        if (at < end) x[i] = masked<T>(x[i], keep_bits(own, at, c, job.module, job.threshold));
      }
    }
    const std::uint32_t a0 = pack2(T{}, left[0], left[1]), a2 = pack2(T{}, left[2], left[3]);
    const float2 h0 = unpack2(T{}, a0), h2 = unpack2(T{}, a2);
    const std::uint32_t a1 = pack2(T{}, left[0] - h0.x, left[1] - h0.y), a3 = pack2(T{}, left[2] - h2.x, left[3] - h2.y);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const auto word = [&](int i) { return j / 2 == 0 ? x[i].x : j / 2 == 1 ? x[i].y : j / 2 == 2 ? x[i].z : x[i].w; };
      constexpr std::uint32_t kLow = 0x5410, kHigh = 0x7632;
      const std::uint32_t b0 = __byte_perm(word(0), word(1), j % 2 == 0 ? kLow : kHigh);
      const std::uint32_t b1 = __byte_perm(word(2), word(3), j % 2 == 0 ? kLow : kHigh);
      mma(T{}, acc[j], a0, a1, a2, a3, b0, b1);
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    sums[warp][g][2 * q * 8 + j] = acc[j][0] + acc[j][2];
    sums[warp][g][(2 * q + 1) * 8 + j] = acc[j][1] + acc[j][3];
  }
  __syncthreads();
  const std::int64_t strips = jobs.strips;
  constexpr int kItems = 8 * kTileColumns;
  float* mine = partial + (static_cast<std::int64_t>(blockIdx.y) * strips + strip) * kItems;
  const bool splits = gridDim.y > 1;
  const auto of_warps = [&](int item) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kGradWarps; ++w) total += sums[w][item / kTileColumns][item % kTileColumns];
    return total;
  };
  if (splits) {
    for (int item = static_cast<int>(threadIdx.x); item < kItems; item += kGradWarps * 32) mine[item] = of_warps(item);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(&counters[strip], 1u) == gridDim.y - 1;
      if (last) counters[strip] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
  }
  for (int item = static_cast<int>(threadIdx.x); item < kItems; item += kGradWarps * 32) {
    const int r = item / kTileColumns;
    const std::int64_t column = strip_column + item % kTileColumns;
    if (r >= job.rank || column >= job.columns) continue;
    float total = 0;
    if (splits) {
      for (unsigned s = 0; s < gridDim.y; ++s) {
        total += __ldcg(partial + (static_cast<std::int64_t>(s) * strips + strip) * kItems + item);
      }
    } else {
      total = of_warps(item);
    }
    job.grad[r * job.grad_stride + column] += total * job.factor;
  }
}

std::vector<GradJob> grad_jobs(const LoraWeightGrad& call) {
  std::vector<GradJob> jobs;
  const auto add = [&](const Tensor& right, const Tensor& left, std::int64_t left_column, const Tensor& grad, float factor,
                       const LoraView& pair, bool masked) {
    for (std::int64_t r = 0; r < grad.rows; r += 8) {
      GradJob job{};
      job.right = right.data;
      job.right_stride = right.stride;
      job.columns = right.cols;
      job.left = left.as<float>() + left_column + r;
      job.left_stride = left.stride;
      job.grad = grad.as<float>() + r * grad.stride;
      job.grad_stride = grad.stride;
      job.rank = static_cast<int>(std::min<std::int64_t>(8, grad.rows - r));
      job.factor = factor;
      job.module = pair.module_id;
      job.threshold = dropout_threshold(pair.dropout);
      job.mask_in = masked ? right.cols : 0;
      job.wide = eights(right);
      jobs.push_back(job);
    }
  };
  for (const LoraView& pair : call.lora.pairs) {
    const bool drops = call.lora.dropout != nullptr && pair.dropout > 0;
    add(call.x, call.inner_grad, pair.first_inner, pair.grad_a, drops ? 1.0f / (1.0f - pair.dropout) : 1.0f, pair, drops);
    add(call.dy.columns(pair.first_column, pair.bt.cols), call.inner, pair.first_inner, pair.grad_bt, pair.scale, pair, false);
  }
  return jobs;
}

/// Columns of a strip: of the kernel on tensor cores, or of the plain one.
std::int64_t strip_columns(bool tiles) { return tiles ? kTileColumns : kStripColumns; }

bool on_tiles(const LoraWeightGrad& call, const std::vector<GradJob>& jobs) {
  return call.x.dtype != DType::f32 && std::all_of(jobs.begin(), jobs.end(), [](const GradJob& job) { return job.wide; });
}

/// Splits of the tokens: enough blocks for the chip, at least 128 tokens each. Depends on shapes alone.
std::int64_t splits_of(std::int64_t strips, std::int64_t tokens) {
  const std::int64_t wanted = (800 + strips - 1) / strips;
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, tokens / 128));
}

/// Jobs are launched kMaxJobs at a time.
template <class F>
void in_launches(const std::vector<GradJob>& jobs, std::int64_t columns, std::int64_t tokens, F&& f) {
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    GradJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      set.job[i].first_strip = set.strips;
      set.strips += static_cast<int>((set.job[i].columns + columns - 1) / columns);
    }
    f(set, splits_of(set.strips, tokens));
  }
}

}  // namespace

std::size_t lora_weight_grad_bytes(const LoraWeightGrad& call) {
  std::size_t bytes = 0;
  const std::vector<GradJob> jobs = grad_jobs(call);
  const std::int64_t columns = strip_columns(on_tiles(call, jobs));
  in_launches(jobs, columns, call.x.rows, [&](const GradJobs& set, std::int64_t splits) {
    bytes = std::max(bytes, static_cast<std::size_t>(splits * set.strips * 8 * columns) * sizeof(float));
  });
  return bytes;
}

void lora_weight_grad(const LoraWeightGrad& call, const LoraScratch& scratch, cudaStream_t stream) {
  if (call.x.rows == 0) return;
  const Mask mask = mask_of(call.lora.dropout, call.sequences, call.x.cols);
  const std::vector<GradJob> jobs = grad_jobs(call);
  const bool tiles = on_tiles(call, jobs);
  in_launches(jobs, strip_columns(tiles), call.x.rows, [&](const GradJobs& set, std::int64_t splits) {
    if (static_cast<std::size_t>(set.strips) > kLoraCounters) throw Error(kTensorMismatch, "a product of too many columns");
    const std::int64_t per_split = ((call.x.rows + splits - 1) / splits + 15) / 16 * 16;
    const dim3 grid(static_cast<unsigned>(set.strips), blocks_for(call.x.rows, per_split));
    with_float(call.x.dtype, [&]<class T>(T) {
      float* partial = static_cast<float*>(scratch.partial);
      if constexpr (sizeof(T) == 2) {
        if (tiles) {
          weight_grad_tiles_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, call.x.rows, per_split, mask, partial, scratch.counters);
          return;
        }
      }
      weight_grad_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, call.x.rows, per_split, mask, partial, scratch.counters);
    });
    check_launch("lora_weight_grad");
  });
}

}  // namespace pipelora::cuda
