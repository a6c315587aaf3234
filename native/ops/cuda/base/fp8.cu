#include "ops/cuda/base/fp8.cuh"
#include "ops/cuda/base/fp8_four_bit.h"
#include "ops/cuda/base/quant_device.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

// How eight numbers of a row are read, before they are rounded to the compute dtype. place(z, rows): where the z-th part of so many
// rows is.

template <class T>
struct PlainRows {
  const T* data;
  std::int64_t stride;
  struct Shared {};
  __device__ const T* place(std::int64_t z, std::int64_t rows) const { return data + z * rows * stride; }
  __device__ void prepare(Shared&, const T*) const {}
  __device__ Floats<8> read(const Shared&, const T* from, std::int64_t row, std::int64_t c) const { return load<8>(from + row * stride + c); }
};

template <class Via>
struct FourBitRows {
  Packed4 first;
  const Packed4* places;
  Codes codes;
  const float* map;
  struct Shared {
    float table[16][32];
    float map[256];
    float offset;
  };
  __device__ Packed4 place(std::int64_t z, std::int64_t) const { return places == nullptr ? first : places[z]; }
  __device__ void prepare(Shared& shared, const Packed4& w) const {
    for (int i = static_cast<int>(threadIdx.x); i < 16 * 32; i += kThreads) shared.table[i / 32][i % 32] = codes.value[i / 32];
    if (w.absmax == nullptr) {
      shared.map[threadIdx.x] = map[threadIdx.x];
      shared.offset = *w.offset;
    }
    __syncthreads();
  }
  __device__ Floats<8> read(const Shared& shared, const Packed4& w, std::int64_t row, std::int64_t c) const {
    const std::int64_t element = row * w.in + c;
    const std::uint32_t bits = __ldg(reinterpret_cast<const std::uint32_t*>(w.packed + element / 2));
    const float scale = scale_of(w, shared.map, shared.offset, element >> w.block_shift);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Floats<8> out;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const std::uint32_t byte = bits >> (8 * b) & 0xFFu;
      out.v[2 * b] = rounded_to(shared.table[byte >> 4][lane] * scale, Via{});
      out.v[2 * b + 1] = rounded_to(shared.table[byte & 15u][lane] * scale, Via{});
    }
    return out;
  }
};

struct EightBitRows {
  const std::int8_t* data;
  std::int64_t stride;
  const float* scales;
  struct Shared {};
  __device__ std::int64_t place(std::int64_t z, std::int64_t rows) const { return z * rows; }
  __device__ void prepare(Shared&, std::int64_t) const {}
  __device__ Floats<8> read(const Shared&, std::int64_t first, std::int64_t row, std::int64_t c) const {
    const uint2 bits = *reinterpret_cast<const uint2*>(data + (first + row) * stride + c);
    const float scale = scales[first + row] / 127.0f;
    Floats<8> out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out.v[i] = static_cast<float>(static_cast<std::int8_t>((i < 4 ? bits.x : bits.y) >> (8 * (i % 4)))) * scale;
    return out;
  }
};

enum class Pass { absmax, rows, transposed };

struct Tile {
  std::int64_t first, rows, in, matrix_rows;  // of the first part
  float *row_scales, *col_scales;  // absmax: both; else the one that divides
  std::uint8_t* to;
  std::int64_t stride;
};

/// Rows and columns of a block's tile: whole lines of what is written.
template <Pass kPass>
inline constexpr int kTileRows = kPass == Pass::transposed ? 128 : 32;
template <Pass kPass>
inline constexpr int kTileColumns = kPass == Pass::transposed ? 64 : 256;

/// Magnitudes as integers, in which they keep their order: the largest is the same in any order, NaN above all.
__device__ inline void raise(float* to, float magnitude) { atomicMax(reinterpret_cast<unsigned*>(to), __float_as_uint(magnitude)); }

template <Pass kPass, class T, class Rows>
__global__ void __launch_bounds__(kThreads) weight_kernel(const __grid_constant__ Rows source, const __grid_constant__ Tile tile) {
  constexpr int kPieces = kTileColumns<kPass> / 8, kEach = kTileRows<kPass> * kPieces / kThreads, kPitch = kTileRows<kPass> + 4;
  __shared__ typename Rows::Shared shared;
  __shared__ __align__(16) std::uint8_t turned[kPass == Pass::transposed ? kTileColumns<kPass> * kPitch : 4];
  __shared__ float largest[kPass == Pass::absmax ? kTileColumns<kPass> : 1];
  const auto place = source.place(blockIdx.z, tile.rows);
  source.prepare(shared, place);
  // Of the weight, its matrix and that matrix's rows.
  const std::int64_t first = tile.first + blockIdx.z * tile.rows, matrix = static_cast<std::uint32_t>(first) / static_cast<std::uint32_t>(tile.matrix_rows);
  float* col_scales = tile.col_scales + matrix * tile.in;
  const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.y) * kTileRows<kPass>, c0 = static_cast<std::int64_t>(blockIdx.x) * kTileColumns<kPass>;
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kPass == Pass::absmax) {
    for (int i = thread; i < kTileColumns<kPass>; i += kThreads) largest[i] = 0;
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int piece = thread + i * kThreads, r = piece / kPieces, p = piece % kPieces;
    const std::int64_t row = row0 + r, c = c0 + p * 8;
    const bool inside = row < tile.rows && c < tile.in;
    Floats<8> v{};
    if (inside) v = source.read(shared, place, row, c);
#pragma unroll
    for (int j = 0; j < 8; ++j) v.v[j] = widen(narrow<T>(v.v[j]));
    if constexpr (kPass == Pass::absmax) {
      float top = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float magnitude = fabsf(v.v[j]);
        top = __uint_as_float(max(__float_as_uint(top), __float_as_uint(magnitude)));
        raise(&largest[p * 8 + j], magnitude);
      }
      static_assert(kPieces == 32, "a row's pieces are a warp's");
      const unsigned of_row = __reduce_max_sync(0xFFFFFFFFu, __float_as_uint(top));
      if (p == 0 && row < tile.rows) raise(tile.row_scales + first + row, __uint_as_float(of_row));
    } else if constexpr (kPass == Pass::rows) {
      if (inside) *reinterpret_cast<uint2*>(tile.to + (first + row) * tile.stride + c) = e4m3_of(v, inverse_of(tile.row_scales[first + row]));
    } else {
      if (inside) {
#pragma unroll
        for (int j = 0; j < 8; ++j) v.v[j] *= inverse_of(col_scales[c + j]);
      }
      const uint2 bytes = e4m3_of(v, 1.0f);
#pragma unroll
      for (int j = 0; j < 8; ++j) turned[(p * 8 + j) * kPitch + r] = static_cast<std::uint8_t>((j < 4 ? bytes.x : bytes.y) >> (8 * (j % 4)));
    }
  }
  if constexpr (kPass == Pass::absmax) {
    __syncthreads();
    for (int i = thread; i < kTileColumns<kPass>; i += kThreads)
      if (c0 + i < tile.in) raise(col_scales + c0 + i, largest[i]);
  }
  if constexpr (kPass == Pass::transposed) {
    __syncthreads();
    constexpr int kWords = kTileRows<kPass> / 4;
    std::uint8_t* const out = tile.to + (matrix * tile.in + c0) * tile.stride + first - matrix * tile.matrix_rows + row0;
    const bool words = reinterpret_cast<std::uintptr_t>(out) % 4 == 0;
    for (int i = thread; i < kTileColumns<kPass> * kWords; i += kThreads) {
      const int c = i / kWords, r = i % kWords * 4;
      if (c0 + c >= tile.in || row0 + r >= tile.rows) continue;
      std::uint8_t* to = out + c * tile.stride + r;
      const std::uint8_t* from = turned + c * kPitch + r;
      if (words && row0 + r + 4 <= tile.rows) {
        *reinterpret_cast<std::uint32_t*>(to) = *reinterpret_cast<const std::uint32_t*>(from);
      } else {
        for (int j = 0; j < 4 && row0 + r + j < tile.rows; ++j) to[j] = from[j];
      }
    }
  }
}

__global__ void scales_kernel(float* absmax, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) absmax[i] = scale_of_absmax(absmax[i]);
}

/// Pieces of eight that each of the threads which share a row keeps.
template <int kSharing>
inline constexpr int kPiecesKept = kSharing == 32 ? 12 : 6;

template <class T>
struct RowsCall {
  const T* x;
  std::int64_t x_stride;
  const std::int32_t* order;  // or null: row i is x's
  std::int32_t chosen;
  RowCodes to;
  std::int64_t rows;
  int pieces;
};

// A warp or a block a row, which is kept in registers as far as they go; the rest is read again.
template <class T, int kSharing>
__global__ void __launch_bounds__(kThreads) rows_kernel(RowsCall<T> call) {
  constexpr int kKept = kPiecesKept<kSharing>;
  __shared__ unsigned largest_of[kThreads / 32];
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kSharing) + threadIdx.x / kSharing;
  if (row >= call.rows) return;  // a whole warp, or nobody
  const T* from = call.x + (call.order == nullptr ? row : call.order[row] / call.chosen) * call.x_stride;
  std::uint8_t* to = call.to.codes + row * call.to.stride;
  const int thread = static_cast<int>(threadIdx.x) % kSharing, pieces = call.pieces;
  const auto piece = [&](int p) { return *reinterpret_cast<const uint4*>(from + static_cast<std::int64_t>(p) * 8); };
  uint4 kept[kKept];
  Largest own;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int p = thread + i * kSharing;
    kept[i] = p < pieces ? piece(p) : uint4{};
    own.take(kept[i]);
  }
  for (int p = thread + kKept * kSharing; p < pieces; p += kSharing) own.take(piece(p));
  unsigned largest = __reduce_max_sync(0xFFFFFFFFu, own.bits());
  if constexpr (kSharing > 32) {
    if (thread % 32 == 0) largest_of[thread / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kSharing / 32; ++w) largest = max(largest, largest_of[w]);
  }
  const float scale = scale_of_absmax(magnitude_of<T>(largest)), inverse = inverse_of(scale);
  if (thread == 0) call.to.scales[row] = scale;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int p = thread + i * kSharing;
    if (p < pieces) *reinterpret_cast<uint2*>(to + static_cast<std::int64_t>(p) * 8) = e4m3_of(widen8<T>(kept[i]), inverse);
  }
  for (int p = thread + kKept * kSharing; p < pieces; p += kSharing)
    *reinterpret_cast<uint2*>(to + static_cast<std::int64_t>(p) * 8) = e4m3_of(widen8<T>(piece(p)), inverse);
}

template <class T>
__global__ void __launch_bounds__(kThreads) values_kernel(const std::uint8_t* codes, std::int64_t codes_stride, const float* scales, T* to,
                                                          std::int64_t to_stride, std::int64_t rows, std::int64_t pieces) {
  const std::int64_t p = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= pieces) return;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint2 bits = *reinterpret_cast<const uint2*>(codes + row * codes_stride + p * 8);
    const float scale = scales[row];
    Floats<8> values;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto pair = static_cast<__nv_fp8x2_storage_t>((i < 2 ? bits.x : bits.y) >> (16 * (i % 2)));
      const float2 two = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
      values.v[2 * i] = two.x * scale;
      values.v[2 * i + 1] = two.y * scale;
    }
    store<8>(to + row * to_stride + p * 8, values);
  }
}

template <Pass kPass>
void run(const HeldRows& weight, DType compute, const QuantTables& tables, const Tile& tile, cudaStream_t stream) {
  const dim3 grid(blocks_for(weight.in, kTileColumns<kPass>), blocks_for(weight.rows, kTileRows<kPass>), static_cast<unsigned>(weight.count));
  const auto launch = [&](const auto& source) {
    with_half(compute, [&]<class T>(T) { weight_kernel<kPass, T><<<grid, kThreads, 0, stream>>>(source, tile); });
  };
  if (weight.plain) {
    with_float(weight.plain.dtype, [&]<class From>(From) { launch(PlainRows<From>{weight.plain.as<From>(), weight.plain.stride}); });
  } else if (weight.codes) {
    launch(EightBitRows{weight.codes.as<std::int8_t>(), weight.codes.stride, weight.scales + weight.first});
  } else {
    const auto four = [&]<class Via>(Via) { launch(FourBitRows<Via>{weight.four_bit, weight.places, codes_of(weight.four_bit.type), tables.dynamic_map}); };
    if (weight.four_bit.via == compute || weight.four_bit.via == DType::f32)
      four(float{});
    else
      with_float(weight.four_bit.via, four);
  }
  check_launch("a weight in e4m3");
}

}  // namespace

void fp8_absmax(const HeldRows& weight, DType compute, const QuantTables& tables, float* row_scales, float* col_scales, cudaStream_t stream) {
  run<Pass::absmax>(weight, compute, tables, {weight.first, weight.rows, weight.in, weight.matrix_rows, row_scales, col_scales, nullptr, 0}, stream);
}

void fp8_scales(float* absmax, std::int64_t count, cudaStream_t stream) {
  scales_kernel<<<blocks_for(count, kThreads), kThreads, 0, stream>>>(absmax, count);
  check_launch("scales of a weight in e4m3");
}

void fp8_expand(const HeldRows& weight, DType compute, const QuantTables& tables, const float* scales, bool transposed, const Tensor& to,
                cudaStream_t stream) {
  if (fp8_expands_four_bit(weight, to, transposed)) return fp8_expand_four_bit(weight, compute, tables, scales, transposed, to, stream);
  auto* divisors = const_cast<float*>(scales);
  const Tile tile{weight.first, weight.rows, weight.in, weight.matrix_rows, divisors, divisors, to.as<std::uint8_t>(), to.stride};
  if (transposed)
    run<Pass::transposed>(weight, compute, tables, tile, stream);
  else
    run<Pass::rows>(weight, compute, tables, tile, stream);
}

void fp8_values(const Tensor& codes, const float* scales, const Tensor& to, cudaStream_t stream) {
  if (codes.rows == 0) return;
  const dim3 grid(blocks_for(codes.cols / 8, kThreads), static_cast<unsigned>(codes.rows < 4096 ? codes.rows : 4096));
  with_half(to.dtype, [&]<class T>(T) {
    values_kernel<T><<<grid, kThreads, 0, stream>>>(codes.as<std::uint8_t>(), codes.stride, scales, to.as<T>(), to.stride, codes.rows, codes.cols / 8);
  });
  check_launch("values of a weight in e4m3");
}

void fp8_rows(const Tensor& x, const RowCodes& to, cudaStream_t stream) { fp8_gathered_rows(x, nullptr, 1, x.rows, to, stream); }

void fp8_gathered_rows(const Tensor& x, const std::int32_t* order, std::int64_t chosen, std::int64_t rows, const RowCodes& to, cudaStream_t stream) {
  if (rows == 0) return;
  const int pieces = static_cast<int>(x.cols / 8);
  with_half(x.dtype, [&]<class T>(T) {
    const RowsCall<T> call{x.as<T>(), x.stride, order, static_cast<std::int32_t>(chosen), to, rows, pieces};
    if (pieces <= 32 * kPiecesKept<32>)
      rows_kernel<T, 32><<<blocks_for(rows, kThreads / 32), kThreads, 0, stream>>>(call);
    else
      rows_kernel<T, kThreads><<<blocks_for(rows, 1), kThreads, 0, stream>>>(call);
  });
  check_launch("rows in e4m3");
}

}  // namespace pipelora::cuda
