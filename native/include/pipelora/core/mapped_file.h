// A read-only mapping of a whole file.
#pragma once

#include <cstddef>
#include <string>

namespace pipelora {

class MappedFile {
 public:
  /// Throws PL_CHECKPOINT_INVALID if it can't be opened or mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::size_t size() const { return size_; }
  /// Throws PL_CHECKPOINT_INVALID unless [offset, offset + bytes) lies in the file. Asks the system to read it ahead.
  const void* range(std::size_t offset, std::size_t bytes) const;

 private:
  std::string path_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace pipelora
