#include "comm/nccl_library.h"

#include <dlfcn.h>

#include <memory>

namespace pipelora::comm {

namespace {

/// ncclGetVersion's number: 22703 for 2.27.3, and before 2.9 a digit less: 2804 for 2.8.4.
std::string version_text(int code) {
  const int major_unit = code < 10000 ? 1000 : 10000;
  const int rest = code % major_unit;
  return std::to_string(code / major_unit) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

}  // namespace

NcclInfo nccl_info(const char* library) {
  const std::unique_ptr<void, int (*)(void*)> handle(dlopen(library, RTLD_NOW | RTLD_LOCAL), [](void* held) {
    return held == nullptr ? 0 : dlclose(held);
  });
  if (!handle) return {"", dlerror()};
  using GetVersion = int (*)(int*);
  const auto get_version = reinterpret_cast<GetVersion>(dlsym(handle.get(), "ncclGetVersion"));
  if (get_version == nullptr) return {"", std::string(library) + " has no ncclGetVersion"};
  int code = 0;
  if (const int status = get_version(&code); status != 0)
    return {"", std::string(library) + ": ncclGetVersion failed with " + std::to_string(status)};
  return {version_text(code), ""};
}

}  // namespace pipelora::comm
