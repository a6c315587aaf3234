#include "pipelora/core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "pipelora/core/error.h"

namespace pipelora {

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const auto fail = [&](const char* what) {
    throw Error(kCheckpointInvalid, std::string("can't ") + what + " " + path + ": " + std::strerror(errno));
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("open");
  struct stat status {};
  if (::fstat(file, &status) != 0) {
    ::close(file);
    fail("read the size of");
  }
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ > 0) {
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      ::close(file);
      fail("map");
    }
  }
  ::close(file);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

const void* MappedFile::range(std::size_t offset, std::size_t bytes) const {
  if (offset > size_ || bytes > size_ - offset)
    throw Error(kCheckpointInvalid, path_ + " has " + std::to_string(size_) + " bytes; a tensor was expected at " +
                                        std::to_string(offset) + " with " + std::to_string(bytes) + " bytes");
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t start = offset / page * page;
  ::madvise(static_cast<char*>(data_) + start, bytes + (offset - start), MADV_WILLNEED);
  return static_cast<const char*>(data_) + offset;
}

}  // namespace pipelora
