// Where the library's own header is present: the declared part of its interface agrees with it.
#include "comm/nccl_abi.h"

#include <nccl.h>

#include <type_traits>

namespace comm = pipelora::comm;

static_assert(sizeof(comm::NcclUniqueId) == sizeof(ncclUniqueId) && sizeof(comm::NcclUniqueId) == NCCL_UNIQUE_ID_BYTES);
static_assert(offsetof(comm::NcclConfig, size) == offsetof(ncclConfig_t, size));
static_assert(offsetof(comm::NcclConfig, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(comm::NcclConfig, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(comm::NcclConfig, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(sizeof(comm::NcclConfig) <= sizeof(ncclConfig_t));
static_assert(comm::kNcclSuccess == ncclSuccess && comm::kNcclInProgress == ncclInProgress);
static_assert(comm::kNcclInt8 == ncclInt8);
static_assert(std::is_pointer_v<ncclComm_t> && sizeof(ncclResult_t) == sizeof(int) && sizeof(ncclDataType_t) == sizeof(int));

// The shapes of the functions, with their types for ours.
static_assert(std::is_same_v<decltype(&ncclCommInitRankConfig), ncclResult_t (*)(ncclComm_t*, int, ncclUniqueId, int, ncclConfig_t*)>);
static_assert(std::is_same_v<decltype(&ncclSend), ncclResult_t (*)(const void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&ncclRecv), ncclResult_t (*)(void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)>);
static_assert(std::is_same_v<decltype(&ncclCommGetAsyncError), ncclResult_t (*)(ncclComm_t, ncclResult_t*)>);
static_assert(std::is_same_v<decltype(&ncclCommAbort), ncclResult_t (*)(ncclComm_t)>);
static_assert(std::is_same_v<decltype(&ncclGetLastError), const char* (*)(ncclComm_t)>);

inline constexpr ncclConfig_t kTheirs = NCCL_CONFIG_INITIALIZER;
static_assert(kTheirs.magic == comm::NcclConfig{}.magic);
