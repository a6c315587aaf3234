// The gated delta rule, token by token. A state's columns do not know of each other: a warp has eight columns of one head in registers, a quarter of
// the rows a lane, and goes through its row of tokens without waiting for anybody.
#include "ops/cuda/delta/delta.h"
#include "ops/cuda/device/common.cuh"

namespace pipelora::cuda {

namespace {

constexpr float kLengthEps = 1e-6f;
constexpr int kColumns = 8;  // of a warp
constexpr int kWarps = 4;    // of a block

/// One warp a token and key head.
template <class T>
__global__ void lengths_kernel(const T* qkv, std::int64_t stride, std::int64_t key_heads, std::int64_t key_dim, std::int64_t key_width, float* q, float* k,
                               float* lengths, std::int64_t tokens) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, t = item / key_heads, h = item % key_heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (t >= tokens) return;
  for (int part = 0; part < 2; ++part) {
    const T* from = qkv + t * stride + part * key_heads * key_dim + h * key_dim;
    float squares = 0;
    for (std::int64_t c = lane; c < key_dim; c += 32) squares += widen(from[c]) * widen(from[c]);
    const float length = (part == 0 ? 1.0f / sqrtf(static_cast<float>(key_dim)) : 1.0f) / sqrtf(warp_sum(squares) + kLengthEps);
    float* to = (part == 0 ? q : k) + (t * key_heads + h) * key_width;
    for (std::int64_t c = lane; c < key_width; c += 32) to[c] = c < key_dim ? widen(from[c]) * length : 0.0f;
    if (lane == 0) lengths[t * 2 * key_heads + part * key_heads + h] = length;
  }
}

/// softplus without overflow.
__device__ inline float soft(float z) { return z > 20.0f ? z : log1pf(expf(z)); }

template <class T>
__global__ void gates_kernel(const T* b, std::int64_t b_stride, const T* a, std::int64_t a_stride, const float* a_log, const float* dt_bias, float* gates,
                             std::int64_t heads, std::int64_t tokens) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, t = item / heads, h = item % heads;
  if (t >= tokens) return;
  gates[t * 2 * heads + h] = 1.0f / (1.0f + expf(-widen(b[t * b_stride + h])));
  gates[t * 2 * heads + heads + h] = -expf(a_log[h]) * soft(widen(a[t * a_stride + h]) + dt_bias[h]);
}

struct Scan {
  const float *q, *k, *gates;
  const void* qkv;
  std::int64_t qkv_stride;
  void* out;
  std::int64_t out_stride;
  float* state;
  std::int64_t state_stride;
  float *changes, *states;
  const std::int32_t *cu, *key_length;
  std::int64_t key_heads, value_heads, key_dim, value_dim;
};

/// Lane = (row quarter, column). Rows of a quarter: kRows in a run; those behind key_dim meet zeros of q and k.
template <class T, int kRows>
__global__ void scan_kernel(const Scan call) {
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane / kColumns;
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kColumns + lane % kColumns;
  const std::int64_t head = blockIdx.y, s = blockIdx.z, key = head / (call.value_heads / call.key_heads);
  const std::int64_t begin = call.cu[s], tokens = call.cu[s + 1] - begin;
  const bool mine = column < call.value_dim;  // a lane outside goes along: its warp needs it
  const std::int64_t first = quarter * kRows;
  float state[kRows];
  const bool continued = call.state != nullptr && call.key_length[s] > tokens;
  float* kept = call.state == nullptr ? nullptr : call.state + s * call.state_stride + head * call.key_dim * call.value_dim + column;
#pragma unroll
  for (int i = 0; i < kRows; ++i) state[i] = continued && mine && first + i < call.key_dim ? kept[(first + i) * call.value_dim] : 0.0f;

  const std::int64_t key_stride = call.key_heads * 4 * kRows, value_at = 2 * call.key_heads * call.key_dim + head * call.value_dim + column;
  const float* k_at = call.k + begin * key_stride + key * 4 * kRows + first;
  const float* q_at = call.q + begin * key_stride + key * 4 * kRows + first;
  const T* v_at = static_cast<const T*>(call.qkv) + begin * call.qkv_stride + value_at;
  const float* gates = call.gates + begin * 2 * call.value_heads + head;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (call.states != nullptr && t > 0 && t % kDeltaChunk == 0 && mine) {
      float* to = call.states + ((begin / kDeltaChunk + t / kDeltaChunk - 1) * call.value_heads + head) * call.key_dim * call.value_dim + column;
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        if (first + i < call.key_dim) to[(first + i) * call.value_dim] = state[i];
    }
    const float beta = gates[0], decay = expf(gates[call.value_heads]), v = mine ? widen(*v_at) : 0.0f;
    float k[kRows], held[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kRows; i += 4) *reinterpret_cast<float4*>(k + i) = *reinterpret_cast<const float4*>(k_at + i);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      state[i] *= decay;
      held[i % 4] += k[i] * state[i];
    }
    float all = (held[0] + held[1]) + (held[2] + held[3]);
    all += __shfl_xor_sync(0xFFFFFFFFu, all, kColumns);
    all += __shfl_xor_sync(0xFFFFFFFFu, all, 2 * kColumns);
    const float change = beta * (v - all);
    float read[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kRows; i += 4) {
      const float4 q = *reinterpret_cast<const float4*>(q_at + i);
      state[i] += k[i] * change;
      state[i + 1] += k[i + 1] * change;
      state[i + 2] += k[i + 2] * change;
      state[i + 3] += k[i + 3] * change;
      read[0] += q.x * state[i];
      read[1] += q.y * state[i + 1];
      read[2] += q.z * state[i + 2];
      read[3] += q.w * state[i + 3];
    }
    float result = (read[0] + read[1]) + (read[2] + read[3]);
    result += __shfl_xor_sync(0xFFFFFFFFu, result, kColumns);
    result += __shfl_xor_sync(0xFFFFFFFFu, result, 2 * kColumns);
    if (quarter == 0 && mine) {
      if (call.changes != nullptr)
        call.changes[((begin + t) * call.value_heads + head) * call.value_dim + column] = change;
      else
        static_cast<T*>(call.out)[(begin + t) * call.out_stride + head * call.value_dim + column] = narrow<T>(result);
    }
    k_at += key_stride;
    q_at += key_stride;
    v_at += call.qkv_stride;
    gates += 2 * call.value_heads;
  }
  if (kept == nullptr || !mine) return;
#pragma unroll
  for (int i = 0; i < kRows; ++i)
    if (first + i < call.key_dim) kept[(first + i) * call.value_dim] = state[i];
}

}  // namespace

std::int64_t delta_key_width(std::int64_t key_dim) { return key_dim <= 32 ? 32 : key_dim <= 64 ? 64 : 128; }

void delta_prepare(const Tensor& qkv, const Tensor& b, const Tensor& a, const Tensor& a_log, const Tensor& dt_bias, const DeltaShape& shape,
                   const DeltaInputs& inputs, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const auto blocks = [](std::int64_t items, std::int64_t each) { return static_cast<unsigned>((items + each - 1) / each); };
  with_float(qkv.dtype, [&]<class T>(T) {
    lengths_kernel<T><<<blocks(qkv.rows * shape.key_heads, kThreads / 32), kThreads, 0, stream>>>(qkv.as<T>(), qkv.stride, shape.key_heads, shape.key_dim,
                                                                                               inputs.key_width, inputs.q.as<float>(), inputs.k.as<float>(),
                                                                                               inputs.lengths.as<float>(), qkv.rows);
    gates_kernel<T><<<blocks(qkv.rows * shape.value_heads, kThreads), kThreads, 0, stream>>>(b.as<T>(), b.stride, a.as<T>(), a.stride, a_log.as<float>(),
                                                                                            dt_bias.as<float>(), inputs.gates.as<float>(), shape.value_heads, qkv.rows);
  });
  check_launch("delta_prepare");
}

void delta_scan(const Tensor& qkv, const DeltaInputs& inputs, const Tensor& out, const Tensor& state, const DeltaRecord& record, const Sequences& sequences,
                const DeltaShape& shape, cudaStream_t stream) {
  const Scan call{inputs.q.as<float>(),
                  inputs.k.as<float>(),
                  inputs.gates.as<float>(),
                  qkv.data,
                  qkv.stride,
                  out.data,
                  out.stride,
                  state.as<float>(),
                  state.stride,
                  record.changes.as<float>(),
                  record.states.as<float>(),
                  sequences.cu_queries.device.as<std::int32_t>(),
                  sequences.key_length.device.as<std::int32_t>(),
                  shape.key_heads,
                  shape.value_heads,
                  shape.key_dim,
                  shape.value_dim};
  const dim3 grid(static_cast<unsigned>((shape.value_dim + kWarps * kColumns - 1) / (kWarps * kColumns)), static_cast<unsigned>(shape.value_heads),
                  static_cast<unsigned>(sequences.count()));
  with_float(qkv.dtype, [&]<class T>(T) {
    switch (inputs.key_width) {
      case 32: scan_kernel<T, 8><<<grid, kWarps * 32, 0, stream>>>(call); break;
      case 64: scan_kernel<T, 16><<<grid, kWarps * 32, 0, stream>>>(call); break;
      default: scan_kernel<T, 32><<<grid, kWarps * 32, 0, stream>>>(call);
    }
  });
  check_launch("delta_scan");
}

}  // namespace pipelora::cuda
