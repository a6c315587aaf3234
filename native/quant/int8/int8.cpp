#include "quant/int8/int8.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "quant/reciprocal.h"
#include "quant/row_kernels.h"

namespace pipelora::quant {
namespace {

// Elements converted at a time, so that the fp32 copy stays in the first-level cache.
constexpr std::int64_t kPiece = 1024;

// Compares false with everything: no magnitude is left out.
constexpr float kKeepAll = std::numeric_limits<float>::quiet_NaN();

// bitsandbytes' constants for 1 / 127² (rounded there to seven digits) and 1 / 127.
constexpr float kPerSquare = 6.200012e-05f;
constexpr float kPerUnit = 7.874015718698502e-3f;

const std::byte* row_of(const Activation& x, std::int64_t token) {
  return static_cast<const std::byte*>(x.data) + token * x.stride * bytes_of(x.format);
}

float code_scale(float absmax) {
  return absmax < std::numeric_limits<float>::min() ? 0.0f : 127.0f * fast_reciprocal(absmax);
}

/// One row: largest magnitude, then codes. `read` fills a piece of it with f16 values.
template <class Read>
float quantise_row(std::int64_t count, float threshold, std::int8_t* codes, const Read& read) {
  const RowKernels& run = row_kernels();
  float piece[kPiece];
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; i += kPiece) {
    const std::int64_t size = std::min(kPiece, count - i);
    read(i, size, piece);
    largest = std::max(largest, run.absmax_bits(piece, size, threshold));
  }
  const auto absmax = std::bit_cast<float>(largest);
  if (!std::isfinite(absmax)) return absmax;
  const float scale = code_scale(absmax);
  for (std::int64_t i = 0; i < count; i += kPiece) {
    const std::int64_t size = std::min(kPiece, count - i);
    if (count > kPiece) read(i, size, piece);
    run.quantise(piece, size, scale, threshold, codes + i);
  }
  return absmax;
}

}  // namespace

std::int64_t quantise_weight8(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in,
                              std::int8_t* q, float* scb, int threads) {
  const RowKernels& run = row_kernels();
  const bool twice = as == Float::bf16 && format != Float::bf16;
  std::int64_t bad = out * in;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : bad) if (threads > 1 && out > 1)
  for (std::int64_t row = 0; row < out; ++row) {
    const auto* from = static_cast<const std::byte*>(weight) + row * in * bytes_of(format);
    const auto read = [&](std::int64_t begin, std::int64_t size, float* piece) {
      const std::byte* source = from + begin * bytes_of(format);
      if (twice) {
        std::uint16_t halves[kPiece];
        run.widen(source, format, Float::bf16, size, piece);
        run.narrow(piece, size, Float::f16, halves);
        run.widen(halves, Float::f16, Float::f16, size, piece);
      } else {
        run.widen(source, format, Float::f16, size, piece);
      }
    };
    scb[row] = quantise_row(in, kKeepAll, q + row * in, read);
    if (std::isfinite(scb[row])) continue;
    float value;
    for (std::int64_t i = 0; i < in; ++i) {
      read(i, 1, &value);
      if (!std::isfinite(value)) {
        bad = std::min(bad, row * in + i);
        break;
      }
    }
  }
  return bad == out * in ? -1 : bad;
}

void dequantise_tile(const Weight8& weight, std::int64_t row_begin, std::int64_t row_end, std::int64_t col_begin,
                     std::int64_t col_end, void* target, Float format, std::int64_t stride) {
  const RowKernels& run = row_kernels();
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    run.dequantise(weight.q + row * weight.in + col_begin, col_end - col_begin, weight.scb[row] * (1.0f / 127.0f), format,
                   static_cast<std::byte*>(target) + (row - row_begin) * stride * bytes_of(format));
  }
}

void mark_outlier_columns(const Activation& x, float threshold, std::uint8_t* found) {
  const RowKernels& run = row_kernels();
  float piece[kPiece];
  std::fill_n(found, x.in, std::uint8_t{0});
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    for (std::int64_t i = 0; i < x.in; i += kPiece) {
      const std::int64_t size = std::min(kPiece, x.in - i);
      run.widen(row_of(x, token) + i * bytes_of(x.format), x.format, Float::f16, size, piece);
      run.mark(piece, size, threshold, found + i);
    }
  }
}

std::int64_t list_outlier_columns(const std::uint8_t* found, std::int64_t in, std::int32_t* columns) {
  std::int64_t count = 0;
  for (std::int64_t column = 0; column < in; ++column) {
    if (found[column]) columns[count++] = static_cast<std::int32_t>(column);
  }
  return count;
}

void quantise_activation(const Activation& x, float threshold, const std::int32_t* outlier_columns,
                         std::int64_t outliers, std::int8_t* q, float* absmax) {
  const RowKernels& run = row_kernels();
  const float limit = threshold > 0.0f ? threshold : kKeepAll;
  for (std::int64_t token = 0; token < x.tokens; ++token) {
    const std::byte* from = row_of(x, token);
    std::int8_t* codes = q + token * x.in;
    const auto read = [&](std::int64_t begin, std::int64_t size, float* piece) {
      run.widen(from + begin * bytes_of(x.format), x.format, Float::f16, size, piece);
    };
    absmax[token] = quantise_row(x.in, limit, codes, read);
    if (!std::isfinite(absmax[token])) std::fill_n(codes, x.in, std::int8_t{0});
    for (std::int64_t i = 0; i < outliers; ++i) codes[outlier_columns[i]] = 0;
  }
}

void int8_tile(const Int8Input& x, const Weight8& weight, const float* bias, std::int64_t token_begin,
               std::int64_t token_end, std::int64_t row_begin, std::int64_t row_end, float* y, std::int64_t stride) {
  const RowKernels& run = row_kernels();
  constexpr std::int64_t kTokens = 48;
  constexpr std::int64_t kRows = 64;
  constexpr std::int64_t kOutliers = 32;
  std::int32_t sums[kTokens * kRows];
  float columns[kOutliers * kRows];
  for (std::int64_t row = row_begin; row < row_end; row += kRows) {
    const std::int64_t rows = std::min(kRows, row_end - row);
    for (std::int64_t token = token_begin; token < token_end; token += kTokens) {
      const std::int64_t tokens = std::min(kTokens, token_end - token);
      float* out = y + (token - token_begin) * stride + (row - row_begin);
      int8_product(x.q + token * weight.in, weight.in, tokens, weight.q + row * weight.in, weight.in, rows, weight.in,
                   sums, kRows);
      for (std::int64_t t = 0; t < tokens; ++t) {
        run.epilogue(sums + t * kRows, rows, x.absmax[token + t] * kPerSquare, weight.scb + row,
                     bias ? bias + row : nullptr, out + t * stride);
      }
    }
    for (std::int64_t first = 0; first < x.outliers; first += kOutliers) {
      const std::int64_t count = std::min(kOutliers, x.outliers - first);
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t column = x.outlier_columns[first + i];
        for (std::int64_t r = 0; r < rows; ++r) {
          const auto code = static_cast<float>(weight.q[(row + r) * weight.in + column]);
          columns[i * kRows + r] = rounded(code * weight.scb[row + r] * kPerUnit, x.x.format);
        }
      }
      for (std::int64_t token = token_begin; token < token_end; ++token) {
        const std::byte* values = row_of(x.x, token);
        float* out = y + (token - token_begin) * stride + (row - row_begin);
        for (std::int64_t i = 0; i < count; ++i) {
          const float value = load_float(values, x.x.format, x.outlier_columns[first + i]);
          run.add_scaled(columns + i * kRows, rows, value, out);
        }
      }
    }
  }
}

}  // namespace pipelora::quant
