// The gradient that LoRA adds to a product's input, alone or with SwiGLU's backward behind it.
#include <algorithm>

#include "ops/cuda/lora.h"
#include "ops/cuda/lora_device.cuh"
#include "ops/cuda/mma.cuh"

namespace pipelora::cuda {

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
  __shared__ __align__(16) float left[kGradTokens][8];
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
      split2<T>(a, b, high[i][j], low[i][j]);
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

}  // namespace pipelora::cuda
