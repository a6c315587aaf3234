// NF4 and FP4 with bitsandbytes' rounding. Dequantising is bound by the bytes it writes: a thread turns four packed bytes
// into eight elements, codes are looked up in a table with a copy for each lane (no bank conflicts).
#include "ops/cuda/common.cuh"
#include "ops/cuda/quant.h"

namespace pipelora::cuda {

namespace {

struct Codes {
  float value[16];
};
struct Search {
  float threshold[15];
  std::uint8_t code[16];
  std::uint8_t zero;
};

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 8;

__device__ inline float rounded_to(float x, float) { return x; }
__device__ inline float rounded_to(float x, bf16) { return __bfloat162float(__float2bfloat16_rn(x)); }
__device__ inline float rounded_to(float x, f16) { return __half2float(__float2half_rn(x)); }

/// The reciprocal that a GPU's fast-math division computes: bitsandbytes is built with it.
__device__ inline float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float scale_of(const Packed4& w, const float* map, float offset, std::int64_t block) {
  if (w.absmax != nullptr) return __ldg(w.absmax + block);
  return __fadd_rn(__fmul_rn(map[__ldg(w.codes + block)], __ldg(w.nested + (block >> 8))), offset);
}

template <class T, class Via>
__global__ void __launch_bounds__(kThreads) dequantise4_kernel(Packed4 w, Codes codes, const float* map, T* to,
                                                               std::int64_t stride) {
  __shared__ float table[16][32];
  __shared__ float scales[256];
  for (int i = static_cast<int>(threadIdx.x); i < 16 * 32; i += kThreads) table[i / 32][i % 32] = codes.value[i / 32];
  if (w.absmax == nullptr) scales[threadIdx.x] = map[threadIdx.x];
  __syncthreads();
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (c >= w.in) return;
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kRowsPerThread;
  std::uint32_t bits[kRowsPerThread];
  float scale[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    const std::int64_t element = min(first + i, w.rows - 1) * w.in + c;
    bits[i] = __ldg(reinterpret_cast<const std::uint32_t*>(w.packed + element / 2));
    scale[i] = scale_of(w, scales, offset, element >> w.block_shift);
  }
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    if (first + i >= w.rows) break;
    Floats<8> out;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const std::uint32_t byte = bits[i] >> (8 * b) & 0xFFu;
      out.v[2 * b] = rounded_to(table[byte >> 4][lane] * scale[i], Via{});
      out.v[2 * b + 1] = rounded_to(table[byte & 15u][lane] * scale[i], Via{});
    }
    store<8>(to + (first + i) * stride + c, out);
  }
}

// Any width: one element a thread.
template <class T, class Via>
__global__ void dequantise4_plain_kernel(Packed4 w, Codes codes, const float* map, T* to, std::int64_t stride) {
  const std::int64_t element = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= w.rows * w.in) return;
  const std::uint32_t byte = w.packed[element / 2];
  const float scale = scale_of(w, map, w.absmax == nullptr ? *w.offset : 0.0f, element >> w.block_shift);
  const float value = codes.value[element % 2 == 0 ? byte >> 4 : byte & 15u] * scale;
  to[element / w.in * stride + element % w.in] = narrow<T>(rounded_to(value, Via{}));
}

template <class T>
struct FewCall {
  const T* x;
  std::int64_t x_stride;
  const T* bias;
  const T* residual;
  std::int64_t residual_stride;
  const float* inner;
  std::int64_t inner_stride;
  const float* bt;
  std::int64_t bt_stride;
  int rank;
  float scale;
  T* y;
  std::int64_t y_stride;
};

constexpr int kFewRows = 2;  // of the weight, a warp

// A lane takes 32 neighbouring elements of a row at a time. x lies in shared memory with a gap behind every 32 elements, so that
// the lanes' j-th elements lie in different banks.
constexpr int kPieceFloats = 1024 + 32;
template <class T, class Via, int kTokens>
__global__ void __launch_bounds__(kThreads) product_of_few_kernel(Packed4 w, Codes codes, const float* map, FewCall<T> call) {
  extern __shared__ float x_shared[];  // [kTokens][pieces][kPieceFloats]
  __shared__ float table[16][32];
  __shared__ float scales[256];
  const int pieces = static_cast<int>((w.in + 1023) / 1024);
  for (int i = static_cast<int>(threadIdx.x); i < 16 * 32; i += kThreads) table[i / 32][i % 32] = codes.value[i / 32];
  if (w.absmax == nullptr) scales[threadIdx.x] = map[threadIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * pieces * 1024; i += kThreads) {
    const int t = i / (pieces * 1024), c = i % (pieces * 1024);
    x_shared[(t * pieces + c / 1024) * kPieceFloats + c % 1024 + c % 1024 / 32] = c < w.in ? widen(call.x[t * call.x_stride + c]) : 0.0f;
  }
  __syncthreads();
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32) * kFewRows;
  if (first >= w.rows) return;
  float sums[kFewRows][kTokens] = {};
  for (int piece = 0; piece < pieces; ++piece) {
    const std::int64_t c = piece * 1024 + lane * 32;
    uint4 bits[kFewRows];
    float scale[kFewRows];
#pragma unroll
    for (int r = 0; r < kFewRows; ++r) {
      const std::int64_t element = min(first + r, w.rows - 1) * w.in + c;
      const bool in = c < w.in;
      bits[r] = in ? __ldg(reinterpret_cast<const uint4*>(w.packed + element / 2)) : make_uint4(0, 0, 0, 0);
      scale[r] = in ? scale_of(w, scales, offset, element >> w.block_shift) : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < 32; j += 2) {
      float x[2][kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        x[0][t] = x_shared[(t * pieces + piece) * kPieceFloats + lane * 33 + j];
        x[1][t] = x_shared[(t * pieces + piece) * kPieceFloats + lane * 33 + j + 1];
      }
#pragma unroll
      for (int r = 0; r < kFewRows; ++r) {
        const std::uint32_t word = j / 8 == 0 ? bits[r].x : j / 8 == 1 ? bits[r].y : j / 8 == 2 ? bits[r].z : bits[r].w;
        const std::uint32_t byte = word >> (j % 8 * 4) & 0xFFu;
        const float a = rounded_to(rounded_to(table[byte >> 4][lane] * scale[r], Via{}), T{});
        const float b = rounded_to(rounded_to(table[byte & 15u][lane] * scale[r], Via{}), T{});
#pragma unroll
        for (int t = 0; t < kTokens; ++t) sums[r][t] += a * x[0][t] + b * x[1][t];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kFewRows; ++r) {
    const std::int64_t row = first + r;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float total = warp_sum(sums[r][t]);
      if (lane != 0 || row >= w.rows) continue;
      if (call.bias != nullptr) total += widen(call.bias[row]);
      if (call.residual != nullptr) total += widen(call.residual[t * call.residual_stride + row]);
      float term = 0;
      for (int k = 0; k < call.rank; ++k) term += call.inner[t * call.inner_stride + k] * call.bt[k * call.bt_stride + row];
      call.y[t * call.y_stride + row] = narrow<T>(total + call.scale * term);
    }
  }
}

// One warp a block.
template <class T, class As>
__global__ void quantise4_kernel(const T* source, std::int64_t count, int shift, Search search, std::uint8_t* packed,
                                 float* absmax, std::int64_t base, unsigned long long* bad) {
  __shared__ float threshold[15];
  __shared__ std::uint8_t code[16];
  if (threadIdx.x < 15) threshold[threadIdx.x] = search.threshold[threadIdx.x];
  if (threadIdx.x < 16) code[threadIdx.x] = search.code[threadIdx.x];
  __syncthreads();
  const std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t begin = block << shift;
  if (begin >= count) return;
  const std::int64_t end = min(count, begin + (std::int64_t{1} << shift));
  std::uint32_t largest = 0;
  for (std::int64_t i = begin + lane; i < end; i += 32) {
    const float v = rounded_to(widen(source[i]), As{});
    const std::uint32_t magnitude = __float_as_uint(v) & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) atomicMin(bad, static_cast<unsigned long long>(base + i));
    largest = max(largest, magnitude);
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, d));
  const float scale = __uint_as_float(largest);
  if (lane == 0) absmax[block] = scale;
  const bool zeros = scale < 1.17549435e-38f;
  const float inverse = fast_reciprocal(scale);
  const auto code_at = [&](std::int64_t i) -> std::uint32_t {
    if (zeros || i >= end) return search.zero;
    const float y = __fmul_rn(rounded_to(widen(source[i]), As{}), inverse);
    int rank = 0;
#pragma unroll
    for (int k = 0; k < 15; ++k) rank += y > threshold[k] ? 1 : 0;
    return code[rank];
  };
  for (std::int64_t i = begin + 2 * lane; i < end; i += 64) {
    packed[i / 2] = static_cast<std::uint8_t>(code_at(i) << 4 | code_at(i + 1));
  }
}

__global__ void absmax_sum_kernel(const float* absmax, std::int64_t count, double* partial) {
  __shared__ double shared[32];
  double total = 0;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<std::int64_t>(gridDim.x) * kThreads)
    total += absmax[i];
  total = block_sum(total, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

__global__ void absmax_mean_kernel(const double* partial, int parts, std::int64_t count, float* offset) {
  double total = 0;
  for (int i = 0; i < parts; ++i) total += partial[i];
  *offset = static_cast<float>(total / static_cast<double>(count));
}

// A block of threads takes 256 scales.
__global__ void quantise_absmax_kernel(const float* absmax, std::int64_t count, const float* thresholds, const float* offset,
                                       std::uint8_t* codes, float* nested) {
  __shared__ float shared[8];
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const float centred = i < count ? __fsub_rn(absmax[i], *offset) : 0.0f;
  const float largest_of_warp = warp_max(fabsf(centred));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest_of_warp;
  __syncthreads();
  float largest = 0;
  for (int w = 0; w < 8; ++w) largest = fmaxf(largest, shared[w]);
  if (threadIdx.x == 0) nested[blockIdx.x] = largest;
  if (i >= count) return;
  constexpr std::uint8_t kZero = 127;
  if (largest < 1.17549435e-38f) {
    codes[i] = kZero;
    return;
  }
  const float z = __fmul_rn(centred, fast_reciprocal(largest));
  int rank = 0;
#pragma unroll
  for (int step = 128; step > 0; step /= 2) rank += z > thresholds[rank + step - 1] ? step : 0;
  codes[i] = static_cast<std::uint8_t>(rank);
}

Codes codes_of(quant::FourBit type) {
  Codes codes;
  for (int i = 0; i < 16; ++i) codes.value[i] = quant::codebook4(type).values[static_cast<std::size_t>(i)];
  return codes;
}

}  // namespace

void dequantise4(const Packed4& w, const QuantTables& tables, const Tensor& to, cudaStream_t stream) {
  const Codes codes = codes_of(w.type);
  const bool wide = w.in % 8 == 0 && w.block_shift >= 3 && eights(to);
  with_float(to.dtype, [&]<class T>(T) {
    const auto launch = [&]<class Via>(Via) {
      if (wide) {
        const dim3 grid(blocks_for(w.in, 8 * kThreads), blocks_for(w.rows, kRowsPerThread));
        dequantise4_kernel<T, Via><<<grid, kThreads, 0, stream>>>(w, codes, tables.dynamic_map, to.as<T>(), to.stride);
      } else {
        dequantise4_plain_kernel<T, Via><<<blocks_for(w.rows * w.in, kThreads), kThreads, 0, stream>>>(
            w, codes, tables.dynamic_map, to.as<T>(), to.stride);
      }
    };
    if (w.via == to.dtype || w.via == DType::f32)
      launch(float{});
    else
      with_float(w.via, launch);
  });
  check_launch("dequantise4");
}

bool product_of_few(const Packed4& w, const QuantTables& tables, const FewTokens& call, cudaStream_t stream) {
  const std::int64_t tokens = call.x.rows, pieces = (w.in + 1023) / 1024;
  const auto bytes = static_cast<std::size_t>(tokens * pieces * kPieceFloats) * sizeof(float);
  constexpr std::size_t kMostShared = 160 << 10;
  if (tokens < 1 || tokens > kFewTokens || w.in % 32 != 0 || w.block_shift < 5 || bytes > kMostShared ||
      reinterpret_cast<std::uintptr_t>(w.packed) % 16 != 0)
    return false;
  with_float(call.y.dtype, [&]<class T>(T) {
    FewCall<T> few{};
    few.x = call.x.as<T>();
    few.x_stride = call.x.stride;
    few.bias = static_cast<const T*>(call.bias);
    few.residual = call.residual.as<T>();
    few.residual_stride = call.residual.stride;
    few.inner = call.inner.as<float>();
    few.inner_stride = call.inner.stride;
    few.bt = call.bt.as<float>();
    few.bt_stride = call.bt.stride;
    few.rank = static_cast<int>(call.bt.rows);
    few.scale = call.scale;
    few.y = call.y.as<T>();
    few.y_stride = call.y.stride;
    const auto launch = [&]<class Via>(Via) {
      const auto run = [&]<int kTokens>() {
        const auto kernel = product_of_few_kernel<T, Via, kTokens>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of a product");
        kernel<<<blocks_for(w.rows, kThreads / 32 * kFewRows), kThreads, bytes, stream>>>(w, codes_of(w.type), tables.dynamic_map, few);
      };
      switch (tokens) {
        case 1: return run.template operator()<1>();
        case 2: return run.template operator()<2>();
        case 3: return run.template operator()<3>();
        default: return run.template operator()<4>();
      }
    };
    if (w.via == call.y.dtype || w.via == DType::f32)
      launch(float{});
    else
      with_float(w.via, launch);
  });
  check_launch("product_of_few");
  return true;
}

void quantise4(const void* source, DType dtype, DType as, std::int64_t count, int block_shift, quant::FourBit type,
               std::uint8_t* packed, float* absmax, std::int64_t base, unsigned long long* bad, cudaStream_t stream) {
  const quant::Codebook4& book = quant::codebook4(type);
  Search search;
  for (std::size_t i = 0; i < 15; ++i) search.threshold[i] = book.thresholds[i];
  for (std::size_t i = 0; i < 16; ++i) search.code[i] = book.code_of_rank[i];
  search.zero = book.zero;
  const std::int64_t blocks = (count + (std::int64_t{1} << block_shift) - 1) >> block_shift;
  with_float(dtype, [&]<class T>(T) {
    with_float(as, [&]<class As>(As) {
      quantise4_kernel<T, As><<<blocks_for(blocks, kThreads / 32), kThreads, 0, stream>>>(
          static_cast<const T*>(source), count, block_shift, search, packed, absmax, base, bad);
    });
  });
  check_launch("quantise4");
}

void quantise_absmax(const float* absmax, std::int64_t count, const QuantTables& tables, double* partial, float* offset,
                     std::uint8_t* codes, float* nested, cudaStream_t stream) {
  const unsigned blocks = std::min(1024u, blocks_for(count, kThreads));
  absmax_sum_kernel<<<blocks, kThreads, 0, stream>>>(absmax, count, partial);
  absmax_mean_kernel<<<1, 1, 0, stream>>>(partial, static_cast<int>(blocks), count, offset);
  quantise_absmax_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(absmax, count, tables.dynamic_thresholds, offset, codes, nested);
  check_launch("quantise_absmax");
}

}  // namespace pipelora::cuda
