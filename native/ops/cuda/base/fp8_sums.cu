#include "ops/cuda/base/fp8.h"
#include "ops/cuda/device/alignment.h"
#include "ops/cuda/device/common.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

template <int V, class T, class C>
__global__ void __launch_bounds__(kThreads) scale_sums_kernel(ScaledSums call, const T* sums, const C* c, const T* bias, T* d, std::int64_t pieces) {
  const std::int64_t p = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= pieces) return;
  const std::int64_t column = p * V;
  Floats<V> behind{};
  if (bias != nullptr) behind = load<V>(bias + column);
  for (std::int64_t row = blockIdx.y; row < call.d.rows; row += gridDim.y) {
    const float of_row = call.factor * call.row_scales[row];
    const Floats<V> from = load<V>(sums + row * call.sums.stride + column);
    Floats<V> added{};
    if (c != nullptr) added = load<V>(c + row * call.c.stride + column);
    Floats<V> out;
#pragma unroll
    for (int i = 0; i < V; ++i) out.v[i] = from.v[i] * (of_row * call.column_scales[column + i]) + added.v[i] + behind.v[i];
    store<V>(d + row * call.d.stride + column, out);
  }
}

}  // namespace

void fp8_scale_sums(const ScaledSums& call, cudaStream_t stream) {
  if (call.d.rows == 0) return;
  const Tensor bias(const_cast<void*>(call.bias), call.d.dtype, 1, call.d.cols);
  const bool eight = eights(call.sums) && eights(call.d) && eights(bias) && (!call.c || eights(call.c));
  const std::int64_t pieces = eight ? call.d.cols / 8 : call.d.cols;
  const dim3 grid(blocks_for(pieces, kThreads), static_cast<unsigned>(call.d.rows < 4096 ? call.d.rows : 4096));
  with_float(call.d.dtype, [&]<class T>(T) {
    with_float(call.c ? call.c.dtype : call.d.dtype, [&]<class C>(C) {
      const auto kernel = eight ? scale_sums_kernel<8, T, C> : scale_sums_kernel<1, T, C>;
      kernel<<<grid, kThreads, 0, stream>>>(call, call.sums.as<T>(), call.c ? call.c.as<C>() : nullptr, static_cast<const T*>(call.bias), call.d.as<T>(), pieces);
    });
  });
  check_launch("sums of a product in e4m3");
}

}  // namespace pipelora::cuda
