// The part of NCCL's C interface that is used, declared here: no header of it is needed to build. Facts from NCCL's
// documentation ("NCCL API", docs.nvidia.com/deeplearning/nccl): communicators that don't block came with 2.14.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pipelora::comm {

struct NcclUniqueId {
  char internal[128];
};

/// Opaque.
using NcclComm = struct NcclCommHandle*;

/// ncclConfig_t as 2.14 had it. A library reads as many bytes as `size` says and takes its defaults for what `version` did not
/// have yet, so that this layout stays good for later ones.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;
};
static_assert(sizeof(NcclConfig) == 24);

/// ncclResult_t: these two are no failures.
constexpr int kNcclSuccess = 0, kNcclInProgress = 7;
/// ncclDataType_t
constexpr int kNcclInt8 = 0;

/// The oldest version that can be used.
constexpr int kNcclOldest = 21400;

}  // namespace pipelora::comm
