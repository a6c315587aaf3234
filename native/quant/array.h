// A heap array that is not zeroed first: each thread touches its own part when it fills it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace pipelora::quant {

template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(std::int64_t size)
      : data_(std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(size))), size_(size) {}

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  bool empty() const { return size_ == 0; }

 private:
  std::unique_ptr<T[]> data_;
  std::int64_t size_ = 0;
};

}  // namespace pipelora::quant
