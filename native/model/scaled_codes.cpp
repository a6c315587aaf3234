#include "pipelora/model/scaled_codes.h"

#include <algorithm>
#include <cstring>

#include "pipelora/core/e4m3.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {

float scale_at(const void* scales, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::bf16: return to_float(static_cast<const bf16*>(scales)[index]);
    case DType::f16: return to_float(static_cast<const f16*>(scales)[index]);
    default: {
      float value;  // a file's tensors need not be aligned
      std::memcpy(&value, static_cast<const char*>(scales) + index * 4, sizeof value);
      return value;
    }
  }
}

}  // namespace

std::vector<bf16> expand_codes(const std::string& name, const MappedFile& file, const TensorSource& source) {
  const TensorSource::Scales& scales = source.scales;
  if (source.shape.size() != 2 || source.dtype != DType::bf16)
    throw Error(kQuantizationInvalid, name + ": only a matrix can stand in e4m3, as bfloat16");
  const std::int64_t rows = source.shape[0], cols = source.shape[1];
  const std::int64_t down = (rows + scales.block_rows - 1) / scales.block_rows, across = (cols + scales.block_cols - 1) / scales.block_cols;
  if (scales.dtype != DType::f32 && scales.dtype != DType::bf16 && scales.dtype != DType::f16)
    throw Error(kQuantizationInvalid, name + ": expected scales in float32, bfloat16 or float16, got " + dtype_name(scales.dtype));
  const auto wanted = static_cast<std::uint64_t>(down * across) * dtype_bytes(scales.dtype);
  if (scales.bytes != wanted)
    throw Error(kQuantizationInvalid, name + ": expected " + std::to_string(down * across) + " scales in " + std::to_string(wanted) + " bytes, got " +
                                          std::to_string(scales.bytes));
  const auto* codes = static_cast<const std::uint8_t*>(file.range(source.offset, static_cast<std::size_t>(rows * cols)));
  const MappedFile other(scales.path);
  const void* values = other.range(scales.offset, scales.bytes);
  std::vector<bf16> made(static_cast<std::size_t>(rows * cols));
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::uint8_t* from = codes + row * cols;
    bf16* to = made.data() + row * cols;
    for (std::int64_t piece = 0; piece < across; ++piece) {
      const float scale = scale_at(values, scales.dtype, row / scales.block_rows * across + piece);
      const std::int64_t end = std::min(cols, (piece + 1) * scales.block_cols);
      for (std::int64_t c = piece * scales.block_cols; c < end; ++c) to[c] = to_bf16(from_e4m3(from[c]) * scale);
    }
  }
  return made;
}

}  // namespace pipelora
