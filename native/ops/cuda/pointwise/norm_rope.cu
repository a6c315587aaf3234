// Norms of heads, and rotary where only a part of a head turns, or none of it, or where neighbours turn together: one warp a head. Whole
// heads in halves without a norm are in rope.cu.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/pointwise/heads.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 8;

/// Which columns of a head turn, and by which table.
struct Turn {
  const float* rope;  // or null: none
  std::int64_t stride;
  const std::int32_t* row;
  const float* q_scale;
  int half, width;
  bool interleaved;
  __device__ int first(int i) const { return interleaved ? 2 * i : i; }
  __device__ int second(int i) const { return interleaved ? 2 * i + 1 : half + i; }
};

/// m and r of a head's norm; m is 0 but for centred rules.
template <class T>
__device__ inline float2 head_statistics(const T* x, int width, NormRule rule) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float n = static_cast<float>(width);
  float mean = 0, squares = 0;
  if (rule.centred) {
    for (int c = lane; c < width; c += 32) mean += widen(x[c]);
    mean = warp_sum(mean) / n;
  }
  for (int c = lane; c < width; c += 32) squares += (widen(x[c]) - mean) * (widen(x[c]) - mean);
  return make_float2(mean, rsqrtf(warp_sum(squares) / n + rule.eps));
}

template <class T>
__global__ void forward_kernel(Heads<T> q, Heads<T> k, Turn turn, NormRule rule) {
  const std::int64_t token = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const HeadPlace<T> place(q, k, static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32), token, turn.width);
  if (!place.found) return;
  const T* in = place.in;
  T* out = place.out;
  const float* norm = place.side.norm;
  const bool normed = norm != nullptr;
  const float2 stats = normed ? head_statistics(in, turn.width, rule) : make_float2(0, 1);
  const float scale = place.is_q && turn.q_scale != nullptr ? turn.q_scale[token] : 1.0f;
  const auto value = [&](int c) { return normed ? (widen(in[c]) - stats.x) * stats.y * norm[c] : widen(in[c]); };
  const int turning = turn.rope != nullptr ? turn.half : 0;
  const float* table = turn.rope != nullptr ? turn.rope + turn.row[token] * turn.stride : nullptr;
  for (int i = lane; i < turning; i += 32) {
    const int first = turn.first(i), second = turn.second(i);
    const float a = value(first), b = value(second), cosine = table[i], sine = table[turn.half + i];
    out[first] = narrow<T>((a * cosine - b * sine) * scale);
    out[second] = narrow<T>((b * cosine + a * sine) * scale);
  }
  for (int c = 2 * turning + lane; c < turn.width; c += 32) out[c] = narrow<T>(value(c) * scale);
}

// In place on `out`; `in` is the norm's input.
template <class T>
__global__ void backward_kernel(Heads<T> q, Heads<T> k, Turn turn, NormRule rule) {
  const std::int64_t token = blockIdx.y;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const HeadPlace<T> place(q, k, static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32), token, turn.width);
  if (!place.found) return;
  T* grad = place.out;
  const T* x = place.in;
  const float* norm = place.side.norm;
  const bool normed = norm != nullptr;
  const float2 stats = normed ? head_statistics(x, turn.width, rule) : make_float2(0, 1);
  const float scale = place.is_q && turn.q_scale != nullptr ? turn.q_scale[token] : 1.0f;
  const int turning = turn.rope != nullptr ? turn.half : 0;
  const float* table = turn.rope != nullptr ? turn.rope + turn.row[token] * turn.stride : nullptr;
  // f(column, gradient before rotary) over the columns of this lane.
  const auto each = [&](auto&& f) {
    for (int i = lane; i < turning; i += 32) {
      const int first = turn.first(i), second = turn.second(i);
      const float a = widen(grad[first]) * scale, b = widen(grad[second]) * scale, cosine = table[i], sine = table[turn.half + i];
      f(first, a * cosine + b * sine);
      f(second, b * cosine - a * sine);
    }
    for (int c = 2 * turning + lane; c < turn.width; c += 32) f(c, widen(grad[c]) * scale);
  };
  float level = 0, dot = 0;
  if (normed) {
    each([&](int c, float g) {
      level += norm[c] * g;
      dot += norm[c] * g * (widen(x[c]) - stats.x);
    });
    level = warp_sum(level);
    dot = warp_sum(dot);
  }
  const float n = static_cast<float>(turn.width);
  const float lift = normed && rule.centred ? level / n : 0.0f, pull = stats.y * stats.y * stats.y * dot / n;
  // A lane reads both columns of a pair before it writes either.
  each([&](int c, float g) { grad[c] = narrow<T>(normed ? stats.y * (norm[c] * g - lift) - (widen(x[c]) - stats.x) * pull : g); });
}

template <class Call>
Turn turn_of(const Call& call, std::int64_t first) {
  return {call.rope.template as<float>(),
          call.rope.stride,
          call.rope ? call.rope_row->device.template as<std::int32_t>() + first : nullptr,
          call.q_scale ? call.q_scale.template as<float>() + first : nullptr,
          static_cast<int>(call.rope.cols / 2),
          static_cast<int>(call.head_dim),
          call.interleaved};
}

}  // namespace

void norm_rope_forward(const QkRope& call, cudaStream_t stream) {
  in_runs(call.q.rows, [&](std::int64_t first, std::int64_t count) {
    with_float(call.q.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.q, call.q_out, call.q_norm, call.head_dim, first, count);
      const auto k = heads_of<T>(call.k, call.k_out, call.k_norm, call.head_dim, first, count);
      const dim3 grid(blocks_for(q.heads + k.heads, kWarps), static_cast<unsigned>(count));
      forward_kernel<T><<<grid, kWarps * 32, 0, stream>>>(q, k, turn_of(call, first), call.rule);
    });
    check_launch("norm_rope_forward");
  });
}

void norm_rope_backward(const QkRopeBackward& call, cudaStream_t stream) {
  in_runs(call.dq.rows, [&](std::int64_t first, std::int64_t count) {
    with_float(call.dq.dtype, [&]<class T>(T) {
      const auto q = heads_of<T>(call.q, call.dq, call.q_norm, call.head_dim, first, count);
      const auto k = heads_of<T>(call.k, call.dk, call.k_norm, call.head_dim, first, count);
      const dim3 grid(blocks_for(q.heads + k.heads, kWarps), static_cast<unsigned>(count));
      backward_kernel<T><<<grid, kWarps * 32, 0, stream>>>(q, k, turn_of(call, first), call.rule);
    });
    check_launch("norm_rope_backward");
  });
}

}  // namespace pipelora::cuda
