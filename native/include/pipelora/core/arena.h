// One arena a device: activations, gradients and workspaces. Reserved at once, handed out by a deterministic allocator.
//
// What outlives an operation (saved activations, results) is placed first-fit from the low end, workspaces from the high
// end, so that short-lived holes do not scatter long-lived tensors. Not thread-safe: only the engine's thread uses it.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "pipelora/core/tensor.h"

namespace pipelora {

class Arena;

/// Owns a piece of the arena; gives it back when destroyed.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      reset();
      swap(other);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { reset(); }

  explicit operator bool() const { return static_cast<bool>(tensor_); }
  const Tensor& tensor() const { return tensor_; }
  operator const Tensor&() const { return tensor_; }
  void reset();

 private:
  friend class Arena;
  Buffer(Arena* arena, Tensor tensor) : arena_(arena), tensor_(tensor) {}
  void swap(Buffer& other) noexcept {
    std::swap(arena_, other.arena_);
    std::swap(tensor_, other.tensor_);
  }

  Arena* arena_ = nullptr;
  Tensor tensor_;
};

enum class Placement { low, high };

class Arena {
 public:
  static constexpr std::size_t kAlignment = 256;

  /// `base` is device memory of `bytes` bytes that outlives the arena; null with 0 bytes.
  Arena(void* base, std::size_t bytes);

  /// A dense [rows, cols]. `what`, a literal, names it when there is no room: throws PL_OUT_OF_MEMORY with the arena's map.
  Buffer tensor(const char* what, DType dtype, std::int64_t rows, std::int64_t cols, Placement placement = Placement::low);
  Buffer workspace(const char* what, DType dtype, std::int64_t rows, std::int64_t cols) {
    return tensor(what, dtype, rows, cols, Placement::high);
  }

  /// Scratch of `least` to `most` bytes, as i8 [1, bytes], as much as there is in one piece without a higher peak; empty if that
  /// is under `least`, or `most` is 0. For what is only faster with it: the peak stays what the rest of the work needs.
  Buffer spare(const char* what, std::size_t least, std::size_t most);

  std::size_t capacity() const { return bytes_; }
  std::size_t used() const { return used_; }
  /// Highest `used()` since the last reset_peak().
  std::size_t peak() const { return peak_; }
  void reset_peak() { peak_ = used_; }

 private:
  friend class Buffer;
  void release(void* data);

  char* base_;
  std::size_t bytes_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  std::map<std::size_t, std::size_t> free_;  // offset -> bytes, neighbours merged
  struct Piece {
    std::size_t bytes;
    const char* what;
  };
  /// What lies in the arena, by name, the largest first.
  std::string map() const;
  std::map<std::size_t, Piece> taken_;
};

}  // namespace pipelora
