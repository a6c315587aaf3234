// Attention in f32 arithmetic for any dtype and head width up to 256: one warp a query (or a key). For checks, and for
// shapes that the tiles do not take.
//
// Gradient contract, P = exp(scale * q kᵀ - lse), delta = rowsum(dout * out):
//   dv = Pᵀ dout;  dS = scale * P * (dout vᵀ - delta);  dq = dS k;  dk = dSᵀ q.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/attention/common.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kParts = static_cast<int>(kMaxHeadDim) / 32;

template <class T>
struct Matrix {
  T* data;
  std::int64_t stride;
  __device__ T* row(std::int64_t r, int head, int e) const { return data + r * stride + static_cast<std::int64_t>(head) * e; }
};
template <class T>
Matrix<T> matrix(const Tensor& tensor) {
  return {tensor.as<T>(), tensor.stride};
}

template <class T>
__device__ inline void read_row(const T* from, int e, float (&to)[kParts]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kParts; ++i) to[i] = i * 32 + lane < e ? widen(from[i * 32 + lane]) : 0.0f;
}
template <class T>
__device__ inline void write_row(T* to, int e, const float (&from)[kParts], float factor) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kParts; ++i)
    if (i * 32 + lane < e) to[i * 32 + lane] = narrow<T>(from[i] * factor);
}
__device__ inline float dot(const float (&a)[kParts], const float (&b)[kParts]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kParts; ++i) sum += a[i] * b[i];
  return warp_sum(sum);
}

/// A score under its cap, and the derivative there.
__device__ inline float capped(float score, float cap) { return cap > 0 ? cap * tanhf(score / cap) : score; }
__device__ inline float cap_derivative(float score, float cap) { return cap > 0 ? 1.0f - (score / cap) * (score / cap) : 1.0f; }

/// The sequence that holds row `t` of the queries.
__device__ inline int sequence_of(const SequenceTable& table, std::int64_t t) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.cu_queries[middle] <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

template <class T>
__global__ void forward_kernel(Matrix<const T> q, Matrix<const T> k, Matrix<const T> v, Matrix<T> out, float* lse,
                               std::int64_t lse_stride, SequenceTable table, std::int64_t tokens, int e, int group,
                               int window, float scale, float cap) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int head = static_cast<int>(blockIdx.y);
  if (t >= tokens) return;
  const int s = sequence_of(table, t);
  const int queries = table.cu_queries[s + 1] - table.cu_queries[s];
  const int position = table.key_length[s] - queries + static_cast<int>(t - table.cu_queries[s]);
  float mine[kParts], other[kParts], sum[kParts] = {};
  read_row(q.row(t, head, e), e, mine);
  float top = -INFINITY, total = 0;
  for (int j = window > 0 ? max(0, position - window + 1) : 0; j <= position; ++j) {
    const std::int64_t row = table.key_start[s] + j;
    read_row(k.row(row, head / group, e), e, other);
    const float score = capped(dot(mine, other) * scale, cap);
    const float now = fmaxf(top, score);
    const float rescale = expf(top - now), weight = expf(score - now);
    read_row(v.row(row, head / group, e), e, other);
#pragma unroll
    for (int i = 0; i < kParts; ++i) sum[i] = sum[i] * rescale + weight * other[i];
    total = total * rescale + weight;
    top = now;
  }
  write_row(out.row(t, head, e), e, sum, 1.0f / total);
  if (lse != nullptr && threadIdx.x % 32 == 0) lse[head * lse_stride + t] = top + logf(total);
}

template <class T>
__global__ void query_grad_kernel(Matrix<const T> q, Matrix<const T> k, Matrix<const T> v, Matrix<const T> out,
                                  Matrix<const T> dout, const float* lse, std::int64_t lse_stride, float* delta,
                                  std::int64_t delta_stride, Matrix<T> dq, SequenceTable table, std::int64_t tokens, int e,
                                  int group, int window, float scale, float cap) {
  const std::int64_t t = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int head = static_cast<int>(blockIdx.y);
  if (t >= tokens) return;
  const int s = sequence_of(table, t);
  const int queries = table.cu_queries[s + 1] - table.cu_queries[s];
  const int position = table.key_length[s] - queries + static_cast<int>(t - table.cu_queries[s]);
  float mine[kParts], grad[kParts], other[kParts], sum[kParts] = {};
  read_row(q.row(t, head, e), e, mine);
  read_row(dout.row(t, head, e), e, grad);
  read_row(out.row(t, head, e), e, other);
  const float own_delta = dot(grad, other);
  if (threadIdx.x % 32 == 0) delta[head * delta_stride + t] = own_delta;
  const float own_lse = lse[head * lse_stride + t];
  for (int j = window > 0 ? max(0, position - window + 1) : 0; j <= position; ++j) {
    const std::int64_t row = table.key_start[s] + j;
    read_row(v.row(row, head / group, e), e, other);
    const float dp = dot(grad, other);
    read_row(k.row(row, head / group, e), e, other);
    const float score = capped(dot(mine, other) * scale, cap);
    const float ds = expf(score - own_lse) * (dp - own_delta) * scale * cap_derivative(score, cap);
#pragma unroll
    for (int i = 0; i < kParts; ++i) sum[i] += ds * other[i];
  }
  write_row(dq.row(t, head, e), e, sum, 1.0f);
}

template <class T>
__global__ void key_grad_kernel(Matrix<const T> q, Matrix<const T> k, Matrix<const T> v, Matrix<const T> dout,
                                const float* lse, std::int64_t lse_stride, const float* delta, std::int64_t delta_stride,
                                Matrix<T> dk, Matrix<T> dv, SequenceTable table, int tiles, int e, int group, int window,
                                float scale, float cap) {
  const int tile = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int kv_head = static_cast<int>(blockIdx.y);
  if (tile >= tiles) return;
  const Place place = locate<true>(table, tile, 1);
  const int s = place.sequence, j = place.tile;
  const int queries = table.cu_queries[s + 1] - table.cu_queries[s], offset = table.key_length[s] - queries;
  const std::int64_t row = table.key_start[s] + j;
  float key[kParts], value[kParts], other[kParts], grad[kParts], dk_sum[kParts] = {}, dv_sum[kParts] = {};
  read_row(k.row(row, kv_head, e), e, key);
  read_row(v.row(row, kv_head, e), e, value);
  const int last = window > 0 ? min(queries, j + window - offset) : queries;
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int i = max(0, j - offset); i < last; ++i) {
      const std::int64_t t = table.cu_queries[s] + i;
      read_row(q.row(t, head, e), e, other);
      read_row(dout.row(t, head, e), e, grad);
      const float score = capped(dot(other, key) * scale, cap);
      const float p = expf(score - lse[head * lse_stride + t]);
      const float ds = p * (dot(grad, value) - delta[head * delta_stride + t]) * scale * cap_derivative(score, cap);
#pragma unroll
      for (int c = 0; c < kParts; ++c) {
        dv_sum[c] += p * grad[c];
        dk_sum[c] += ds * other[c];
      }
    }
  }
  write_row(dk.row(row, kv_head, e), e, dk_sum, 1.0f);
  write_row(dv.row(row, kv_head, e), e, dv_sum, 1.0f);
}

}  // namespace

void attention_forward_plain(const AttentionForward& call, cudaStream_t stream) {
  const int e = static_cast<int>(call.head_dim), group = static_cast<int>(call.q.cols / call.k.cols);
  const dim3 grid(blocks_for(call.q.rows, kWarps), static_cast<unsigned>(call.q.cols / call.head_dim));
  with_float(call.q.dtype, [&]<class T>(T) {
    forward_kernel<T><<<grid, kWarps * 32, 0, stream>>>(matrix<const T>(call.q), matrix<const T>(call.k), matrix<const T>(call.v),
                                                        matrix<T>(call.out), call.lse.as<float>(), call.lse.stride,
                                                        table_of(*call.sequences), call.q.rows, e, group,
                                                        static_cast<int>(call.window), call.scale, call.cap);
  });
  check_launch("attention_forward");
}

void attention_backward_plain(const AttentionBackward& call, const Tensor& delta, cudaStream_t stream) {
  const int e = static_cast<int>(call.head_dim), group = static_cast<int>(call.q.cols / call.k.cols);
  const int window = static_cast<int>(call.window);
  const SequenceTable table = table_of(*call.sequences);
  const dim3 grid(blocks_for(call.q.rows, kWarps), static_cast<unsigned>(call.q.cols / call.head_dim));
  const std::int64_t keys = key_tiles(*call.sequences, 1);
  const dim3 key_grid(blocks_for(keys, kWarps), static_cast<unsigned>(call.k.cols / call.head_dim));
  with_float(call.q.dtype, [&]<class T>(T) {
    const auto q = matrix<const T>(call.q), k = matrix<const T>(call.k), v = matrix<const T>(call.v),
               out = matrix<const T>(call.out), dout = matrix<const T>(call.dout);
    query_grad_kernel<T><<<grid, kWarps * 32, 0, stream>>>(q, k, v, out, dout, call.lse.as<float>(), call.lse.stride,
                                                           delta.as<float>(), delta.stride, matrix<T>(call.dq), table,
                                                           call.q.rows, e, group, window, call.scale, call.cap);
    key_grad_kernel<T><<<key_grid, kWarps * 32, 0, stream>>>(q, k, v, dout, call.lse.as<float>(), call.lse.stride,
                                                             delta.as<float>(), delta.stride, matrix<T>(call.dk),
                                                             matrix<T>(call.dv), table, static_cast<int>(keys), e, group,
                                                             window, call.scale, call.cap);
  });
  check_launch("attention_backward");
}

}  // namespace pipelora::cuda
