// A heap array that is not zeroed first: each thread touches its own part when it fills it. Large ones ask for huge pages,
// without which the first touch of a weight costs more than quantising it.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pipelora::quant {

template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(std::int64_t size) : data_(allocate(static_cast<std::size_t>(size) * sizeof(T))), size_(size) {}

  T* data() { return static_cast<T*>(data_.get()); }
  const T* data() const { return static_cast<const T*>(data_.get()); }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  bool empty() const { return size_ == 0; }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };

  static void* allocate(std::size_t bytes) {
    if (bytes == 0) return nullptr;
    constexpr std::size_t kCacheLine = 64;
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    const std::size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
    void* data = std::aligned_alloc(alignment, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine);
    if (!data) throw std::bad_alloc();
    // Whole huge pages only: the rest of the last one is not taken.
    if (alignment == kHugePage) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return data;
  }

  std::unique_ptr<void, Free> data_;
  std::int64_t size_ = 0;
};

}  // namespace pipelora::quant
