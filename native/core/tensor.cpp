#include "pipelora/core/tensor.h"

#include <array>
#include <utility>

#include "pipelora/core/error.h"

namespace pipelora {

namespace {
struct DTypeInfo {
  DType dtype;
  const char* name;
  std::size_t bytes;
};
constexpr std::array<DTypeInfo, 11> kDTypes{{{DType::f64, "float64", 8},
                                             {DType::f32, "float32", 4},
                                             {DType::f16, "float16", 2},
                                             {DType::bf16, "bfloat16", 2},
                                             {DType::i64, "int64", 8},
                                             {DType::i32, "int32", 4},
                                             {DType::i16, "int16", 2},
                                             {DType::i8, "int8", 1},
                                             {DType::u8, "uint8", 1},
                                             {DType::boolean, "bool", 1},
                                             {DType::f8, "float8_e4m3fn", 1}}};
}  // namespace

std::size_t dtype_bytes(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].bytes; }
const char* dtype_name(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  for (const DTypeInfo& info : kDTypes)
    if (name == info.name) return info.dtype;
  throw Error(kTensorMismatch, "expected a dtype such as float32 or bfloat16, got \"" + std::string(name) + "\"");
}

std::string shape_text(std::int64_t rows, std::int64_t cols) {
  return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

}  // namespace pipelora
