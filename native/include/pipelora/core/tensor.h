// A tensor is a view: device pointer, dtype and two extents. Nothing here owns memory (see arena.h).
//
// Shape suffixes used everywhere: T tokens (flat, no padding), S sequences, D hidden, H heads, K kv heads, E head width,
// F feed-forward width, V vocabulary, R rank, L label tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pipelora {

/// f8: e4m3, of four bits (three of them after the point), up to 448, without infinities.
enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean, f8 };

std::size_t dtype_bytes(DType dtype);
/// torch's names: "float32", "bfloat16", …
const char* dtype_name(DType dtype);
/// Throws PL_TENSOR_MISMATCH for a name that is no dtype.
DType dtype_from_name(std::string_view name);

/// [rows, cols] with `stride` elements from one row to the next; the columns of a row are contiguous.
/// Higher ranks are folded: q is [T, H * E], key/value caches are [S * capacity, K * E], vectors are [1, n].
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Tensor() = default;
  Tensor(void* data_, DType dtype_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_ = -1)
      : data(data_), dtype(dtype_), rows(rows_), cols(cols_), stride(stride_ < 0 ? cols_ : stride_) {}

  explicit operator bool() const { return data != nullptr; }
  bool dense() const { return stride == cols || rows <= 1; }
  std::int64_t size() const { return rows * cols; }
  /// Bytes of the elements, gaps between rows not counted.
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * dtype_bytes(dtype); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  Tensor columns(std::int64_t first, std::int64_t count) const {
    return Tensor(static_cast<char*>(data) + static_cast<std::size_t>(first) * dtype_bytes(dtype), dtype, rows, count,
                  stride);
  }
  Tensor row_range(std::int64_t first, std::int64_t count) const {
    return Tensor(static_cast<char*>(data) + static_cast<std::size_t>(first * stride) * dtype_bytes(dtype), dtype, count,
                  cols, stride);
  }
};

/// A stretch of host memory that a device tensor is copied from or to.
struct HostSpan {
  std::uint8_t* data = nullptr;
  std::size_t bytes = 0;
};

/// A tensor in host memory, as read from a checkpoint: row-major, dense.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  std::size_t bytes() const { return static_cast<std::size_t>(rows * cols) * dtype_bytes(dtype); }
};

std::string shape_text(std::int64_t rows, std::int64_t cols);

}  // namespace pipelora
