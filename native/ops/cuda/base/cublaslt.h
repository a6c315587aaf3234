// Products through cuBLASLt, opened at run time against the part of its C interface declared here.
#pragma once

#include <cuda_runtime.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// d = alpha * a bᵀ (or a b) + c + bias. All row-major with their strides; a [m, k] is the activation.
struct Product {
  Tensor a;          // [m, k], or [k, m] if a_transposed
  Tensor b;          // [n, k] if b_transposed, else [k, n]
  bool b_transposed = true;
  Tensor c = {};     // [m, n] added, or empty; may be d
  Tensor d = {};     // [m, n]
  const void* bias = nullptr;  // [n] in d's dtype, or null
  bool a_transposed = false;
  float alpha = 1;  // int8: 1
  /// f8: of a's rows and of b's, which they are multiplied by, where compute capability is 9.0; or neither. Both operands' rows are multiples of 16 long.
  const float *a_scales = nullptr, *b_scales = nullptr;
  /// f8: sums stay in the tensor core's own registers, of fewer bits than float32, all the way (docs/decisions/compute/fp8.md).
  bool fast_sums = true;
};

class Products {
 public:
  /// Throws PL_DEVICE_UNAVAILABLE where libcublasLt.so.13 (or 12) cannot be opened.
  Products();
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

  /// f32, bf16, f16 with f32 sums (no TF32), int8 x int8 -> int32, or e4m3 x e4m3 -> 16 bits. `workspace` has kWorkspaceBytes.
  /// The algorithm is the library's first suggestion for the shape, kept: the same shapes give the same bits. Of long products
  /// it is the first with one of two tiles.
  /// `choice`: another of its suggestions, for measurements; false where it has no such.
  bool run(const Product& product, void* workspace, cudaStream_t stream, int choice = 0);

  std::size_t version() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pipelora::cuda
