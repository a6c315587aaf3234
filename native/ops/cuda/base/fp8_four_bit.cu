// Weights of 4-bit codes to e4m3, in blocks of 64 columns or more: the same bits as fp8.cu's general kernel makes.
//
// Sixteen numbers are all that the columns of one scale can become where the whole row is divided by one number: a thread makes them once for 64
// columns, and codes choose among them by byte permutation. Where each column has a divisor of its own (the transpose) every code is computed; four
// rows of a thread are turned in its registers, so that shared memory sees words.
#include "ops/cuda/base/fp8.cuh"
#include "ops/cuda/base/fp8_four_bit.h"
#include "ops/cuda/base/quant_device.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
__device__ inline float2 rounded_pair(float a, float b) {
  return unpack2(T{}, pack2(T{}, a, b));
}

struct Source {
  Packed4 first;
  const Packed4* places;  // of several parts, on the device; or null
  Codes codes;
  const float* map;
  __device__ Packed4 part() const { return places == nullptr ? first : places[blockIdx.y]; }
};

/// Four of the sixteen bytes in `table`, by the codes in the lower half of `codes`: byte k by nibble k.
__device__ inline std::uint32_t four_of(const std::uint32_t (&table)[4], std::uint32_t codes) {
  const std::uint32_t places = codes & 0x7777u;
  const std::uint32_t lower = __byte_perm(table[0], table[1], places), upper = __byte_perm(table[2], table[3], places);
  return __byte_perm(lower, upper, (codes >> 1 & 0x4444u) | 0x3210u);
}
/// Of each byte the upper half, which holds the first of two codes, becomes the lower.
__device__ inline std::uint32_t in_order(std::uint32_t codes) { return (codes >> 4 & 0x0F0F0F0Fu) | (codes << 4 & 0xF0F0F0F0u); }

// A lane makes the sixteen numbers of one run of 64 columns; then four lanes beside each other go through their four runs, a quarter of each.
template <class T, class Via>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ Source source, const float* row_scales, std::int64_t first_row,
                                                        std::uint8_t* to) {
  const Packed4 w = source.part();
  const std::int64_t part_row = first_row + blockIdx.y * w.rows;
  const auto runs_of_row = static_cast<std::uint32_t>(w.in / 64);
  const std::int64_t runs = w.rows * runs_of_row;
  const int lane = static_cast<int>(threadIdx.x) % 32, quarter = lane % 4;
  const std::int64_t run = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x, run0 = run - quarter;
  std::uint8_t* const out = to + part_row * w.in;
  uint2 bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    bits[i] = run0 + i < runs ? __ldg(reinterpret_cast<const uint2*>(w.packed + (run0 + i) * 32) + quarter) : make_uint2(0, 0);
  std::uint32_t table[4] = {};
  if (run < runs) {
    const float scale = scale_of(w, source.map, w.absmax == nullptr ? __ldg(w.offset) : 0.0f, run * 64 >> w.block_shift);
    const float inverse = inverse_of(__ldg(row_scales + part_row + static_cast<std::uint32_t>(run) / runs_of_row));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* code = source.codes.value + 4 * i;
      const float2 a = rounded_pair<T>(rounded_to(code[0] * scale, Via{}), rounded_to(code[1] * scale, Via{}));
      const float2 b = rounded_pair<T>(rounded_to(code[2] * scale, Via{}), rounded_to(code[3] * scale, Via{}));
      table[i] = e4m3(a.x * inverse, a.y * inverse, b.x * inverse, b.y * inverse);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t own[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) own[k] = __shfl_sync(0xFFFFFFFFu, table[k], lane - quarter + i);
    const std::uint32_t low = in_order(bits[i].x), high = in_order(bits[i].y);
    if (run0 + i < runs)
      *reinterpret_cast<uint4*>(out + (run0 + i) * 64 + quarter * 16) = make_uint4(four_of(own, low), four_of(own, low >> 16), four_of(own, high), four_of(own, high >> 16));
  }
}

constexpr int kTileRows = 128, kTileColumns = 64;

/// Four rows of four bytes each become four columns.
__device__ inline void turn(std::uint32_t (&rows)[4]) {
  const std::uint32_t ab_low = __byte_perm(rows[0], rows[1], 0x5140), ab_high = __byte_perm(rows[0], rows[1], 0x7362);
  const std::uint32_t cd_low = __byte_perm(rows[2], rows[3], 0x5140), cd_high = __byte_perm(rows[2], rows[3], 0x7362);
  rows[0] = __byte_perm(ab_low, cd_low, 0x5410);
  rows[1] = __byte_perm(ab_low, cd_low, 0x7632);
  rows[2] = __byte_perm(ab_high, cd_high, 0x5410);
  rows[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

// A thread takes eight columns of four rows.
template <class T, class Via>
__global__ void __launch_bounds__(kThreads) transposed_kernel(const __grid_constant__ Source source, const float* col_scales, std::int64_t first_row,
                                                              std::int64_t matrix_rows, std::uint8_t* to) {
  __shared__ float table[16][32];
  __shared__ __align__(16) float inverse[kTileColumns];
  // Of a column the words of four rows; word w lies at w ^ 4 (column / 8), so that no two lanes of a warp meet in a bank.
  __shared__ std::uint32_t turned[kTileColumns][kTileRows / 4];
  const Packed4 w = source.part();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const std::int64_t part_row = first_row + blockIdx.y * w.rows, matrix = static_cast<std::uint32_t>(part_row) / static_cast<std::uint32_t>(matrix_rows);
  const auto across = static_cast<unsigned>(w.in / kTileColumns);
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x / across) * kTileRows, c0 = static_cast<std::int64_t>(blockIdx.x % across) * kTileColumns;
  const int piece = thread % 8, group = thread / 8;
  std::uint32_t bits[4];
  float scale[4];
  const float offset = w.absmax == nullptr ? __ldg(w.offset) : 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t element = min(row0 + 4 * group + i, w.rows - 1) * w.in + c0 + 8 * piece;
    bits[i] = __ldg(reinterpret_cast<const std::uint32_t*>(w.packed + element / 2));
    scale[i] = scale_of(w, source.map, offset, element >> w.block_shift);
  }
  for (int i = thread; i < 16 * 32; i += kThreads) table[i / 32][i % 32] = source.codes.value[i / 32];
  if (thread < kTileColumns) inverse[thread] = inverse_of(__ldg(col_scales + matrix * w.in + c0 + thread));
  __syncthreads();
  float divisors[8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 four = *reinterpret_cast<const float4*>(inverse + 8 * piece + 4 * i);
    divisors[4 * i] = four.x;
    divisors[4 * i + 1] = four.y;
    divisors[4 * i + 2] = four.z;
    divisors[4 * i + 3] = four.w;
  }
  std::uint32_t left[4], right[4];  // columns 0 to 3 and 4 to 7
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float v[8];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const std::uint32_t byte = bits[i] >> (8 * b) & 0xFFu;
      const float2 two = rounded_pair<T>(rounded_to(table[byte >> 4][lane] * scale[i], Via{}), rounded_to(table[byte & 15u][lane] * scale[i], Via{}));
      v[2 * b] = two.x * divisors[2 * b];
      v[2 * b + 1] = two.y * divisors[2 * b + 1];
    }
    left[i] = e4m3(v[0], v[1], v[2], v[3]);
    right[i] = e4m3(v[4], v[5], v[6], v[7]);
  }
  turn(left);
  turn(right);
  const int place = group ^ (4 * piece);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    turned[8 * piece + j][place] = left[j];
    turned[8 * piece + 4 + j][place] = right[j];
  }
  __syncthreads();
  std::uint8_t* const out = to + (matrix * w.in + c0) * matrix_rows + part_row - matrix * matrix_rows + row0;
  const std::int64_t rows = min(static_cast<std::int64_t>(kTileRows), w.rows - row0);
#pragma unroll
  for (int i = 0; i < kTileColumns * kTileRows / 4 / kThreads; ++i) {
    const int c = thread / 32 + i * (kThreads / 32), r = 4 * lane;
    const std::uint32_t word = turned[c][lane ^ (4 * (c / 8))];
    if (r < rows) *reinterpret_cast<std::uint32_t*>(out + c * matrix_rows + r) = word;
  }
}

}  // namespace

bool fp8_expands_four_bit(const HeldRows& weight, const Tensor& to, bool transposed) {
  const Packed4& w = weight.four_bit;
  const auto aligned = [](const void* data, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; };
  // Rows of a transpose are written in words: those of each part begin at one.
  return w.packed != nullptr && w.in % 64 == 0 && w.block_shift >= 6 && weight.first % 4 == 0 && weight.rows % 4 == 0 && weight.matrix_rows % 4 == 0 &&
         to.stride == (transposed ? weight.matrix_rows : w.in) && aligned(w.packed, 16) && aligned(to.data, 16) && weight.count <= 65535;
}

void fp8_expand_four_bit(const HeldRows& weight, DType compute, const QuantTables& tables, const float* scales, bool transposed, const Tensor& to,
                         cudaStream_t stream) {
  const Packed4& w = weight.four_bit;
  const Source source{w, weight.places, codes_of(w.type), tables.dynamic_map};
  const auto parts = static_cast<unsigned>(weight.count);
  with_half(compute, [&]<class T>(T) {
    const auto launch = [&]<class Via>(Via) {
      if (transposed) {
        const auto tiles = static_cast<unsigned>(w.in / kTileColumns) * blocks_for(w.rows, kTileRows);
        transposed_kernel<T, Via><<<dim3(tiles, parts), kThreads, 0, stream>>>(source, scales, weight.first, weight.matrix_rows, to.as<std::uint8_t>());
      } else {
        rows_kernel<T, Via><<<dim3(blocks_for(w.rows * (w.in / 64), kThreads), parts), kThreads, 0, stream>>>(source, scales, weight.first, to.as<std::uint8_t>());
      }
    };
    if (w.via == compute || w.via == DType::f32)
      launch(float{});
    else
      with_float(w.via, launch);
  });
  check_launch("a 4-bit weight in e4m3");
}

}  // namespace pipelora::cuda
