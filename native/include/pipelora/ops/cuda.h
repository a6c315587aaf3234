// The NVIDIA GPUs' Ops. In a build without nvcc these functions do not exist (PIPELORA_CUDA is not defined).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora {

struct CudaDevice {
  int index = 0;
  std::string name;
  /// "0000:1b:00.0": the same for the same GPU, whatever number a process sees it under.
  std::string pci_bus_id;
  int major = 0, minor = 0;
  std::uint64_t total_bytes = 0, free_bytes = 0;
};

struct CudaInfo {
  int runtime = 0, driver = 0;
  std::vector<CudaDevice> devices;
  std::string reason;  // why no device can be used; empty where one can
};

/// Never throws.
CudaInfo cuda_info();

/// float32, bfloat16 or float16 on GPU `device`. PL_DEVICE_UNAVAILABLE where there is none, the driver is too old for the
/// runtime, the GPU is older than compute capability 8.0, or cuBLASLt is missing.
std::unique_ptr<Ops> make_cuda_ops(int device, DType compute);

}  // namespace pipelora
