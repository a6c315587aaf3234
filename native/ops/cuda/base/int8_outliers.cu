// LLM.int8()'s outlier columns: which they are, and their product in the compute dtype. How many there are is known to the GPU
// alone, so nothing here has a size that the host would have to wait for.
#include <algorithm>
#include <type_traits>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/base/int8.h"
#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;
constexpr float kPerUnit = 7.874015718698502e-3f;  // bitsandbytes' 1 / 127

template <class T>
__global__ void mark_outliers_kernel(const T* x, std::int64_t stride, std::int64_t tokens, std::int64_t in, float threshold,
                                     std::int32_t* flags) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= in) return;
  bool found = false;
  for (std::int64_t t = blockIdx.y; t < tokens; t += gridDim.y) found = found || fabsf(half_of(widen(x[t * stride + c]))) >= threshold;
  if (found) flags[c] = 1;
}

// One block: a scan over the flags in the order of the columns.
__global__ void list_outliers_kernel(const std::int32_t* flags, std::int64_t in, std::int32_t* columns, std::int32_t* count) {
  __shared__ int sums[1024];
  const int each = static_cast<int>((in + 1023) / 1024);
  const std::int64_t begin = static_cast<std::int64_t>(threadIdx.x) * each, end = min(in, begin + each);
  int own = 0;
  for (std::int64_t c = begin; c < end; ++c) own += flags[c] != 0;
  sums[threadIdx.x] = own;
  __syncthreads();
  for (int d = 1; d < 1024; d *= 2) {
    const int before = static_cast<int>(threadIdx.x) >= d ? sums[threadIdx.x - d] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  int at = sums[threadIdx.x] - own;
  for (std::int64_t c = begin; c < end; ++c)
    if (flags[c] != 0) columns[at++] = static_cast<std::int32_t>(c);
  if (threadIdx.x == 1023) *count = sums[1023];
}

// A block's 64 tokens by 64 outputs; outlier columns pass through shared memory 32 at a time.
constexpr int kTileRows = 64, kTileThreads = 128, kStep = 32, kRow = kStep + 8;

template <class T>
struct OutlierProduct {
  const T* x;
  std::int64_t x_stride, tokens;
  const std::int8_t* codes;
  std::int64_t codes_stride, out;
  const float* scales;
  const std::int32_t *columns, *count;
  T* y;
  std::int64_t y_stride;
};

template <class T>
__global__ void __launch_bounds__(kTileThreads) outlier_product_kernel(OutlierProduct<T> call) {
  const int count = *call.count;
  if (count == 0) return;
  __shared__ __align__(16) T left[kTileRows * kRow], right[kTileRows * kRow];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, g = thread % 32 / 4, quad = thread % 4;
  const std::int64_t t0 = static_cast<std::int64_t>(blockIdx.y) * kTileRows, o0 = static_cast<std::int64_t>(blockIdx.x) * kTileRows;
  float sums[8][4] = {};  // rows 16 warp + g and 8 below, columns 8 n + 2 quad and the next
  for (int k0 = 0; k0 < count; k0 += kStep) {
    const int k = k0 + thread % kStep;
    const std::int64_t column = k < count ? call.columns[k] : -1;
    __syncthreads();
    for (int row = thread / kStep; row < kTileRows; row += kTileThreads / kStep) {
      const std::int64_t t = t0 + row, o = o0 + row;
      left[row * kRow + thread % kStep] = column >= 0 && t < call.tokens ? call.x[t * call.x_stride + column] : narrow<T>(0.0f);
      right[row * kRow + thread % kStep] =
          narrow<T>(column >= 0 && o < call.out ? static_cast<float>(call.codes[o * call.codes_stride + column]) * call.scales[o] * kPerUnit : 0.0f);
    }
    __syncthreads();
    if constexpr (sizeof(T) == 2) {
      const auto pair = [](const T* at) { return *reinterpret_cast<const std::uint32_t*>(at); };
#pragma unroll
      for (int kk = 0; kk < kStep; kk += 16) {
        const T* a = left + (warp * 16 + g) * kRow + kk + quad * 2;
        const std::uint32_t a0 = pair(a), a1 = pair(a + 8 * kRow), a2 = pair(a + 8), a3 = pair(a + 8 * kRow + 8);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const T* b = right + (n * 8 + g) * kRow + kk + quad * 2;
          mma(T{}, sums[n], a0, a1, a2, a3, pair(b), pair(b + 8));
        }
      }
    } else {
      for (int i = 0; i < kStep; ++i) {
        const float a[2] = {left[(warp * 16 + g) * kRow + i], left[(warp * 16 + g + 8) * kRow + i]};
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[n][j] = fmaf(a[j / 2], right[(n * 8 + quad * 2 + j % 2) * kRow + i], sums[n][j]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t t = t0 + warp * 16 + g + j / 2 * 8, o = o0 + n * 8 + quad * 2 + j % 2;
      if (t >= call.tokens || o >= call.out) continue;
      T& y = call.y[t * call.y_stride + o];
      y = narrow<T>(widen(y) + sums[n][j]);
    }
  }
}

}  // namespace

void find_outliers(const Tensor& x, float threshold, std::int32_t* flags, std::int32_t* columns, std::int32_t* count,
                   cudaStream_t stream) {
  check(cudaMemsetAsync(flags, 0, static_cast<std::size_t>(x.cols) * sizeof *flags, stream), "outlier columns");
  with_float(x.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(x.cols, kThreads), static_cast<unsigned>(std::min<std::int64_t>(64, x.rows)));
    mark_outliers_kernel<T><<<grid, kThreads, 0, stream>>>(x.as<T>(), x.stride, x.rows, x.cols, threshold, flags);
  });
  list_outliers_kernel<<<1, 1024, 0, stream>>>(flags, x.cols, columns, count);
  check_launch("find_outliers");
}

void add_outlier_product(const Tensor& x, const Tensor& codes, const float* scales, const std::int32_t* columns, const std::int32_t* count,
                         const Tensor& y, cudaStream_t stream) {
  with_float(x.dtype, [&]<class T>(T) {
    const OutlierProduct<T> call{x.as<T>(), x.stride, x.rows, codes.as<std::int8_t>(), codes.stride, y.cols, scales, columns, count, y.as<T>(), y.stride};
    const dim3 grid(blocks_for(y.cols, kTileRows), blocks_for(x.rows, kTileRows));
    outlier_product_kernel<T><<<grid, kTileThreads, 0, stream>>>(call);
  });
  check_launch("outlier columns' product");
}

}  // namespace pipelora::cuda
