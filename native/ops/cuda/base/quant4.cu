// NF4 and FP4 with bitsandbytes' rounding. Dequantising is bound by the bytes it writes: a thread turns four packed bytes
// into eight elements, codes are looked up in a table with a copy for each lane (no bank conflicts).
#include "ops/cuda/base/quant_device.cuh"

namespace pipelora::cuda {

namespace {

struct Search {
  float threshold[15];
  std::uint8_t code[16];
  std::uint8_t zero;
};

constexpr int kThreads = 256;
constexpr int kRowsPerThread = 8;

/// Threads of a block along a row, eight elements each, and rows beside each other: short rows leave none idle.
dim3 expanding_block(std::int64_t in) {
  const auto along = static_cast<unsigned>(std::min<std::int64_t>(kThreads, in / 8));
  return {along, kThreads / along};
}

/// The reciprocal that a GPU's fast-math division computes: bitsandbytes is built with it.
__device__ inline float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// One weight, or (`all` not null) one of several of the same shape a layer of blocks.
template <class T, class Via>
__global__ void __launch_bounds__(kThreads) dequantise4_kernel(Packed4 w, const Packed4* all, Codes codes, const float* map, T* to,
                                                               std::int64_t stride) {
  if (all != nullptr) {
    w = all[blockIdx.z];
    to += static_cast<std::int64_t>(blockIdx.z) * w.rows * stride;
  }
  __shared__ float table[16][32];
  __shared__ float scales[256];
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x), threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int i = thread; i < 16 * 32; i += threads) table[i / 32][i % 32] = codes.value[i / 32];
  if (w.absmax == nullptr)
    for (int i = thread; i < 256; i += threads) scales[i] = map[i];
  __syncthreads();
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y) * kRowsPerThread;
  if (c >= w.in || first >= w.rows) return;
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  const int lane = thread % 32;
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
__global__ void dequantise4_plain_kernel(Packed4 w, const Packed4* all, Codes codes, const float* map, T* to, std::int64_t stride) {
  if (all != nullptr) {
    w = all[blockIdx.z];
    to += static_cast<std::int64_t>(blockIdx.z) * w.rows * stride;
  }
  const std::int64_t element = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (element >= w.rows * w.in) return;
  const std::uint32_t byte = w.packed[element / 2];
  const float scale = scale_of(w, map, w.absmax == nullptr ? *w.offset : 0.0f, element >> w.block_shift);
  const float value = codes.value[element % 2 == 0 ? byte >> 4 : byte & 15u] * scale;
  to[element / w.in * stride + element % w.in] = narrow<T>(rounded_to(value, Via{}));
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

}  // namespace

namespace {

void expand4(const Packed4& w, const Packed4* all, std::int64_t count, const QuantTables& tables, const Tensor& to, cudaStream_t stream) {
  const Codes codes = codes_of(w.type);
  const bool wide = w.in % 8 == 0 && w.block_shift >= 3 && eights(to);
  const auto layers = static_cast<unsigned>(count);
  with_float(to.dtype, [&]<class T>(T) {
    const auto launch = [&]<class Via>(Via) {
      if (wide) {
        const dim3 block = expanding_block(w.in);
        const dim3 grid(blocks_for(w.in, 8 * block.x), blocks_for(w.rows, kRowsPerThread * block.y), layers);
        dequantise4_kernel<T, Via><<<grid, block, 0, stream>>>(w, all, codes, tables.dynamic_map, to.as<T>(), to.stride);
      } else {
        const dim3 grid(blocks_for(w.rows * w.in, kThreads), 1, layers);
        dequantise4_plain_kernel<T, Via><<<grid, kThreads, 0, stream>>>(w, all, codes, tables.dynamic_map, to.as<T>(), to.stride);
      }
    };
    if (w.via == to.dtype || w.via == DType::f32)
      launch(float{});
    else
      with_float(w.via, launch);
  });
  check_launch("dequantise4");
}

}  // namespace

void dequantise4(const Packed4& w, const QuantTables& tables, const Tensor& to, cudaStream_t stream) { expand4(w, nullptr, 1, tables, to, stream); }

void dequantise4_all(const Packed4* weights, std::int64_t count, const Packed4& one, const QuantTables& tables, const Tensor& to, cudaStream_t stream) {
  expand4(one, weights, count, tables, to, stream);
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
