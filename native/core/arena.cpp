#include "pipelora/core/arena.h"

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>
#include <vector>

#include "pipelora/core/error.h"

namespace pipelora {

void Buffer::reset() {
  if (arena_ != nullptr) arena_->release(tensor_.data);
  arena_ = nullptr;
  tensor_ = Tensor();
}

Arena::Arena(void* base, std::size_t bytes)
    : base_(static_cast<char*>(base)), bytes_(bytes / kAlignment * kAlignment) {
  if (bytes_ > 0) free_.emplace(0, bytes_);
}

Buffer Arena::tensor(const char* what, DType dtype, std::int64_t rows, std::int64_t cols, Placement placement) {
  const std::size_t wanted = static_cast<std::size_t>(rows * cols) * dtype_bytes(dtype);
  const std::size_t bytes = std::max<std::size_t>(1, (wanted + kAlignment - 1) / kAlignment) * kAlignment;

  auto fits = [bytes](const auto& hole) { return hole.second >= bytes; };
  auto hole = free_.end();
  if (placement == Placement::low) {
    hole = std::find_if(free_.begin(), free_.end(), fits);
  } else {
    const auto found = std::find_if(free_.rbegin(), free_.rend(), fits);
    if (found != free_.rend()) hole = std::prev(found.base());
  }
  if (hole == free_.end()) {
    std::size_t largest = 0;
    for (const auto& [offset, size] : free_) largest = std::max(largest, size);
    throw Error(kOutOfMemory, std::string("no room in the arena for ") + what + " " + shape_text(rows, cols) + " " +
                                  dtype_name(dtype) + ": " + std::to_string(bytes) + " bytes wanted, " +
                                  std::to_string(bytes_ - used_) + " of " + std::to_string(bytes_) +
                                  " free in " + std::to_string(free_.size()) +
                                  " pieces, the largest has " + std::to_string(largest) + map());
  }
  const auto [start, size] = *hole;
  free_.erase(hole);
  const std::size_t offset = placement == Placement::low ? start : start + size - bytes;
  if (size > bytes) free_.emplace(placement == Placement::low ? start + bytes : start, size - bytes);
  taken_.emplace(offset, Piece{bytes, what});
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return Buffer(this, Tensor(base_ + offset, dtype, rows, cols));
}

Buffer Arena::spare(const char* what, std::size_t least, std::size_t most) {
  std::size_t bytes = 0;
  for (const auto& [offset, size] : free_) bytes = std::max(bytes, size);
  bytes = std::min({bytes, most, peak_ - used_}) / kAlignment * kAlignment;
  return bytes == 0 || bytes < least ? Buffer() : workspace(what, DType::i8, 1, static_cast<std::int64_t>(bytes));
}

std::string Arena::map() const {
  struct Named {
    std::size_t bytes = 0, count = 0;
  };
  std::map<std::string_view, Named> by_name;
  for (const auto& [offset, piece] : taken_) {
    Named& named = by_name[piece.what];
    named.bytes += piece.bytes;
    ++named.count;
  }
  std::vector<std::pair<std::string_view, Named>> sorted(by_name.begin(), by_name.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second.bytes > b.second.bytes; });
  std::string text;
  for (const auto& [name, named] : sorted)
    text += "\n  " + std::to_string(named.bytes) + " bytes: " + std::string(name) +
            (named.count > 1 ? " (" + std::to_string(named.count) + " times)" : "");
  return text.empty() ? text : "; in it lie" + text;
}

void Arena::release(void* data) {
  const auto taken = taken_.find(static_cast<std::size_t>(static_cast<char*>(data) - base_));
  std::size_t offset = taken->first, size = taken->second.bytes;
  taken_.erase(taken);
  used_ -= size;
  auto next = free_.lower_bound(offset);
  if (next != free_.end() && offset + size == next->first) {
    size += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == offset) {
      previous->second += size;
      return;
    }
  }
  free_.emplace(offset, size);
}

}  // namespace pipelora
