// What the headers and the static C++ runtime of a newer glibc ask for, and an older one does not export.
#include <sys/stat.h>

extern "C" {

// Exported since 2.33. Before, it was a function of the headers around this one.
int __fxstat(int version, int file, struct stat* out) noexcept;
int fstat(int file, struct stat* out) noexcept {
  constexpr int kLinuxX64 = 1;
  return __fxstat(kLinuxX64, file, out);
}

// Exported since 2.32. The C++ runtime counts references without atomics while it is set; a process with an engine has threads.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;

}  // extern "C"
