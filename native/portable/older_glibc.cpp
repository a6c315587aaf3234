// What the headers and the static C++ runtime of a newer glibc ask for, and an older one does not export.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {
constexpr int kLinuxX64 = 1;  // the version of struct stat
}

extern "C" {

// Exported since 2.33. Before, they were functions of the headers around these.
int __fxstat(int version, int file, struct stat* out) noexcept;
int __fxstat64(int version, int file, struct stat64* out) noexcept;
int fstat(int file, struct stat* out) noexcept { return __fxstat(kLinuxX64, file, out); }
int fstat64(int file, struct stat64* out) noexcept { return __fxstat64(kLinuxX64, file, out); }

// Exported since 2.32. The C++ runtime counts references without atomics while it is set; a process with an engine has threads.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

// Exported since 2.36, for std::random_device.
std::uint32_t arc4random() noexcept {
  std::uint32_t drawn = 0;
  if (getentropy(&drawn, sizeof drawn) != 0) std::abort();
  return drawn;
}

}  // extern "C"
