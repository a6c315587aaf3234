// What this machine has of NCCL. Opened with dlopen: the engine is built and runs without it.
#pragma once

#include <string>

#include "comm/nccl_abi.h"

namespace pipelora::comm {

/// "2.27.3" of ncclGetVersion's number: 22703, and before 2.9 a digit less: 2804 for 2.8.4.
std::string nccl_version_text(int code);

/// The functions of a library that was opened; it stays open with the process.
struct NcclLibrary {
  /// "2.27.3"
  std::string version;
  /// It moves host memory: a stand-in that says so by the symbol pipelora_nccl_host_memory. NCCL itself moves a GPU's.
  bool host_memory = false;

  int (*get_unique_id)(NcclUniqueId*) = nullptr;
  int (*comm_init_rank_config)(NcclComm*, int ranks, NcclUniqueId, int rank, NcclConfig*) = nullptr;
  int (*comm_get_async_error)(NcclComm, int*) = nullptr;
  int (*comm_abort)(NcclComm) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*send)(const void*, std::size_t count, int datatype, int peer, NcclComm, void* stream) = nullptr;
  int (*recv)(void*, std::size_t count, int datatype, int peer, NcclComm, void* stream) = nullptr;
  const char* (*get_error_string)(int) = nullptr;
  /// Since 2.13; null before.
  const char* (*get_last_error)(NcclComm) = nullptr;
};

/// What opening it gave: the library, or the reason why it can't be used.
struct NcclOpened {
  const NcclLibrary* library = nullptr;
  std::string reason;
};

/// The library of this process: the file that PIPELORA_NCCL_LIBRARY names, else libnccl.so.2. Opened once.
const NcclOpened& nccl_library();
/// Any other, never closed.
NcclOpened open_nccl(const char* library);

}  // namespace pipelora::comm
