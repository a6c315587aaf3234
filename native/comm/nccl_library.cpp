#include "comm/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <memory>

namespace pipelora::comm {

std::string nccl_version_text(int code) {
  const int major_unit = code < 10000 ? 1000 : 10000;
  const int rest = code % major_unit;
  return std::to_string(code / major_unit) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

NcclOpened open_nccl(const char* library) {
  std::unique_ptr<void, int (*)(void*)> handle(dlopen(library, RTLD_NOW | RTLD_LOCAL), [](void* held) {
    return held == nullptr ? 0 : dlclose(held);
  });
  if (!handle) return {nullptr, dlerror()};
  const auto get_version = reinterpret_cast<int (*)(int*)>(dlsym(handle.get(), "ncclGetVersion"));
  if (get_version == nullptr) return {nullptr, std::string(library) + " has no ncclGetVersion"};
  int code = 0;
  if (const int status = get_version(&code); status != kNcclSuccess)
    return {nullptr, std::string(library) + ": ncclGetVersion failed with " + std::to_string(status)};
  auto opened = std::make_unique<NcclLibrary>();
  opened->version = nccl_version_text(code);
  if (code < kNcclOldest) return {nullptr, "NCCL " + opened->version + " is too old: 2.14 or newer is needed"};
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
