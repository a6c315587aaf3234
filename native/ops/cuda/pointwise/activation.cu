// The gate's activation times up, one pass over memory, and its backward pass.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/activation.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

template <class A, int V, class T>
__global__ void swiglu_forward_kernel(const T* gate, std::int64_t gate_stride, const T* up, std::int64_t up_stride, T* act,
                                      std::int64_t act_stride, std::int64_t rows, std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const Floats<V> g = load<V>(gate + r * gate_stride + c * V), u = load<V>(up + r * up_stride + c * V);
    Floats<V> a;
#pragma unroll
    for (int i = 0; i < V; ++i) a.v[i] = A::value(g.v[i]) * u.v[i];
    store<V>(act + r * act_stride + c * V, a);
  }
}

// act = f(g) u; dup = dact f(g); dgate = dact u f'(g).
template <class A, int V, class T>
__global__ void swiglu_backward_kernel(const T* gate, std::int64_t gate_stride, const T* up, std::int64_t up_stride,
                                       const T* dact, std::int64_t dact_stride, T* dgate, std::int64_t dgate_stride, T* dup,
                                       std::int64_t dup_stride, T* act, std::int64_t act_stride, std::int64_t rows,
                                       std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const Floats<V> g = load<V>(gate + r * gate_stride + c * V), u = load<V>(up + r * up_stride + c * V);
    const Floats<V> d = load<V>(dact + r * dact_stride + c * V);
    Floats<V> a, dg, du;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float slope;
      const float value = A::with_slope(g.v[i], slope);
      a.v[i] = value * u.v[i];
      du.v[i] = d.v[i] * value;
      dg.v[i] = d.v[i] * u.v[i] * slope;
    }
    store<V>(dgate + r * dgate_stride + c * V, dg);
    store<V>(dup + r * dup_stride + c * V, du);
    if (act != nullptr) store<V>(act + r * act_stride + c * V, a);
  }
}

}  // namespace

void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation, cudaStream_t stream) {
  if (gate.rows == 0) return;
  const bool wide = eights(gate) && eights(up) && eights(act);
  with_activation(activation, [&]<class A>(A) {
    with_float(gate.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      swiglu_forward_kernel<A, V, T><<<row_grid(gate.rows, gate.cols, V), kRowThreads, 0, stream>>>(
          gate.as<T>(), gate.stride, up.as<T>(), up.stride, act.as<T>(), act.stride, gate.rows, gate.cols / V);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
    });
  });
  check_launch("swiglu_forward");
}

void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                     const Tensor& act, Activation activation, cudaStream_t stream) {
  if (gate.rows == 0) return;
  const bool wide = eights(gate) && eights(up) && eights(dact) && eights(dgate) && eights(dup) && (!act || eights(act));
  with_activation(activation, [&]<class A>(A) {
    with_float(gate.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      swiglu_backward_kernel<A, V, T><<<row_grid(gate.rows, gate.cols, V), kRowThreads, 0, stream>>>(
          gate.as<T>(), gate.stride, up.as<T>(), up.stride, dact.as<T>(), dact.stride, dgate.as<T>(), dgate.stride,
          dup.as<T>(), dup.stride, act.as<T>(), act.stride, gate.rows, gate.cols / V);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
    });
  });
  check_launch("swiglu_backward");
}

}  // namespace pipelora::cuda
