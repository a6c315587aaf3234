// Products of one thread by oneDNN. A tile's bits depend on its shape alone: each is computed by one thread, and
// primitives are kept by shape.
#pragma once

#include <dnnl.hpp>
#include <map>

#include "pipelora/core/tensor.h"

namespace pipelora {

class Gemm {
 public:
  Gemm();
  /// c [m, n] f32 = (accumulate: +=) a [m, k] b [k, n], or b [n, k] transposed. a and b of one dtype (float32 or bfloat16).
  void multiply(const Tensor& a, const Tensor& b, bool transposed, const Tensor& c, bool accumulate = false);

 private:
  struct Shape {
    std::int64_t m, n, k, lda, ldb, ldc;
    bool transposed, accumulate;
    DType dtype;
    auto operator<=>(const Shape&) const = default;
  };
  struct Entry {
    dnnl::matmul primitive;
    dnnl::memory a, b, c;
  };
  Entry& entry(const Shape& shape);

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::map<Shape, Entry> entries_;
};

}  // namespace pipelora
