#include "comm/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>

namespace pipelora::comm {

namespace {

using Handle = std::unique_ptr<void, int (*)(void*)>;

Handle open(const char* library) {
  return Handle(dlopen(library, RTLD_NOW | RTLD_LOCAL), [](void* held) { return held == nullptr ? 0 : dlclose(held); });
}

/// ncclGetVersion's number: 22703 for 2.27.3, and before 2.9 a digit less: 2804 for 2.8.4.
std::string version_text(int code) {
  const int major_unit = code < 10000 ? 1000 : 10000;
  const int rest = code % major_unit;
  return std::to_string(code / major_unit) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

struct Version {
  int code = 0;
  NcclInfo info;
};

Version version_of(const char* library, void* handle) {
  using GetVersion = int (*)(int*);
  const auto get_version = reinterpret_cast<GetVersion>(dlsym(handle, "ncclGetVersion"));
  if (get_version == nullptr) return {0, {"", std::string(library) + " has no ncclGetVersion"}};
  int code = 0;
  if (const int status = get_version(&code); status != 0)
    return {0, {"", std::string(library) + ": ncclGetVersion failed with " + std::to_string(status)}};
  return {code, {version_text(code), ""}};
}

}  // namespace

NcclInfo nccl_info(const char* library) {
  const Handle handle = open(library);
  if (!handle) return {"", dlerror()};
  return version_of(library, handle.get()).info;
}

NcclOpened open_nccl(const char* library) {
  Handle handle = open(library);
  if (!handle) return {nullptr, dlerror()};
  const auto [code, info] = version_of(library, handle.get());
  if (info.version.empty()) return {nullptr, info.reason};
  if (code < kNcclOldest) return {nullptr, "NCCL " + info.version + " is too old: 2.14 or newer is needed"};
  auto opened = std::make_unique<NcclLibrary>();
  opened->version = info.version;
  opened->host_memory = dlsym(handle.get(), "pipelora_nccl_host_memory") != nullptr;
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle.get(), name));
    if (function == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(name);
  };
  find(opened->get_unique_id, "ncclGetUniqueId");
  find(opened->comm_init_rank_config, "ncclCommInitRankConfig");
  find(opened->comm_get_async_error, "ncclCommGetAsyncError");
  find(opened->comm_abort, "ncclCommAbort");
  find(opened->group_start, "ncclGroupStart");
  find(opened->group_end, "ncclGroupEnd");
  find(opened->send, "ncclSend");
  find(opened->recv, "ncclRecv");
  find(opened->get_error_string, "ncclGetErrorString");
  if (!missing.empty()) return {nullptr, std::string(library) + " has no " + missing};
  opened->get_last_error = reinterpret_cast<const char* (*)(NcclComm)>(dlsym(handle.get(), "ncclGetLastError"));
  // It keeps threads of its own: never closed.
  static_cast<void>(handle.release());
  return {opened.release(), ""};
}

const NcclOpened& nccl_library() {
  static const NcclOpened opened = [] {
    const char* named = std::getenv("PIPELORA_NCCL_LIBRARY");
    return open_nccl(named == nullptr || *named == '\0' ? "libnccl.so.2" : named);
  }();
  return opened;
}

}  // namespace pipelora::comm
