// The gated delta rule's backward pass, a chunk of C tokens at a time from the last to the first, a block a value head and row.
//
// With L the running sum of g in the chunk, W[i, j] = exp(L[i] - L[j]) for j <= i, S0 the state before the chunk, d the changes that the recurrence
// made (S = P + k dᵀ), and G the gradient of the state behind the chunk:
//
//   dd[i] = sum_{j >= i} W[j, i] (q[j] · k[i]) dout[j] - sum_{j > i} W[j, i] (k[j] · k[i]) dv[j] + W[C, i] Gᵀ k[i],  dv = beta dd: from the last on
//   dq[i] = exp(L[i]) S0 dout[i] + sum_{j <= i} W[i, j] (d[j] · dout[i]) k[j]
//   p[i]  = exp(L[i]) S0 dv[i] + sum_{j < i} W[i, j] (d[j] · dv[i]) k[j]                                         (P dv)
//   r[i]  = sum_{j >= i} W[j, i] (dout[j] · d[i]) q[j] - sum_{j > i} W[j, i] (dv[j] · d[i]) k[j] + W[C, i] G d[i]     (dS d)
//   dk = r - p;  db by dv · d;  dL[i] = q · dq - k · (p + r);  dg[t] = sum_{i >= t} dL[i] + sum(G S_behind)
//   G_before = exp(L[C]) G + sum_i exp(L[i]) (q[i] dout[i]ᵀ - k[i] dv[i]ᵀ)
//
// Sums are in float32, in an order of their own: no atomics.
#include "ops/cuda/delta/delta.h"
#include "ops/cuda/device/common.cuh"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChunk = static_cast<int>(kDeltaChunk);
constexpr int kRows = kChunk / kWarps;  // of a chunk, a warp
constexpr int kLanesColumns = 4;        // columns a lane: lane, lane + 32, …
constexpr int kSquare = kChunk + 1;     // row of a [chunk, chunk] matrix
static_assert(kRows == 4 && kMostDeltaDim == 32 * kLanesColumns);

struct Back {
  const float *q, *k, *gates, *lengths;
  std::int64_t key_width;
  const void* dout;
  std::int64_t dout_stride;
  const float *changes, *states;
  void *dqkv, *db, *da;
  std::int64_t dqkv_stride, db_stride, da_stride;
  const void* a;
  std::int64_t a_stride;
  const float *a_log, *dt_bias;
  float* grads;
  const std::int32_t* cu;
  int key_heads, value_heads, key_dim, value_dim;
};

/// Where things lie in shared memory, in floats. Rows of matrices are odd: columns and rows are read without conflicts.
struct Layout {
  int key_row, value_row;
  int slope, q, k, dout, change, dv, keys, queries, out_change, dv_change, slice, vectors, total;
  __host__ __device__ Layout(int key_dim, int value_dim) {
    key_row = key_dim | 1;
    value_row = value_dim | 1;
    int at = 0;
    const auto take = [&](int count) {
      const int here = at;
      at += count;
      return here;
    };
    slope = take(key_dim * value_row);
    q = take(kChunk * key_row);
    k = take(kChunk * key_row);
    dout = take(kChunk * value_row);
    change = take(kChunk * value_row);
    dv = take(kChunk * value_row);
    queries = take(kChunk * kSquare);
    keys = take(kChunk * kSquare);
    out_change = take(kChunk * kSquare);
    dv_change = take(kChunk * kSquare);
    slice = take(key_dim * 33);
    vectors = take(8 * kChunk + kWarps);
    total = at;
  }
};

/// acc[r][m] += sum_p a(row r, p) b(p, column m): a warp has four rows, a lane the columns lane + 32 m; columns behind `columns` are the last one again.
template <class A, class B>
__device__ inline void multiply(float (&acc)[kRows][kLanesColumns], int terms, A&& a, B&& b, int columns) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int at[kLanesColumns];
#pragma unroll
  for (int m = 0; m < kLanesColumns; ++m) at[m] = min(lane + 32 * m, columns - 1);
#pragma unroll 4
  for (int p = 0; p < terms; ++p) {
    float left[kRows], right[kLanesColumns];
#pragma unroll
    for (int r = 0; r < kRows; ++r) left[r] = a(r, p);
#pragma unroll
    for (int m = 0; m < kLanesColumns; ++m) right[m] = b(p, at[m]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m) acc[r][m] += left[r] * right[m];
  }
}
__device__ inline void clear(float (&acc)[kRows][kLanesColumns]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int m = 0; m < kLanesColumns; ++m) acc[r][m] = 0;
}

/// to[i, j] = a[i] · b[j] over `terms` columns, all of the chunk: a warp's four rows, a lane's one column.
__device__ inline void square(const float* a, const float* b, int row, int terms, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, first = static_cast<int>(threadIdx.x) / 32 * kRows;
  float acc[kRows] = {};
  for (int p = 0; p < terms; ++p) {
    const float right = b[lane * row + p];
#pragma unroll
    for (int r = 0; r < kRows; ++r) acc[r] += a[(first + r) * row + p] * right;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) to[(first + r) * kSquare + lane] = acc[r];
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const Back call) {
  extern __shared__ float shared[];
  const int dk = call.key_dim, dv = call.value_dim;
  const Layout at(dk, dv);
  float *slope = shared + at.slope, *q = shared + at.q, *k = shared + at.k, *dout = shared + at.dout, *change = shared + at.change, *grad_v = shared + at.dv;
  float *queries = shared + at.queries, *keys = shared + at.keys, *out_change = shared + at.out_change, *dv_change = shared + at.dv_change, *slice = shared + at.slice;
  float *level = shared + at.vectors, *beta = level + kChunk, *grow = beta + kChunk, *fade = grow + kChunk, *lift = fade + kChunk, *dot = lift + kChunk;
  float* partial = shared + at.vectors + 8 * kChunk;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, first_row = warp * kRows;
  const int head = static_cast<int>(blockIdx.x), s = static_cast<int>(blockIdx.y), key = head / (call.value_heads / call.key_heads);
  const std::int64_t begin = call.cu[s];
  const int tokens = call.cu[s + 1] - call.cu[s], chunks = (tokens + kChunk - 1) / kChunk;

  for (int i = thread; i < dk * at.value_row; i += kThreads) slope[i] = 0;
  float behind = 0;  // sum(G S) behind the chunk
  for (int n = chunks - 1; n >= 0; --n) {
    const std::int64_t first = begin + static_cast<std::int64_t>(n) * kChunk;
    const int count = min(kChunk, tokens - n * kChunk);
    __syncthreads();
    // Tokens behind the row's end are zeros with a decay of 1: they change nothing.
    for (int i = thread; i < kChunk * dk; i += kThreads) {
      const int t = i / dk, c = i % dk;
      const std::int64_t from = ((first + t) * call.key_heads + key) * call.key_width + c;
      q[t * at.key_row + c] = t < count ? call.q[from] : 0.0f;
      k[t * at.key_row + c] = t < count ? call.k[from] : 0.0f;
    }
    for (int i = thread; i < kChunk * dv; i += kThreads) {
      const int t = i / dv, c = i % dv;
      dout[t * at.value_row + c] = t < count ? widen(static_cast<const T*>(call.dout)[(first + t) * call.dout_stride + static_cast<std::int64_t>(head) * dv + c]) : 0.0f;
      change[t * at.value_row + c] = t < count ? call.changes[((first + t) * call.value_heads + head) * dv + c] : 0.0f;
    }
    if (warp == 0) {
      float g = lane < count ? call.gates[(first + lane) * 2 * call.value_heads + call.value_heads + head] : 0.0f;
      beta[lane] = lane < count ? call.gates[(first + lane) * 2 * call.value_heads + head] : 0.0f;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const float before = __shfl_up_sync(0xFFFFFFFFu, g, d);
        if (lane >= d) g += before;
      }
      level[lane] = g;
      grow[lane] = expf(g);
      fade[lane] = expf(__shfl_sync(0xFFFFFFFFu, g, 31) - g);
    }
    __syncthreads();

    square(q, k, at.key_row, dk, queries);
    square(k, k, at.key_row, dk, keys);
    square(dout, change, at.value_row, dv, out_change);
    __syncthreads();
    // Rows i, columns j <= i are weighted; what lies above goes nowhere. `keys` and `dv_change` have no diagonal.
    const auto weigh = [&](float* matrix, bool diagonal) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = first_row + r;
        const bool counts = lane < i || (diagonal && lane == i);
        matrix[i * kSquare + lane] = counts ? matrix[i * kSquare + lane] * expf(level[i] - level[lane]) : 0.0f;
      }
    };
    weigh(queries, true);
    weigh(keys, false);
    weigh(out_change, true);
    __syncthreads();

    // dd without what later dv give: rows i of [chunk, dv].
    float acc[kRows][kLanesColumns];
    clear(acc);
    multiply(acc, dk, [&](int r, int p) { return k[(first_row + r) * at.key_row + p]; }, [&](int p, int c) { return slope[p * at.value_row + c]; }, dv);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m) acc[r][m] *= fade[first_row + r];
    multiply(acc, kChunk, [&](int r, int p) { return queries[p * kSquare + first_row + r]; }, [&](int p, int c) { return dout[p * at.value_row + c]; }, dv);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m)
        if (lane + 32 * m < dv) grad_v[(first_row + r) * at.value_row + lane + 32 * m] = acc[r][m];
    __syncthreads();
    if (thread < dv)  // a column a thread, from the last token on
      for (int i = kChunk - 1; i >= 0; --i) {
        float sum = grad_v[i * at.value_row + thread];
        for (int j = i + 1; j < kChunk; ++j) sum -= keys[j * kSquare + i] * grad_v[j * at.value_row + thread];
        grad_v[i * at.value_row + thread] = beta[i] * sum;
      }
    __syncthreads();
    square(grad_v, change, at.value_row, dv, dv_change);
    __syncthreads();
    if (warp == 0) dot[lane] = dv_change[lane * kSquare + lane];
    __syncthreads();
    weigh(dv_change, false);
    __syncthreads();
    for (int i = thread; i < count * dv; i += kThreads) {
      const int t = i / dv, c = i % dv;
      static_cast<T*>(call.dqkv)[(first + t) * call.dqkv_stride + 2 * static_cast<std::int64_t>(call.key_heads) * dk + static_cast<std::int64_t>(head) * dv + c] =
          narrow<T>(grad_v[t * at.value_row + c]);
    }

    // S0 times dout and dv, 32 of its columns at a time; sum(G_before S0) has to wait for G_before, and goes along in `held`.
    const float* start = n == 0 ? nullptr : call.states + ((begin / kChunk + n - 1) * call.value_heads + head) * static_cast<std::int64_t>(dk) * dv;
    float of_q[kRows][kLanesColumns], of_p[kRows][kLanesColumns];
    clear(of_q);
    clear(of_p);
    for (int c0 = 0; c0 < dv && n > 0; c0 += 32) {
      const int columns = min(32, dv - c0);
      __syncthreads();
      for (int i = thread; i < dk * 32; i += kThreads) {
        const int row = i / 32, c = i % 32;
        slice[row * 33 + c] = c < columns ? start[static_cast<std::int64_t>(row) * dv + c0 + c] : 0.0f;
      }
      __syncthreads();
      const auto transposed = [&](int p, int c) { return slice[c * 33 + p]; };
      multiply(of_q, columns, [&](int r, int p) { return dout[(first_row + r) * at.value_row + c0 + p]; }, transposed, dk);
      multiply(of_p, columns, [&](int r, int p) { return grad_v[(first_row + r) * at.value_row + c0 + p]; }, transposed, dk);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m) {
        of_q[r][m] *= grow[first_row + r];
        of_p[r][m] *= grow[first_row + r];
      }
    const auto key_at = [&](int p, int c) { return k[p * at.key_row + c]; };
    multiply(of_q, kChunk, [&](int r, int p) { return out_change[(first_row + r) * kSquare + p]; }, key_at, dk);
    multiply(of_p, kChunk, [&](int r, int p) { return dv_change[(first_row + r) * kSquare + p]; }, key_at, dk);
    clear(acc);  // r
    multiply(acc, dv, [&](int r, int p) { return change[(first_row + r) * at.value_row + p]; }, [&](int p, int c) { return slope[c * at.value_row + p]; }, dk);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m) acc[r][m] *= fade[first_row + r];
    multiply(acc, kChunk, [&](int r, int p) { return out_change[p * kSquare + first_row + r]; }, [&](int p, int c) { return q[p * at.key_row + c]; }, dk);
    multiply(acc, kChunk, [&](int r, int p) { return -dv_change[p * kSquare + first_row + r]; }, key_at, dk);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = first_row + r;
      float along = 0;
      float* to = call.grads + (first + i) * 2 * static_cast<std::int64_t>(call.value_heads) * dk + static_cast<std::int64_t>(head) * dk;
#pragma unroll
      for (int m = 0; m < kLanesColumns; ++m) {
        const int c = lane + 32 * m;
        if (c >= dk) continue;
        along += q[i * at.key_row + c] * of_q[r][m] - k[i * at.key_row + c] * (of_p[r][m] + acc[r][m]);
        if (i >= count) continue;
        to[c] = of_q[r][m];
        to[static_cast<std::int64_t>(call.value_heads) * dk + c] = acc[r][m] - of_p[r][m];
      }
      along = warp_sum(along);
      if (lane == 0) lift[i] = along;
    }
    __syncthreads();
    if (warp == 0) {
      float g = lift[lane];  // summed from the last token on
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const float after = __shfl_down_sync(0xFFFFFFFFu, g, d);
        if (lane + d < 32) g += after;
      }
      g += behind;
      if (lane < count) {
        const std::int64_t t = first + lane;
        const float share = beta[lane];
        static_cast<T*>(call.db)[t * call.db_stride + head] = narrow<T>(share > 0.0f ? dot[lane] * (1.0f - share) / share : 0.0f);
        const float z = widen(static_cast<const T*>(call.a)[t * call.a_stride + head]) + call.dt_bias[head];
        static_cast<T*>(call.da)[t * call.da_stride + head] = narrow<T>(-g * expf(call.a_log[head]) / (1.0f + expf(-z)));
      }
    }
    if (n == 0) break;
    // G before the chunk, four of its rows a warp at a time, and its sum with S0.
    const float last = grow[kChunk - 1];
    float held = 0;
    for (int row0 = first_row; row0 < dk; row0 += kWarps * kRows) {
      clear(acc);
      const auto row_at = [&](int r) { return min(row0 + r, dk - 1); };
      multiply(acc, kChunk, [&](int r, int p) { return grow[p] * q[p * at.key_row + row_at(r)]; }, [&](int p, int c) { return dout[p * at.value_row + c]; }, dv);
      multiply(acc, kChunk, [&](int r, int p) { return -grow[p] * k[p * at.key_row + row_at(r)]; }, [&](int p, int c) { return grad_v[p * at.value_row + c]; }, dv);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int m = 0; m < kLanesColumns; ++m) {
          const int row = row0 + r, c = lane + 32 * m;
          if (row >= dk || c >= dv) continue;
          const float g = last * slope[row * at.value_row + c] + acc[r][m];
          slope[row * at.value_row + c] = g;
          held += g * start[static_cast<std::int64_t>(row) * dv + c];
        }
    }
    held = warp_sum(held);
    if (lane == 0) partial[warp] = held;
    __syncthreads();
    behind = 0;
    for (int w = 0; w < kWarps; ++w) behind += partial[w];
  }
}

/// The sum over a key head's value heads, and through the lengths: one warp a token and key head.
template <class T>
__global__ void lengths_back_kernel(const Back call, std::int64_t tokens) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, t = item / call.key_heads;
  const int h = static_cast<int>(item % call.key_heads), lane = static_cast<int>(threadIdx.x) % 32, dk = call.key_dim, group = call.value_heads / call.key_heads;
  if (t >= tokens) return;
  for (int part = 0; part < 2; ++part) {
    const float* y = (part == 0 ? call.q : call.k) + (t * call.key_heads + h) * call.key_width;
    const float* from = call.grads + (t * 2 + part) * static_cast<std::int64_t>(call.value_heads) * dk + static_cast<std::int64_t>(h) * group * dk;
    float values[kLanesColumns], along = 0;
#pragma unroll
    for (int m = 0; m < kLanesColumns; ++m) {
      const int c = lane + 32 * m;
      values[m] = 0;
      if (c >= dk) continue;
      for (int g = 0; g < group; ++g) values[m] += from[g * dk + c];
      along += values[m] * y[c];
    }
    along = warp_sum(along) * (part == 0 ? static_cast<float>(dk) : 1.0f);
    const float length = call.lengths[t * 2 * call.key_heads + part * call.key_heads + h];
    T* to = static_cast<T*>(call.dqkv) + t * call.dqkv_stride + (static_cast<std::int64_t>(part) * call.key_heads + h) * dk;
#pragma unroll
    for (int m = 0; m < kLanesColumns; ++m) {
      const int c = lane + 32 * m;
      if (c < dk) to[c] = narrow<T>(length * (values[m] - y[c] * along));
    }
  }
}

}  // namespace

std::size_t delta_backward_shared(const DeltaShape& shape) {
  return static_cast<std::size_t>(Layout(static_cast<int>(shape.key_dim), static_cast<int>(shape.value_dim)).total) * sizeof(float);
}

void delta_backward(const DeltaRuleBackward& call, const DeltaInputs& inputs, const DeltaRecord& record, const Tensor& grads, cudaStream_t stream) {
  const DeltaShape& shape = call.shape;
  const Back back{inputs.q.as<float>(),
                  inputs.k.as<float>(),
                  inputs.gates.as<float>(),
                  inputs.lengths.as<float>(),
                  inputs.key_width,
                  call.dout.data,
                  call.dout.stride,
                  record.changes.as<float>(),
                  record.states.as<float>(),
                  call.dqkv.data,
                  call.db.data,
                  call.da.data,
                  call.dqkv.stride,
                  call.db.stride,
                  call.da.stride,
                  call.a.data,
                  call.a.stride,
                  call.a_log.as<float>(),
                  call.dt_bias.as<float>(),
                  grads.as<float>(),
                  call.sequences->cu_queries.device.as<std::int32_t>(),
                  static_cast<int>(shape.key_heads),
                  static_cast<int>(shape.value_heads),
                  static_cast<int>(shape.key_dim),
                  static_cast<int>(shape.value_dim)};
  const std::size_t bytes = delta_backward_shared(shape);
  const std::int64_t tokens = call.sequences->tokens;
  with_float(call.qkv.dtype, [&]<class T>(T) {
    check(cudaFuncSetAttribute(backward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "cudaFuncSetAttribute");
    backward_kernel<T><<<dim3(static_cast<unsigned>(shape.value_heads), static_cast<unsigned>(call.sequences->count())), kThreads, bytes, stream>>>(back);
    lengths_back_kernel<T><<<static_cast<unsigned>((tokens * shape.key_heads + kWarps - 1) / kWarps), kThreads, 0, stream>>>(back, tokens);
  });
  check_launch("delta_backward");
}

}  // namespace pipelora::cuda
