// LLM.int8() (Dettmers et al. 2022) with the rounding of bitsandbytes 0.50: vector-wise 8-bit weights and activations,
// columns of the activation with an outlier kept in floating point.
#pragma once

#include <cstdint>

#include "quant/float_format.h"

namespace pipelora::quant {

/// q [out, in] int8 row-major; scb [out] the fp32 absmax of each row (not divided by 127): W ~ q * scb / 127.
struct Weight8 {
  const std::int8_t* q = nullptr;
  const float* scb = nullptr;
  std::int64_t out = 0;
  std::int64_t in = 0;
};

/// weight [out, in] in `format` (unaligned allowed), rounded to `as` and then to f16 -> q, scb as above;
/// q = rint(w * (127 / absmax)), ties to even. A row of zeros gets zeros. Returns -1, or the flat index of the first
/// element that is NaN or infinite in f16.
std::int64_t quantise_weight8(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in,
                              std::int8_t* q, float* scb, int threads);

/// W[row_begin:row_end, col_begin:col_end] in `format`, each row at `stride` elements from the one before:
/// fp32 q * (scb / 127), rounded once (the input gradient's weight). One thread.
void dequantise_tile(const Weight8& weight, std::int64_t row_begin, std::int64_t row_end, std::int64_t col_begin,
                     std::int64_t col_end, void* target, Float format, std::int64_t stride);

/// An activation [tokens, in] of which row t starts at element t * stride.
struct Activation {
  const void* data = nullptr;
  Float format = Float::f32;
  std::int64_t tokens = 0;
  std::int64_t in = 0;
  std::int64_t stride = 0;
};

/// found[c] becomes 1 for every column of x with any |x| >= threshold (x in f16), else 0. One thread; a caller spreads the
/// columns over its threads. Outliers are a matter of the whole batch: list them when all columns are marked.
void mark_outlier_columns(const Activation& x, float threshold, std::uint8_t* found);

/// The marked columns, ascending -> columns; returns how many.
std::int64_t list_outlier_columns(const std::uint8_t* found, std::int64_t in, std::int32_t* columns);

/// x in f16 -> q [tokens, in] = rint(x * (127 / absmax)) and absmax [tokens], the row's largest magnitude below the
/// threshold (<= 0: none is left out). Magnitudes of at least the threshold, and all of the outlier columns, become 0. A
/// NaN makes its row's absmax NaN, and so everything computed from it. One thread; rows are independent.
void quantise_activation(const Activation& x, float threshold, const std::int32_t* outlier_columns,
                         std::int64_t outliers, std::int8_t* q, float* absmax);

/// What one product needs of its input.
struct Int8Input {
  Activation x;                    // read in the outlier columns; W's are dequantised to its format
  const std::int8_t* q = nullptr;  // [tokens, in]
  const float* absmax = nullptr;   // [tokens]
  const std::int32_t* outlier_columns = nullptr;
  std::int64_t outliers = 0;
};

/// Rows [token_begin, token_end) and columns [row_begin, row_end) of y = x Wᵀ + bias, fp32 [.., stride]:
/// f16(int32 * absmax * scb / 127² + bias), the integer sum exact, plus the outlier columns' product in fp32.
/// bias may be null. One thread. Tiles are independent: the grid never changes the result.
void int8_tile(const Int8Input& x, const Weight8& weight, const float* bias, std::int64_t token_begin,
               std::int64_t token_end, std::int64_t row_begin, std::int64_t row_end, float* y, std::int64_t stride);

/// c [m, n] (ldc) = a [m, k] (lda) * b [n, k]ᵀ (ldb), int32 sums of int8 products, exact while k < 2^17. One thread.
void int8_product(const std::int8_t* a, std::int64_t lda, std::int64_t m, const std::int8_t* b, std::int64_t ldb,
                  std::int64_t n, std::int64_t k, std::int32_t* c, std::int64_t ldc);

}  // namespace pipelora::quant
