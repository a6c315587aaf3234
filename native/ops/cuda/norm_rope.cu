// RMSNorm, and the per-head norm and rotary embedding of q and k.
#include "ops/cuda/common.cuh"
#include "ops/cuda/dependent.cuh"
#include "ops/cuda/kernels.h"

namespace pipelora::cuda {

namespace {

int threads_for(std::int64_t pieces) {
  int threads = 32;
  while (threads < 512 && threads < pieces) threads *= 2;
  return threads;
}

// One block a row. The second read of x is served by the first-level cache.
template <int V, class T>
__global__ void rmsnorm_forward_kernel(const T* x, std::int64_t x_stride, const float* weight, float eps, T* y,
                                       std::int64_t y_stride, std::int64_t cols) {
  __shared__ float shared[32];
  const T* in = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  T* out = y + static_cast<std::int64_t>(blockIdx.x) * y_stride;
  const std::int64_t pieces = cols / V;
  float squares = 0;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(in + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) squares += v.v[i] * v.v[i];
  }
  const float r = rsqrtf(block_sum(squares, shared) / static_cast<float>(cols) + eps);
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    Floats<V> v = load<V>(in + p * V);
    const Floats<V> w = load<V>(weight + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) v.v[i] = v.v[i] * r * w.v[i];
    store<V>(out + p * V, v);
  }
}

// y = r w x with r = 1 / rms(x): dx = r w dy - x r³ mean(w dy x) + residual.
template <int V, class T>
__global__ void rmsnorm_backward_kernel(const T* x, std::int64_t x_stride, const float* weight, const T* dy,
                                        std::int64_t dy_stride, const T* residual, std::int64_t residual_stride, T* dx,
                                        std::int64_t dx_stride, T* y, std::int64_t y_stride, float eps, std::int64_t cols) {
  __shared__ float shared[32];
  const std::int64_t row = blockIdx.x;
  const std::int64_t pieces = cols / V;
  float squares = 0, dot = 0;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(x + row * x_stride + p * V), g = load<V>(dy + row * dy_stride + p * V);
    const Floats<V> w = load<V>(weight + p * V);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      squares += v.v[i] * v.v[i];
      dot += w.v[i] * g.v[i] * v.v[i];
    }
  }
  squares = block_sum(squares, shared);
  dot = block_sum(dot, shared);
  const float n = static_cast<float>(cols);
  const float r = rsqrtf(squares / n + eps);
  const float pull = r * r * r * dot / n;
  for (std::int64_t p = threadIdx.x; p < pieces; p += blockDim.x) {
    const Floats<V> v = load<V>(x + row * x_stride + p * V), g = load<V>(dy + row * dy_stride + p * V);
    const Floats<V> w = load<V>(weight + p * V);
    Floats<V> out, again;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      out.v[i] = r * w.v[i] * g.v[i] - v.v[i] * pull;
      again.v[i] = v.v[i] * r * w.v[i];
    }
    if (residual != nullptr) {
      const Floats<V> add = load<V>(residual + row * residual_stride + p * V);
#pragma unroll
      for (int i = 0; i < V; ++i) out.v[i] += add.v[i];
    }
    store<V>(dx + row * dx_stride + p * V, out);
    if (y != nullptr) store<V>(y + row * y_stride + p * V, again);
  }
}

/// One of q and k.
template <class T>
struct Heads {
  const T* in = nullptr;
  std::int64_t in_stride = 0;
  T* out = nullptr;
  std::int64_t out_stride = 0;
  const float* norm = nullptr;
  int heads = 0;
  const T* before = nullptr;  // backward: the input of the norm
  std::int64_t before_stride = 0;
};

// Half-split rotary: (a, b) of the two halves becomes (a cos - b sin, b cos + a sin); backward turns the other way.
template <int V, class T, bool kBackward>
__global__ void rope_kernel(Heads<T> q, Heads<T> k, const float* rope, std::int64_t rope_stride,
                            const std::int32_t* rope_row, const float* q_scale, int half) {
  let_next_start();
  wait_for_previous();
  const std::int64_t token = blockIdx.y;
  const int pieces = half / V;
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int head = item / pieces;
  const int c = (item - head * pieces) * V;
  if (head >= q.heads + k.heads) return;
  const bool is_q = head < q.heads;
  const Heads<T>& side = is_q ? q : k;
  if (!is_q) head -= q.heads;
  const T* in = side.in + token * side.in_stride + static_cast<std::int64_t>(head) * 2 * half + c;
  T* out = side.out + token * side.out_stride + static_cast<std::int64_t>(head) * 2 * half + c;
  const float* table = rope + rope_row[token] * rope_stride + c;
  const Floats<V> a = load<V>(in), b = load<V>(in + half), cosine = load<V>(table), sine = load<V>(table + half);
  const float scale = !kBackward && is_q && q_scale != nullptr ? q_scale[token] : 1.0f;
  Floats<V> first, second;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float s = kBackward ? -sine.v[i] : sine.v[i];
    first.v[i] = (a.v[i] * cosine.v[i] - b.v[i] * s) * scale;
    second.v[i] = (b.v[i] * cosine.v[i] + a.v[i] * s) * scale;
  }
  store<V>(out, first);
  store<V>(out + half, second);
}

// One warp a head, for heads with a norm of their own.
template <class T>
__global__ void norm_rope_forward_kernel(Heads<T> q, Heads<T> k, const float* rope, std::int64_t rope_stride,
                                         const std::int32_t* rope_row, const float* q_scale, int half, float eps) {
  const std::int64_t token = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int head = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (head >= q.heads + k.heads) return;
  const bool is_q = head < q.heads;
  const Heads<T>& side = is_q ? q : k;
  if (!is_q) head -= q.heads;
  const T* in = side.in + token * side.in_stride + static_cast<std::int64_t>(head) * 2 * half;
  T* out = side.out + token * side.out_stride + static_cast<std::int64_t>(head) * 2 * half;
  float squares = 0;
  for (int c = lane; c < 2 * half; c += 32) squares += widen(in[c]) * widen(in[c]);
  const float r = side.norm != nullptr ? rsqrtf(warp_sum(squares) / static_cast<float>(2 * half) + eps) : 1.0f;
  const float* table = rope + rope_row[token] * rope_stride;
  const float scale = is_q && q_scale != nullptr ? q_scale[token] : 1.0f;
  for (int c = lane; c < half; c += 32) {
    float a = widen(in[c]), b = widen(in[half + c]);
    if (side.norm != nullptr) {
      a *= r * side.norm[c];
      b *= r * side.norm[half + c];
    }
    const float cosine = table[c], sine = table[half + c];
    out[c] = narrow<T>((a * cosine - b * sine) * scale);
    out[half + c] = narrow<T>((b * cosine + a * sine) * scale);
  }
}

template <class T>
__global__ void norm_rope_backward_kernel(Heads<T> q, Heads<T> k, const float* rope, std::int64_t rope_stride,
                                          const std::int32_t* rope_row, int half, float eps) {
  const std::int64_t token = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int head = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (head >= q.heads + k.heads) return;
  const bool is_q = head < q.heads;
  const Heads<T>& side = is_q ? q : k;
  if (!is_q) head -= q.heads;
  T* grad = side.out + token * side.out_stride + static_cast<std::int64_t>(head) * 2 * half;
  const float* table = rope + rope_row[token] * rope_stride;
  const bool normed = side.norm != nullptr;
  const T* x = normed ? side.before + token * side.before_stride + static_cast<std::int64_t>(head) * 2 * half : nullptr;
  float squares = 0, dot = 0;
  if (normed) {
    for (int c = lane; c < half; c += 32) {
      const float a = widen(grad[c]), b = widen(grad[half + c]), cosine = table[c], sine = table[half + c];
      const float xa = widen(x[c]), xb = widen(x[half + c]);
      squares += xa * xa + xb * xb;
      dot += side.norm[c] * (a * cosine + b * sine) * xa + side.norm[half + c] * (b * cosine - a * sine) * xb;
    }
  }
  const float n = static_cast<float>(2 * half);
  const float r = normed ? rsqrtf(warp_sum(squares) / n + eps) : 1.0f;
  const float pull = normed ? r * r * r * warp_sum(dot) / n : 0.0f;
  for (int c = lane; c < half; c += 32) {
    const float a = widen(grad[c]), b = widen(grad[half + c]), cosine = table[c], sine = table[half + c];
    float da = a * cosine + b * sine, db = b * cosine - a * sine;
    if (normed) {
      da = r * side.norm[c] * da - widen(x[c]) * pull;
      db = r * side.norm[half + c] * db - widen(x[half + c]) * pull;
    }
    grad[c] = narrow<T>(da);
    grad[half + c] = narrow<T>(db);
  }
}

template <class T>
Heads<T> heads_of(const Tensor& in, const Tensor& out, const Tensor& norm, std::int64_t head_dim) {
  Heads<T> side;
  side.in = in.as<T>();
  side.in_stride = in.stride;
  side.out = out.as<T>();
  side.out_stride = out.stride;
  side.norm = norm.as<float>();
  side.heads = static_cast<int>(in.cols / head_dim);
  return side;
}

template <bool kBackward, class T>
void launch_rope(const Heads<T>& q, const Heads<T>& k, const Tensor& rope, const std::int32_t* rope_row,
                 const float* q_scale, std::int64_t head_dim, std::int64_t tokens, bool wide, cudaStream_t stream) {
  const int half = static_cast<int>(head_dim / 2);
  const int v = wide && half % 8 == 0 ? 8 : 1;
  const dim3 grid(blocks_for(static_cast<std::int64_t>(q.heads + k.heads) * (half / v), 256), static_cast<unsigned>(tokens));
  const auto kernel = v == 8 ? rope_kernel<8, T, kBackward> : rope_kernel<1, T, kBackward>;
  launch_dependent(kernel, grid, 256, 0, stream, q, k, rope.as<float>(), rope.stride, rope_row, q_scale, half);
}

/// Rows of a grid's y axis are limited; q and k are cut into runs of tokens.
constexpr std::int64_t kTokensPerLaunch = 65535;

}  // namespace

void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y, cudaStream_t stream) {
  if (x.rows == 0) return;
  if (rule.centred) return centred_norm_forward(x, weight, rule.eps, y, stream);
  const bool wide = eights(x) && eights(y);
  with_float(x.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      rmsnorm_forward_kernel<V, T><<<static_cast<unsigned>(x.rows), threads_for(x.cols / V), 0, stream>>>(
          x.as<T>(), x.stride, weight.as<float>(), rule.eps, y.as<T>(), y.stride, x.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("rmsnorm_forward");
}

void rmsnorm_backward(const RmsNormBackward& call, cudaStream_t stream) {
  if (call.x.rows == 0) return;
  if (call.rule.centred) return centred_norm_backward(call, stream);
  const bool wide = eights(call.x) && eights(call.dy) && eights(call.dx) && (!call.residual || eights(call.residual)) &&
                    (!call.y || eights(call.y));
  with_float(call.x.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      rmsnorm_backward_kernel<V, T><<<static_cast<unsigned>(call.x.rows), threads_for(call.x.cols / V), 0, stream>>>(
          call.x.as<T>(), call.x.stride, call.weight.as<float>(), call.dy.as<T>(), call.dy.stride, call.residual.as<T>(),
          call.residual.stride, call.dx.as<T>(), call.dx.stride, call.y.as<T>(), call.y.stride, call.rule.eps, call.x.cols);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("rmsnorm_backward");
}

void qk_rope_forward(const QkRope& call, cudaStream_t stream) {
  if (!call.whole_halves() || call.rule.centred) return turn_parts_forward(call, stream);
  const std::int32_t* rope_row = call.rope_row->device.as<std::int32_t>();
  const int half = static_cast<int>(call.head_dim / 2);
  for (std::int64_t first = 0; first < call.q.rows; first += kTokensPerLaunch) {
    const std::int64_t count = std::min(kTokensPerLaunch, call.q.rows - first);
    const float* q_scale = call.q_scale ? call.q_scale.as<float>() + first : nullptr;
    with_float(call.q.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.q.row_range(first, count), call.q_out.row_range(first, count), call.q_norm, call.head_dim);
      const auto k = heads_of<T>(call.k.row_range(first, count), call.k_out.row_range(first, count), call.k_norm, call.head_dim);
      if (call.q_norm || call.k_norm) {
        const dim3 grid(blocks_for(q.heads + k.heads, 8), static_cast<unsigned>(count));
        norm_rope_forward_kernel<T><<<grid, 256, 0, stream>>>(q, k, call.rope.as<float>(), call.rope.stride,
                                                              rope_row + first, q_scale, half, call.rule.eps);
      } else {
        const bool wide = eights(call.q) && eights(call.k) && eights(call.q_out) && eights(call.k_out) && eights(call.rope);
        launch_rope<false, T>(q, k, call.rope, rope_row + first, q_scale, call.head_dim, count, wide, stream);
      }
    });
    check_launch("qk_rope_forward");
  }
}

void qk_rope_backward(const QkRopeBackward& call, cudaStream_t stream) {
  if (!call.whole_halves() || call.rule.centred || call.q_scale) return turn_parts_backward(call, stream);
  const std::int32_t* rope_row = call.rope_row->device.as<std::int32_t>();
  const int half = static_cast<int>(call.head_dim / 2);
  for (std::int64_t first = 0; first < call.dq.rows; first += kTokensPerLaunch) {
    const std::int64_t count = std::min(kTokensPerLaunch, call.dq.rows - first);
    with_float(call.dq.dtype, [&]<class T>(T) {
      const Tensor dq = call.dq.row_range(first, count), dk = call.dk.row_range(first, count);
      auto q = heads_of<T>(dq, dq, call.q_norm, call.head_dim), k = heads_of<T>(dk, dk, call.k_norm, call.head_dim);
      if (call.q_norm || call.k_norm) {
        q.before = call.q.row_range(first, count).template as<T>();
        q.before_stride = call.q.stride;
        k.before = call.k.row_range(first, count).template as<T>();
        k.before_stride = call.k.stride;
        const dim3 grid(blocks_for(q.heads + k.heads, 8), static_cast<unsigned>(count));
        norm_rope_backward_kernel<T><<<grid, 256, 0, stream>>>(q, k, call.rope.as<float>(), call.rope.stride,
                                                               rope_row + first, half, call.rule.eps);
      } else {
        const bool wide = eights(call.dq) && eights(call.dk) && eights(call.rope);
        launch_rope<true, T>(q, k, call.rope, rope_row + first, nullptr, call.head_dim, count, wide, stream);
      }
    });
    check_launch("qk_rope_backward");
  }
}

}  // namespace pipelora::cuda
