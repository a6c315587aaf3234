// The CPU's Ops.
#pragma once

#include <memory>
#include <string>

#include "pipelora/ops/ops.h"

namespace pipelora {

struct CpuInfo {
  std::string isa;
  int threads = 1;
  bool bf16 = false;  // products in bfloat16 run on units of their own
  std::uint64_t memory_bytes = 0;
};
CpuInfo cpu_info();

/// float32 or bfloat16; anything else: PL_DEVICE_UNAVAILABLE.
std::unique_ptr<Ops> make_cpu_ops(DType compute, int threads);

}  // namespace pipelora
