// Gates on heads: y = rmsnorm(x) weight silu(gate), or x sigmoid(gate). One warp a head.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

__device__ inline float exact_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  __device__ T* at(std::int64_t t, std::int64_t c) const { return data + t * stride + c; }
};
template <class T>
Rows<T> rows_of(const Tensor& tensor) {
  return {tensor.as<T>(), tensor.stride};
}

/// The head of this warp, false beyond the last.
__device__ inline bool head_place(std::int64_t heads, std::int64_t rows, std::int64_t head_dim, std::int64_t& t, std::int64_t& first) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  t = item / heads;
  first = item % heads * head_dim;
  return t < rows;
}

template <class T>
__device__ inline float inverse_rms(const T* x, std::int64_t head_dim, float eps) {
  float squares = 0;
  for (std::int64_t c = threadIdx.x % 32; c < head_dim; c += 32) squares += widen(x[c]) * widen(x[c]);
  return rsqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
}

template <class T>
__global__ void forward_kernel(Rows<T> x, Rows<T> gate, const float* weight, float eps, Rows<T> y, std::int64_t heads, std::int64_t rows, std::int64_t head_dim) {
  std::int64_t t, first;
  if (!head_place(heads, rows, head_dim, t, first)) return;
  const T *in = x.at(t, first), *g = gate.at(t, first);
  T* out = y.at(t, first);
  const float r = weight != nullptr ? inverse_rms(in, head_dim, eps) : 1.0f;
  for (std::int64_t c = threadIdx.x % 32; c < head_dim; c += 32) {
    const float z = widen(g[c]), share = exact_sigmoid(z);
    out[c] = narrow<T>(weight != nullptr ? widen(in[c]) * r * weight[c] * z * share : widen(in[c]) * share);
  }
}

// With u = w dy s(g): dx = r u - x r³ mean(u x), dgate = dy r w x s'(g). Without a norm r = w = 1 and dx = u.
template <class T>
__global__ void backward_kernel(Rows<T> x, Rows<T> gate, const float* weight, float eps, Rows<T> dy, Rows<T> dx, Rows<T> dgate, std::int64_t heads, std::int64_t rows,
                                std::int64_t head_dim) {
  std::int64_t t, first;
  if (!head_place(heads, rows, head_dim, t, first)) return;
  const T *in = x.at(t, first), *g = gate.at(t, first), *grad = dy.at(t, first);
  T *to = dx.at(t, first), *to_gate = dgate.at(t, first);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (weight == nullptr) {
    for (std::int64_t c = lane; c < head_dim; c += 32) {
      const float share = exact_sigmoid(widen(g[c])), d = widen(grad[c]);
      to_gate[c] = narrow<T>(d * widen(in[c]) * share * (1.0f - share));
      to[c] = narrow<T>(d * share);
    }
    return;
  }
  const float r = inverse_rms(in, head_dim, eps);
  float along = 0;
  for (std::int64_t c = lane; c < head_dim; c += 32) {
    const float z = widen(g[c]);
    along += weight[c] * widen(grad[c]) * z * exact_sigmoid(z) * widen(in[c]);
  }
  const float pull = r * r * r * warp_sum(along) / static_cast<float>(head_dim);
  for (std::int64_t c = lane; c < head_dim; c += 32) {
    const float z = widen(g[c]), share = exact_sigmoid(z), d = widen(grad[c]), v = widen(in[c]);
    to_gate[c] = narrow<T>(d * r * weight[c] * v * share * (1.0f + z * (1.0f - share)));
    to[c] = narrow<T>(r * weight[c] * d * z * share - v * pull);
  }
}

unsigned blocks_of(std::int64_t heads, std::int64_t rows) { return static_cast<unsigned>((heads * rows + kWarps - 1) / kWarps); }

}  // namespace

void head_gate_forward(const HeadGate& call, cudaStream_t stream) {
  const std::int64_t heads = call.x.cols / call.head_dim;
  with_float(call.x.dtype, [&]<class T>(T) {
    forward_kernel<T><<<blocks_of(heads, call.x.rows), kThreads, 0, stream>>>(rows_of<T>(call.x), rows_of<T>(call.gate), call.weight.as<float>(), call.rule.eps,
                                                                            rows_of<T>(call.y), heads, call.x.rows, call.head_dim);
  });
  check_launch("head_gate_forward");
}

void head_gate_backward(const HeadGateBackward& call, cudaStream_t stream) {
  const std::int64_t heads = call.x.cols / call.head_dim;
  with_float(call.x.dtype, [&]<class T>(T) {
    backward_kernel<T><<<blocks_of(heads, call.x.rows), kThreads, 0, stream>>>(rows_of<T>(call.x), rows_of<T>(call.gate), call.weight.as<float>(), call.rule.eps,
                                                                             rows_of<T>(call.dy), rows_of<T>(call.dx), rows_of<T>(call.dgate), heads, call.x.rows,
                                                                             call.head_dim);
  });
  check_launch("head_gate_backward");
}

}  // namespace pipelora::cuda
