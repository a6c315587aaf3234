// Numbers in e4m3 for products: a scale a row (absmax / 448), so that no row's numbers depend on its neighbours. Rounded to nearest, ties
// to even; NaN stays NaN.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/base/quant.h"
#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// Rows [first, first + rows) of a weight as they are held, in one of three forms, or `count` such parts one below the other. Its values are rounded
/// to `compute` before anything else. A weight is one matrix, or several of `matrix_rows` rows one below the other, each part in one of them.
struct HeldRows {
  Tensor plain{};                 // in 16 or 32 bits
  Packed4 four_bit{};             // or in 4 bits
  Tensor codes{};                 // or in 8 bits
  const float* scales = nullptr;  // with codes, of all rows of the weight
  std::int64_t first = 0, rows = 0, in = 0, matrix_rows = 0;
  std::int64_t count = 1;
  const Packed4* places = nullptr;  // of several in 4 bits: where each is, on the device; four_bit is the first
};

/// row_scales [first …] and col_scales [matrices * in] become the larger of themselves and the rows' and columns' largest magnitudes.
void fp8_absmax(const HeldRows& weight, DType compute, const QuantTables& tables, float* row_scales, float* col_scales, cudaStream_t stream);
/// Magnitudes to scales, in place.
void fp8_scales(float* absmax, std::int64_t count, cudaStream_t stream);
/// to [out, in] (rows `first` on), each row divided by its scale; or each matrix transposed, to [matrices * in, matrix_rows], by scales of columns.
void fp8_expand(const HeldRows& weight, DType compute, const QuantTables& tables, const float* scales, bool transposed, const Tensor& to,
                cudaStream_t stream);
/// to [out, in] = codes [out, in] times each row's scale: the values that a weight in e4m3 stands for.
void fp8_values(const Tensor& codes, const float* scales, const Tensor& to, cudaStream_t stream);
/// Where a kernel leaves rows in e4m3: codes [T, n], n a multiple of 16, and scales [T]. codes null: nowhere.
struct RowCodes {
  std::uint8_t* codes = nullptr;
  std::int64_t stride = 0;
  float* scales = nullptr;
};

/// d = sums * factor * row scale * column scale + c + bias: what is left of a product in e4m3 whose library knows no scale a row.
struct ScaledSums {
  Tensor sums{};        // [m, n] in d's dtype; may be d
  float factor = 1;
  const float *row_scales = nullptr, *column_scales = nullptr;  // [m], [n]
  Tensor c{};           // [m, n] in 16 bits or float32, or empty; may be d where sums is not
  const void* bias = nullptr;  // [n] in d's dtype, or null
  Tensor d{};
};
void fp8_scale_sums(const ScaledSums& call, cudaStream_t stream);

/// Of x [T, n] in 16 bits, n a multiple of eight, rows on 16 bytes. Kernels that make such rows may write the same bits themselves (rmsnorm_rows, rmsnorm_lora_inner).
void fp8_rows(const Tensor& x, const RowCodes& to, cudaStream_t stream);
/// Of `rows` rows, the i-th of which is row order[i] / chosen of x: as gather_choices gathers them.
void fp8_gathered_rows(const Tensor& x, const std::int32_t* order, std::int64_t chosen, std::int64_t rows, const RowCodes& to, cudaStream_t stream);

}  // namespace pipelora::cuda
