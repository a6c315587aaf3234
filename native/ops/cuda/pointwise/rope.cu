// Rotary embedding of q and k whose heads turn as a whole, in halves, without a norm: the common kind. Behind norms: norm_halves.cu. The others:
// norm_rope.cu.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/pointwise/heads.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

// Half-split rotary: (a, b) of the two halves becomes (a cos - b sin, b cos + a sin); backward turns the other way.
template <int V, class T, bool kBackward>
__global__ void rope_kernel(Heads<T> q, Heads<T> k, const float* rope, std::int64_t rope_stride,
                            const std::int32_t* rope_row, const float* q_scale, int half) {
  let_next_start();
  wait_for_previous();
  const std::int64_t token = blockIdx.y;
  const int pieces = half / V;
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int c = item % pieces * V;
  const HeadPlace<T> place(q, k, item / pieces, token, 2 * half);
  if (!place.found) return;
  const T* in = place.in + c;
  T* out = place.out + c;
  const float* table = rope + rope_row[token] * rope_stride + c;
  const Floats<V> a = load<V>(in), b = load<V>(in + half), cosine = load<V>(table), sine = load<V>(table + half);
  const float scale = !kBackward && place.is_q && q_scale != nullptr ? q_scale[token] : 1.0f;
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

template <bool kBackward, class T>
void launch_rope(const Heads<T>& q, const Heads<T>& k, const Tensor& rope, const std::int32_t* rope_row,
                 const float* q_scale, std::int64_t head_dim, std::int64_t tokens, bool wide, cudaStream_t stream) {
  const int half = static_cast<int>(head_dim / 2);
  const int v = wide && half % 8 == 0 ? 8 : 1;
  const dim3 grid(blocks_for(static_cast<std::int64_t>(q.heads + k.heads) * (half / v), 256), static_cast<unsigned>(tokens));
  const auto kernel = v == 8 ? rope_kernel<8, T, kBackward> : rope_kernel<1, T, kBackward>;
  launch_dependent(kernel, grid, 256, 0, stream, q, k, rope.as<float>(), rope.stride, rope_row, q_scale, half);
}

}  // namespace

void qk_rope_forward(const QkRope& call, cudaStream_t stream) {
  if (norm_halves_takes(call)) return norm_halves_forward(call, stream);
  if (!call.whole_halves() || call.q_norm || call.k_norm) return norm_rope_forward(call, stream);
  const bool wide = eights(call.q) && eights(call.k) && eights(call.q_out) && eights(call.k_out) && eights(call.rope);
  in_runs(call.q.rows, [&](std::int64_t first, std::int64_t count) {
    const float* q_scale = call.q_scale ? call.q_scale.as<float>() + first : nullptr;
    with_float(call.q.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.q, call.q_out, call.q_norm, call.head_dim, first, count);
      const auto k = heads_of<T>(call.k, call.k_out, call.k_norm, call.head_dim, first, count);
      launch_rope<false, T>(q, k, call.rope, call.rope_row->device.as<std::int32_t>() + first, q_scale, call.head_dim, count, wide, stream);
    });
    check_launch("qk_rope_forward");
  });
}

void qk_rope_backward(const QkRopeBackward& call, cudaStream_t stream) {
  if (norm_halves_takes(call)) return norm_halves_backward(call, stream);
  if (!call.whole_halves() || call.q_norm || call.k_norm || call.q_scale) return norm_rope_backward(call, stream);
  const bool wide = eights(call.dq) && eights(call.dk) && eights(call.rope);
  in_runs(call.dq.rows, [&](std::int64_t first, std::int64_t count) {
    with_float(call.dq.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.dq, call.dq, call.q_norm, call.head_dim, first, count);
      const auto k = heads_of<T>(call.dk, call.dk, call.k_norm, call.head_dim, first, count);
      launch_rope<true, T>(q, k, call.rope, call.rope_row->device.as<std::int32_t>() + first, nullptr, call.head_dim, count, wide, stream);
    });
    check_launch("qk_rope_backward");
  });
}

}  // namespace pipelora::cuda
