// LoRA's skinny products.
//
// lora_inner: a block takes 16 tokens, its warps share the columns; on 16-bit inputs tensor cores multiply x (exact) by the
// f32 rows split into two 16-bit numbers, so that the inner vectors keep f32's quality. The eight columns that a thread
// holds are the eight elements of one call of dropout's generator.
// lora_weight_grad: a thread keeps 8 ranks x 8 columns of the gradient in registers while it walks over tokens; partial
// sums of the token ranges are added in their order by the block that finishes last.
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
  const T* x;
  std::int64_t x_stride, tokens, cols;
  T* copy;
  std::int64_t copy_stride;
  float* inner;
  std::int64_t inner_stride;
  int tail_begin, tail_end;  // columns behind x that this launch fills beyond its own tiles, with zeros
  Mask mask;
};

constexpr int kInnerWarps = 8;
constexpr int kInnerTokens = 16;

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

template <class T, int NT>
__global__ void __launch_bounds__(kInnerWarps * 32) lora_inner_kernel(InnerCall<T> call, TileSet set) {
  __shared__ float sums[kInnerWarps][kInnerTokens][NT * 8];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kInnerTokens;
  const std::int64_t t0 = first + g, t1 = first + g + 8;
  const bool has0 = t0 < call.tokens, has1 = t1 < call.tokens;
  float acc[NT][4] = {};

  const uint4 none = make_uint4(0, 0, 0, 0);
#pragma unroll 2
  for (std::int64_t c = warp * 32 + q * 8; c - q * 8 < call.cols; c += kInnerWarps * 32) {
    const bool in = c < call.cols;
    const uint4 x0 = in && has0 ? *reinterpret_cast<const uint4*>(call.x + t0 * call.x_stride + c) : none;
    const uint4 x1 = in && has1 ? *reinterpret_cast<const uint4*>(call.x + t1 * call.x_stride + c) : none;
    if (call.copy != nullptr && in) {
      if (has0) *reinterpret_cast<uint4*>(call.copy + t0 * call.copy_stride + c) = x0;
      if (has1) *reinterpret_cast<uint4*>(call.copy + t1 * call.copy_stride + c) = x1;
    }
    uint4 d0 = x0, d1 = x1;
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const LoraTile& tile = set.tile[i];
      const std::int64_t base = c - q * 8;
      if (base + 32 <= tile.first_column || base >= tile.first_column + tile.columns) continue;
      if (!tile.same_mask) {
        d0 = x0;
        d1 = x1;
        if (tile.masked && in) {
          if (has0) d0 = masked<T>(x0, keep_bits(call.mask, t0, c, tile.module, tile.threshold));
          if (has1) d1 = masked<T>(x1, keep_bits(call.mask, t1, c, tile.module, tile.threshold));
        }
      }
      float4 b0 = make_float4(0, 0, 0, 0), b1 = b0;
      const std::int64_t at = c - tile.first_column;
      if (g < tile.rank && at >= 0 && at < tile.columns) {
        const float4* row = reinterpret_cast<const float4*>(tile.rows + g * tile.stride + at);
        b0 = row[0];
        b1 = row[1];
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
  for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * NT * 8; item += kInnerWarps * 32) {
    const int t = item / (NT * 8), j = item % (NT * 8);
    if (first + t >= call.tokens) continue;
    const LoraTile& tile = set.tile[j / 8];
    if (j % 8 >= tile.rank) continue;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kInnerWarps; ++w) total += sums[w][t][j];
    total *= tile.factor;
    const int column = tile.inner_column + j % 8;
    call.inner[(first + t) * call.inner_stride + column] = total;
    if (call.copy != nullptr) {
      call.copy[(first + t) * call.copy_stride + call.cols + column] = narrow<T>(total * tile.tail_factor);
    }
  }
  if (call.copy != nullptr) {
    const int width = call.tail_end - call.tail_begin;
    for (int item = static_cast<int>(threadIdx.x); item < kInnerTokens * width; item += kInnerWarps * 32) {
      const int t = item / width, j = call.tail_begin + item % width;
      if (first + t < call.tokens) call.copy[(first + t) * call.copy_stride + call.cols + j] = narrow<T>(0.0f);
    }
  }
}

// Any dtype and any alignment: a block a token, a warp a rank.
template <class T>
__global__ void lora_inner_plain_kernel(InnerCall<T> call, TileSet set) {
  const std::int64_t t = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const T* x = call.x + t * call.x_stride;
  T* copy = call.copy != nullptr ? call.copy + t * call.copy_stride : nullptr;
  if (copy != nullptr) {
    for (std::int64_t c = threadIdx.x; c < call.cols; c += blockDim.x) copy[c] = x[c];
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

void lora_inner(const Tensor& x, const std::vector<LoraTile>& tiles, const DropoutKey* dropout, const Sequences* sequences,
                const Tensor& inner, const Tensor& copy, std::int64_t tail, cudaStream_t stream) {
  if (x.rows == 0) return;
  const Mask mask = mask_of(dropout, sequences, x.cols);
  bool wide = x.dtype != DType::f32 && eights(x) && (!copy || eights(copy));
  for (const LoraTile& tile : tiles) {
    wide = wide && tile.first_column % 8 == 0 && tile.columns % 8 == 0 && tile.stride % 4 == 0 &&
           reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
  }
  for (std::size_t first = 0; first < tiles.size(); first += kMaxTiles) {
    TileSet set;
    set.count = static_cast<int>(std::min<std::size_t>(kMaxTiles, tiles.size() - first));
    std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(first), set.count, set.tile);
    set.tile[0].same_mask = false;
    with_float(x.dtype, [&]<class T>(T) {
      InnerCall<T> call{};
      call.x = x.as<T>();
      call.x_stride = x.stride;
      call.tokens = x.rows;
      call.cols = x.cols;
      call.copy = copy.as<T>();
      call.copy_stride = copy.stride;
      call.inner = inner.as<float>();
      call.inner_stride = inner.stride;
      if (first + kMaxTiles >= tiles.size()) {
        call.tail_begin = static_cast<int>(inner.cols);
        call.tail_end = static_cast<int>(tail);
      }
      call.mask = mask;
      if constexpr (sizeof(T) == 2) {
        if (wide) {
          const unsigned blocks = blocks_for(x.rows, kInnerTokens);
          const auto launch = [&]<int NT>() {
            lora_inner_kernel<T, NT><<<blocks, kInnerWarps * 32, 0, stream>>>(call, set);
          };
          switch (set.count) {
            case 1: return launch.template operator()<1>();
            case 2: return launch.template operator()<2>();
            case 3: return launch.template operator()<3>();
            case 4: return launch.template operator()<4>();
            default: return launch.template operator()<kMaxTiles>();
          }
        }
      }
      lora_inner_plain_kernel<T><<<static_cast<unsigned>(x.rows), 256, 0, stream>>>(call, set);
    });
    check_launch("lora_inner");
  }
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

template <class T>
__global__ void append_columns_kernel(T* weight, std::int64_t stride, std::int64_t out, std::int64_t in, AppendSet set,
                                      int tail) {
  const std::int64_t o = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (o >= out) return;
  T* to = weight + o * stride + in;
  for (int j = 0; j < tail; ++j) {
    float value = 0;
    for (int p = 0; p < set.count; ++p) {
      const AppendPair& pair = set.pair[p];
      const int r = j - pair.first_inner;
      const std::int64_t c = o - pair.first_column;
      if (r >= 0 && r < pair.rank && c >= 0 && c < pair.columns) value = pair.rows[r * pair.stride + c];
    }
    to[j] = narrow<T>(value);
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

void append_columns(const Tensor& weight, const LoraSet& lora, std::int64_t tail, cudaStream_t stream) {
  const AppendSet set = append_set(lora, true);
  with_float(weight.dtype, [&]<class T>(T) {
    append_columns_kernel<T><<<blocks_for(weight.rows, 128), 128, 0, stream>>>(weight.as<T>(), weight.stride, weight.rows,
                                                                              weight.cols, set, static_cast<int>(tail));
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

// V columns a thread, kGradTokens tokens a block.
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

}  // namespace

void lora_add_input_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences,
                         cudaStream_t stream) {
  if (dx.rows == 0) return;
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  for (const LoraTile& from : forward_tiles(lora, dx.cols)) {
    const GradTile tile{from.rows, from.stride, from.rank, from.inner_column, from.factor, from.module, from.threshold, from.masked};
    const bool wide = eights(dx) && tile.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
    with_float(dx.dtype, [&]<class T>(T) {
      const auto launch = [&]<int V>() {
        const dim3 grid(blocks_for(dx.cols, 256 * V), blocks_for(dx.rows, kGradTokens));
        add_input_grad_kernel<V, T><<<grid, 256, 0, stream>>>(dx.as<T>(), dx.stride, dx.rows, dx.cols,
                                                              inner_grad.as<float>(), inner_grad.stride, tile, mask);
      };
      if (wide)
        launch.template operator()<8>();
      else
        launch.template operator()<1>();
    });
    check_launch("lora_add_input_grad");
  }
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

std::int64_t strips_of(const GradJob& job) { return (job.columns + kStripColumns - 1) / kStripColumns; }

/// Splits of the tokens: enough blocks for the chip, at least 64 tokens each. Depends on shapes alone.
std::int64_t splits_of(std::int64_t strips, std::int64_t tokens) {
  const std::int64_t wanted = (512 + strips - 1) / strips;
  return std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, tokens / 64));
}

/// Jobs are launched kMaxJobs at a time.
template <class F>
void in_launches(const std::vector<GradJob>& jobs, std::int64_t tokens, F&& f) {
  for (std::size_t first = 0; first < jobs.size(); first += kMaxJobs) {
    GradJobs set{};
    set.count = static_cast<int>(std::min<std::size_t>(kMaxJobs, jobs.size() - first));
    for (int i = 0; i < set.count; ++i) {
      set.job[i] = jobs[first + static_cast<std::size_t>(i)];
      set.job[i].first_strip = set.strips;
      set.strips += static_cast<int>(strips_of(set.job[i]));
    }
    f(set, splits_of(set.strips, tokens));
  }
}

}  // namespace

std::size_t lora_weight_grad_bytes(const LoraWeightGrad& call) {
  std::size_t bytes = 0;
  in_launches(grad_jobs(call), call.x.rows, [&](const GradJobs& set, std::int64_t splits) {
    bytes = std::max(bytes, static_cast<std::size_t>(splits * set.strips) * 8 * kStripColumns * sizeof(float));
  });
  return bytes;
}

void lora_weight_grad(const LoraWeightGrad& call, void* partial, std::uint32_t* counters, cudaStream_t stream) {
  if (call.x.rows == 0) return;
  const Mask mask = mask_of(call.lora.dropout, call.sequences, call.x.cols);
  in_launches(grad_jobs(call), call.x.rows, [&](const GradJobs& set, std::int64_t splits) {
    if (static_cast<std::size_t>(set.strips) > kLoraCounters) throw Error(kTensorMismatch, "a product wider than 16 M columns");
    const std::int64_t per_split = (call.x.rows + splits - 1) / splits;
    const dim3 grid(static_cast<unsigned>(set.strips), blocks_for(call.x.rows, per_split));
    with_float(call.x.dtype, [&]<class T>(T) {
      weight_grad_kernel<T><<<grid, kGradWarps * 32, 0, stream>>>(set, call.x.rows, per_split, mask,
                                                                  static_cast<float*>(partial), counters);
    });
    check_launch("lora_weight_grad");
  });
}

}  // namespace pipelora::cuda
