// What this machine has of NCCL. Opened with dlopen: the engine is built and runs without it.
#pragma once

#include <string>

namespace pipelora::comm {

struct NcclInfo {
  /// "2.27.3"; empty: it can't be used.
  std::string version;
  /// Why not.
  std::string reason;
};

NcclInfo nccl_info(const char* library = "libnccl.so.2");

}  // namespace pipelora::comm
