// LLM.int8() (Dettmers et al. 2022) with the rounding of bitsandbytes 0.50.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/base/int8.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;
constexpr float kPerSquare = 6.200012e-05f;  // bitsandbytes' 1 / 127², rounded there to seven digits

using cuda::half_of;
__device__ inline float half_of(float x, float) { return half_of(x); }
__device__ inline float half_of(float x, f16) { return half_of(x); }
__device__ inline float half_of(float x, bf16) { return half_of(__bfloat162float(__float2bfloat16_rn(x))); }

__device__ inline float code_scale(float absmax) {
  if (absmax < 1.17549435e-38f) return 0.0f;
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(absmax));
  return __fmul_rn(127.0f, inverse);
}
__device__ inline std::int8_t code_of(float x, float scale) {
  return static_cast<std::int8_t>(__float2int_rn(__fmul_rn(x, scale)));
}

__device__ inline float block_max(float x, float* shared) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float largest = 0;
  for (int w = 0; w < kThreads / 32; ++w) largest = fmaxf(largest, shared[w]);
  __syncthreads();
  return largest;
}

template <class T, class As>
__global__ void quantise_weight8_kernel(const T* source, std::int64_t stride, std::int64_t in, std::int8_t* codes,
                                        std::int64_t codes_stride, float* scales, std::int64_t base, unsigned long long* bad) {
  __shared__ float shared[kThreads / 32];
  const std::int64_t row = blockIdx.x;
  float largest = 0;
  for (std::int64_t c = threadIdx.x; c < in; c += kThreads) {
    const float v = half_of(widen(source[row * stride + c]), As{});
    if (!isfinite(v)) atomicMin(bad, static_cast<unsigned long long>(base + row * in + c));
    largest = fmaxf(largest, fabsf(v));
  }
  largest = block_max(largest, shared);
  if (threadIdx.x == 0) scales[row] = largest;
  const float scale = code_scale(largest);
  for (std::int64_t c = threadIdx.x; c < codes_stride; c += kThreads) {
    codes[row * codes_stride + c] = c < in ? code_of(half_of(widen(source[row * stride + c]), As{}), scale) : 0;
  }
}

template <int V, class T>
__global__ void dequantise8_kernel(const std::int8_t* codes, std::int64_t codes_stride, const float* scales, T* to,
                                   std::int64_t stride, std::int64_t rows, std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const float scale = scales[r] * (1.0f / 127.0f);
    std::int8_t own[V];
    if constexpr (V == 8)
      *reinterpret_cast<int2*>(own) = *reinterpret_cast<const int2*>(codes + r * codes_stride + c * V);
    else
      own[0] = codes[r * codes_stride + c];
    Floats<V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) out.v[i] = static_cast<float>(own[i]) * scale;
    store<V>(to + r * stride + c * V, out);
  }
}

template <class T>
__global__ void quantise_rows_kernel(const T* x, std::int64_t stride, std::int64_t in, float threshold, const std::int32_t* flags,
                                     std::int8_t* codes, std::int64_t codes_stride, float* absmax) {
  __shared__ float shared[kThreads / 32];
  __shared__ int broken;
  const std::int64_t row = blockIdx.x;
  if (threadIdx.x == 0) broken = 0;
  __syncthreads();
  float largest = 0;
  bool bad = false;
  for (std::int64_t c = threadIdx.x; c < in; c += kThreads) {
    const float v = fabsf(half_of(widen(x[row * stride + c])));
    bad = bad || !isfinite(v);
    if (!(threshold > 0.0f && v >= threshold)) largest = fmaxf(largest, v);
  }
  if (bad && !(threshold > 0.0f)) broken = 1;
  bool nan = false;
  for (std::int64_t c = threadIdx.x; c < in; c += kThreads) nan = nan || isnan(widen(x[row * stride + c]));
  if (nan) broken = 1;
  largest = block_max(largest, shared);
  const bool unusable = broken != 0;
  if (threadIdx.x == 0) absmax[row] = unusable ? NAN : largest;
  const float scale = code_scale(largest);
  for (std::int64_t c = threadIdx.x; c < codes_stride; c += kThreads) {
    std::int8_t code = 0;
    if (c < in && !unusable && (flags == nullptr || flags[c] == 0)) {
      const float v = half_of(widen(x[row * stride + c]));
      if (!(threshold > 0.0f && fabsf(v) >= threshold)) code = code_of(v, scale);
    }
    codes[row * codes_stride + c] = code;
  }
}

constexpr int kFinishPairs = 8, kFinishTokens = 8;
struct FinishPair {
  const float* bt;
  std::int64_t stride, first_column, columns;
  int rank, first_inner;
  float scale;
};
struct FinishSet {
  FinishPair pair[kFinishPairs];
  int count;
};

// Four columns of eight tokens a thread.
template <class T>
__global__ void __launch_bounds__(kThreads) finish_int8_kernel(const std::int32_t* sums, std::int64_t sums_stride, const float* absmax,
                                                               const float* scales, const T* bias, const T* residual,
                                                               std::int64_t residual_stride, T* y, std::int64_t y_stride,
                                                               std::int64_t tokens, std::int64_t out, const float* inner,
                                                               std::int64_t inner_stride, FinishSet set) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  if (first >= out) return;
  float b[8][4] = {}, scale[4], add[4];
  const float* left = nullptr;
  int rank = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t o = first + i;
    scale[i] = o < out ? scales[o] : 0.0f;
    add[i] = bias != nullptr && o < out ? widen(bias[o]) : 0.0f;
  }
  for (int p = 0; p < set.count; ++p) {
    const FinishPair& pair = set.pair[p];
    const std::int64_t c = first - pair.first_column;
    if (c < 0 || c >= pair.columns) continue;  // pairs begin at multiples of four
    left = inner + pair.first_inner;
    rank = pair.rank;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (r < rank && c + i < pair.columns) b[r][i] = pair.bt[r * pair.stride + c + i] * pair.scale;
    }
  }
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * kFinishTokens;
  for (std::int64_t t = begin; t < min(tokens, begin + kFinishTokens); ++t) {
    const int4 sum = *reinterpret_cast<const int4*>(sums + t * sums_stride + first);
    const std::int32_t own[4] = {sum.x, sum.y, sum.z, sum.w};
    const float row_scale = absmax[t] * kPerSquare;
    float term[4] = {};
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const float l = r < rank ? left[t * inner_stride + r] : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) term[i] += l * b[r][i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int64_t o = first + i;
      if (o >= out) break;
      float value = half_of(static_cast<float>(own[i]) * row_scale * scale[i] + add[i]) + term[i];
      if (residual != nullptr) value += widen(residual[t * residual_stride + o]);
      y[t * y_stride + o] = narrow<T>(value);
    }
  }
}

}  // namespace

void quantise_weight8(const Tensor& source, DType as, const Tensor& codes, float* scales, std::int64_t base,
                      unsigned long long* bad, cudaStream_t stream) {
  with_float(source.dtype, [&]<class T>(T) {
    with_float(as, [&]<class As>(As) {
      quantise_weight8_kernel<T, As><<<static_cast<unsigned>(source.rows), kThreads, 0, stream>>>(
          source.as<T>(), source.stride, source.cols, codes.as<std::int8_t>(), codes.stride, scales, base, bad);
    });
  });
  check_launch("quantise_weight8");
}

void dequantise8(const Tensor& codes, const float* scales, const Tensor& to, cudaStream_t stream) {
  const unsigned rows = static_cast<unsigned>(std::min<std::int64_t>(65535, to.rows));
  with_float(to.dtype, [&]<class T>(T) {
    if (eights(to)) {
      dequantise8_kernel<8, T><<<dim3(blocks_for(to.cols / 8, kThreads), rows), kThreads, 0, stream>>>(
          codes.as<std::int8_t>(), codes.stride, scales, to.as<T>(), to.stride, to.rows, to.cols / 8);
    } else {
      dequantise8_kernel<1, T><<<dim3(blocks_for(to.cols, kThreads), rows), kThreads, 0, stream>>>(
          codes.as<std::int8_t>(), codes.stride, scales, to.as<T>(), to.stride, to.rows, to.cols);
    }
  });
  check_launch("dequantise8");
}

void quantise_rows(const Tensor& x, float threshold, const std::int32_t* flags, const Tensor& codes, float* absmax,
                   cudaStream_t stream) {
  with_float(x.dtype, [&]<class T>(T) {
    quantise_rows_kernel<T><<<static_cast<unsigned>(x.rows), kThreads, 0, stream>>>(
        x.as<T>(), x.stride, x.cols, threshold, flags, codes.as<std::int8_t>(), codes.stride, absmax);
  });
  check_launch("quantise_rows");
}

void finish_int8(const Int8Finish& call, cudaStream_t stream) {
  FinishSet set{};
  for (const LoraView& pair : call.lora.pairs) {
    set.pair[set.count++] = {pair.bt.as<float>(), pair.bt.stride, pair.first_column, pair.bt.cols, static_cast<int>(pair.bt.rows),
                             static_cast<int>(pair.first_inner), pair.scale};
  }
  with_float(call.y.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(call.y.cols, 4 * kThreads), blocks_for(call.y.rows, kFinishTokens));
    finish_int8_kernel<T><<<grid, kThreads, 0, stream>>>(call.sums.as<std::int32_t>(), call.sums.stride, call.absmax, call.scales,
                                                         static_cast<const T*>(call.bias), call.residual.as<T>(), call.residual.stride,
                                                         call.y.as<T>(), call.y.stride, call.y.rows, call.y.cols,
                                                         call.inner.as<float>(), call.inner.stride, set);
  });
  check_launch("finish_int8");
}

}  // namespace pipelora::cuda
