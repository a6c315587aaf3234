// RMSNorms of heads that turn as a whole, in halves, with rotary in the same pass: lanes that share a head hold eight columns of each half, so that
// memory sees every number once. What else there is of norms and rotary: norm_rope.cu.
#include <algorithm>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/heads.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

struct Turn {
  const float* rope;
  std::int64_t stride;
  const std::int32_t* row;
  const float* q_scale;  // or null
  int half, lanes;       // lanes of a head: half / 8, a power of two
  float eps;
};

/// A lane's eight columns of each half.
struct Pair {
  Floats<8> a, b;
};
template <class T>
__device__ inline Pair load_pair(const T* from, int half) { return {load<8>(from), load<8>(from + half)}; }

/// Over the lanes of a head. Called by whole warps.
__device__ inline float head_sum(float x, int lanes) {
  for (int d = 1; d < lanes; d *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, d);
  return x;
}
__device__ inline float inverse_rms(const Pair& x, const Turn& turn) {
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares += x.a.v[i] * x.a.v[i] + x.b.v[i] * x.b.v[i];
  return rsqrtf(head_sum(squares, turn.lanes) / static_cast<float>(2 * turn.half) + turn.eps);
}

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads) norm_halves_kernel(const __grid_constant__ Heads<T> q, const __grid_constant__ Heads<T> k, Turn turn) {
  const std::int64_t token = blockIdx.y;
  const int item = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), c = item % turn.lanes * 8;
  const HeadPlace<T> place(q, k, item / turn.lanes, token, 2 * turn.half);
  Pair x{}, w{}, turned{};
  if (place.found) {
    x = load_pair(place.in + c, turn.half);
    w = load_pair(place.side.norm + c, turn.half);
  }
  const float r = inverse_rms(x, turn);
  if (!kBackward && !place.found) return;
  const float* table = turn.rope + turn.row[token] * turn.stride + c;
  const Pair angle = load_pair(table, turn.half);  // cosines and sines
  const float scale = place.is_q && turn.q_scale != nullptr ? turn.q_scale[token] : 1.0f;
  T* out = place.out + c;
  if constexpr (!kBackward) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = x.a.v[i] * r * w.a.v[i], b = x.b.v[i] * r * w.b.v[i];
      turned.a.v[i] = (a * angle.a.v[i] - b * angle.b.v[i]) * scale;
      turned.b.v[i] = (b * angle.a.v[i] + a * angle.b.v[i]) * scale;
    }
    store<8>(out, turned.a);
    store<8>(out + turn.half, turned.b);
  } else {
    Pair grad{};
    if (place.found) grad = load_pair<T>(out, turn.half);
    float dot = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float a = grad.a.v[i] * scale, b = grad.b.v[i] * scale;
      turned.a.v[i] = w.a.v[i] * (a * angle.a.v[i] + b * angle.b.v[i]);
      turned.b.v[i] = w.b.v[i] * (b * angle.a.v[i] - a * angle.b.v[i]);
      dot += turned.a.v[i] * x.a.v[i] + turned.b.v[i] * x.b.v[i];
    }
    const float pull = r * r * r * head_sum(dot, turn.lanes) / static_cast<float>(2 * turn.half);
    if (!place.found) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      turned.a.v[i] = r * turned.a.v[i] - x.a.v[i] * pull;
      turned.b.v[i] = r * turned.b.v[i] - x.b.v[i] * pull;
    }
    store<8>(out, turned.a);
    store<8>(out + turn.half, turned.b);
  }
}

template <bool kBackward, class Call>
void launch(const Call& call, const Tensor& q_out, const Tensor& k_out, cudaStream_t stream) {
  in_runs(q_out.rows, [&](std::int64_t first, std::int64_t count) {
    with_float(q_out.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.q, q_out, call.q_norm, call.head_dim, first, count), k = heads_of<T>(call.k, k_out, call.k_norm, call.head_dim, first, count);
      const int half = static_cast<int>(call.head_dim / 2);
      const Turn turn{call.rope.template as<float>(), call.rope.stride, call.rope_row->device.template as<std::int32_t>() + first,
                      call.q_scale ? call.q_scale.template as<float>() + first : nullptr, half, half / 8, call.rule.eps};
      const dim3 grid(blocks_for(static_cast<std::int64_t>(q.heads + k.heads) * turn.lanes, kThreads), static_cast<unsigned>(count));
      norm_halves_kernel<T, kBackward><<<grid, kThreads, 0, stream>>>(q, k, turn);
    });
    check_launch("norms of heads with rotary");
  });
}

/// Eight columns at a time, lanes of a head within a warp.
bool suits(std::int64_t head_dim, const Tensor& rope, const Tensor& q_norm, const Tensor& k_norm, std::initializer_list<Tensor> rows) {
  const std::int64_t lanes = head_dim / 16;
  return head_dim % 16 == 0 && lanes >= 1 && lanes <= 32 && (lanes & (lanes - 1)) == 0 && q_norm && k_norm && fours(q_norm) && fours(k_norm) && fours(rope) &&
         std::all_of(rows.begin(), rows.end(), eights);
}

}  // namespace

bool norm_halves_takes(const QkRope& call) {
  return call.whole_halves() && !call.rule.centred && suits(call.head_dim, call.rope, call.q_norm, call.k_norm, {call.q, call.k, call.q_out, call.k_out});
}
bool norm_halves_takes(const QkRopeBackward& call) {
  return call.whole_halves() && !call.rule.centred && suits(call.head_dim, call.rope, call.q_norm, call.k_norm, {call.q, call.k, call.dq, call.dk});
}

void norm_halves_forward(const QkRope& call, cudaStream_t stream) { launch<false>(call, call.q_out, call.k_out, stream); }
void norm_halves_backward(const QkRopeBackward& call, cudaStream_t stream) { launch<true>(call, call.dq, call.dk, stream); }

}  // namespace pipelora::cuda
