// Heads of latent attention put together and taken apart; heads of v brought to the width of those of q. One block a token.
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/device/common.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

/// Columns 2i and 2i + 1, or i and i + half.
struct Pair {
  int first, second;
};
__device__ inline Pair pair_of(int i, int half, bool interleaved) { return interleaved ? Pair{2 * i, 2 * i + 1} : Pair{i, half + i}; }

template <class T>
__global__ void forward_kernel(const T* q, std::int64_t q_stride, const T* expanded, std::int64_t expanded_stride, const T* shared, std::int64_t shared_stride, T* q_out,
                               std::int64_t q_out_stride, T* k_out, std::int64_t k_out_stride, T* v_out, std::int64_t v_out_stride, const float* rope,
                               std::int64_t rope_stride, const std::int32_t* rope_row, bool interleaved, int heads, int plain, int turning, int value) {
  const std::int64_t t = blockIdx.x;
  const int e = plain + turning, half = turning / 2;
  q += t * q_stride, expanded += t * expanded_stride, shared += t * shared_stride;
  q_out += t * q_out_stride, k_out += t * k_out_stride, v_out += t * v_out_stride;
  const float* table = rope != nullptr ? rope + rope_row[t] * rope_stride : nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < heads * plain; i += kThreads) {
    const int h = i / plain, c = i % plain;
    q_out[h * e + c] = q[h * e + c];
    k_out[h * e + c] = expanded[h * (plain + value) + c];
  }
  for (int i = static_cast<int>(threadIdx.x); i < heads * value; i += kThreads) v_out[i] = expanded[i / value * (plain + value) + plain + i % value];
  for (int i = static_cast<int>(threadIdx.x); i < heads * half; i += kThreads) {
    const int h = i / half, p = i % half;
    const Pair at = pair_of(p, half, interleaved);
    const float cosine = table != nullptr ? table[p] : 1.0f, sine = table != nullptr ? table[half + p] : 0.0f;
    const auto turn = [&](const T* from, T* to) {
      const float a = widen(from[at.first]), b = widen(from[at.second]);
      to[at.first] = narrow<T>(a * cosine - b * sine);
      to[at.second] = narrow<T>(b * cosine + a * sine);
    };
    turn(q + h * e + plain, q_out + h * e + plain);
    turn(shared, k_out + h * e + plain);
  }
}

template <class T>
__global__ void backward_kernel(const T* dq_out, std::int64_t dq_out_stride, const T* dk_out, std::int64_t dk_out_stride, const T* dv_out, std::int64_t dv_out_stride,
                                T* dq, std::int64_t dq_stride, T* dexpanded, std::int64_t dexpanded_stride, T* dshared, std::int64_t dshared_stride, const float* rope,
                                std::int64_t rope_stride, const std::int32_t* rope_row, bool interleaved, int heads, int plain, int turning, int value) {
  const std::int64_t t = blockIdx.x;
  const int e = plain + turning, half = turning / 2;
  dq_out += t * dq_out_stride, dk_out += t * dk_out_stride, dv_out += t * dv_out_stride;
  dq += t * dq_stride, dexpanded += t * dexpanded_stride, dshared += t * dshared_stride;
  const float* table = rope != nullptr ? rope + rope_row[t] * rope_stride : nullptr;
  for (int i = static_cast<int>(threadIdx.x); i < heads * plain; i += kThreads) {
    const int h = i / plain, c = i % plain;
    dq[h * e + c] = dq_out[h * e + c];
    dexpanded[h * (plain + value) + c] = dk_out[h * e + c];
  }
  for (int i = static_cast<int>(threadIdx.x); i < heads * value; i += kThreads) dexpanded[i / value * (plain + value) + plain + i % value] = dv_out[i];
  for (int i = static_cast<int>(threadIdx.x); i < heads * half; i += kThreads) {
    const int h = i / half, p = i % half;
    const Pair at = pair_of(p, half, interleaved);
    const float cosine = table != nullptr ? table[p] : 1.0f, sine = table != nullptr ? table[half + p] : 0.0f;
    const float a = widen(dq_out[h * e + plain + at.first]), b = widen(dq_out[h * e + plain + at.second]);
    dq[h * e + plain + at.first] = narrow<T>(a * cosine + b * sine);
    dq[h * e + plain + at.second] = narrow<T>(b * cosine - a * sine);
  }
  for (int p = static_cast<int>(threadIdx.x); p < half; p += kThreads) {
    const Pair at = pair_of(p, half, interleaved);
    const float cosine = table != nullptr ? table[p] : 1.0f, sine = table != nullptr ? table[half + p] : 0.0f;
    float a = 0, b = 0;
    for (int h = 0; h < heads; ++h) {
      a += widen(dk_out[h * e + plain + at.first]);
      b += widen(dk_out[h * e + plain + at.second]);
    }
    dshared[at.first] = narrow<T>(a * cosine + b * sine);
    dshared[at.second] = narrow<T>(b * cosine - a * sine);
  }
}

/// Heads of `from_dim` columns to heads of `to_dim`: cut off, or zeros behind.
template <class T>
__global__ void widths_kernel(const T* from, std::int64_t from_stride, int from_dim, T* to, std::int64_t to_stride, int to_dim, int heads) {
  from += static_cast<std::int64_t>(blockIdx.x) * from_stride;
  to += static_cast<std::int64_t>(blockIdx.x) * to_stride;
  for (int i = static_cast<int>(threadIdx.x); i < heads * to_dim; i += kThreads) {
    const int h = i / to_dim, c = i % to_dim;
    to[i] = c < from_dim ? from[h * from_dim + c] : narrow<T>(0.0f);
  }
}

const std::int32_t* rows_at(const Indices* rows) { return rows == nullptr ? nullptr : rows->device.as<std::int32_t>(); }

}  // namespace

void latent_heads_forward(const LatentHeads& call, cudaStream_t stream) {
  const LatentShape& s = call.shape;
  with_float(call.q.dtype, [&]<class T>(T) {
    forward_kernel<T><<<static_cast<unsigned>(call.q.rows), kThreads, 0, stream>>>(
        call.q.as<T>(), call.q.stride, call.expanded.as<T>(), call.expanded.stride, call.shared.as<T>(), call.shared.stride, call.q_out.as<T>(), call.q_out.stride,
        call.k_out.as<T>(), call.k_out.stride, call.v_out.as<T>(), call.v_out.stride, call.rope.as<float>(), call.rope.stride, rows_at(call.rope_row), call.interleaved,
        static_cast<int>(s.heads), static_cast<int>(s.plain), static_cast<int>(s.turning), static_cast<int>(s.value));
  });
  check_launch("latent_heads_forward");
}

void latent_heads_backward(const LatentHeadsBackward& call, cudaStream_t stream) {
  const LatentShape& s = call.shape;
  with_float(call.dq.dtype, [&]<class T>(T) {
    backward_kernel<T><<<static_cast<unsigned>(call.dq.rows), kThreads, 0, stream>>>(
        call.dq_out.as<T>(), call.dq_out.stride, call.dk_out.as<T>(), call.dk_out.stride, call.dv_out.as<T>(), call.dv_out.stride, call.dq.as<T>(), call.dq.stride,
        call.dexpanded.as<T>(), call.dexpanded.stride, call.dshared.as<T>(), call.dshared.stride, call.rope.as<float>(), call.rope.stride, rows_at(call.rope_row),
        call.interleaved, static_cast<int>(s.heads), static_cast<int>(s.plain), static_cast<int>(s.turning), static_cast<int>(s.value));
  });
  check_launch("latent_heads_backward");
}

void head_widths(const Tensor& from, std::int64_t from_dim, const Tensor& to, std::int64_t to_dim, cudaStream_t stream) {
  if (from.rows == 0) return;
  with_float(from.dtype, [&]<class T>(T) {
    widths_kernel<T><<<static_cast<unsigned>(from.rows), kThreads, 0, stream>>>(from.as<T>(), from.stride, static_cast<int>(from_dim), to.as<T>(), to.stride,
                                                                              static_cast<int>(to_dim), static_cast<int>(from.cols / from_dim));
  });
  check_launch("head_widths");
}

}  // namespace pipelora::cuda
