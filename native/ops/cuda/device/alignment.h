// What the kernels that read 16 bytes at a time need of a tensor.
#pragma once

#include <cstdint>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// Whether rows begin on 16 bytes (of 16-bit numbers) and are made of whole pieces of eight elements.
inline bool eights(const Tensor& tensor) {
  return tensor.cols % 8 == 0 && tensor.stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
}
/// The same of float32 rows and pieces of four, whatever the number of columns.
inline bool fours(const Tensor& tensor) {
  return tensor.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
}

}  // namespace pipelora::cuda
