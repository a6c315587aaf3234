// Tensors that wait in the host's memory: copies beside the kernels, on a stream each way.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <vector>

#include "ops/cuda/device/device.h"

namespace pipelora::cuda {

/// Pinned memory of a fixed size, and the two streams. Outlives what it gives out.
class HostRoom {
 public:
  HostRoom(Device& device, std::size_t bytes);
  ~HostRoom();
  HostRoom(const HostRoom&) = delete;
  HostRoom& operator=(const HostRoom&) = delete;

  /// Copies start behind what is queued on the device's stream. They come back into `arena`.
  std::unique_ptr<Offloaded> offload(std::vector<Buffer> tensors, Arena& arena);

 private:
  friend class OffloadedTensors;
  Device& device_;
  HostMemory memory_;
  Arena room_;
  cudaStream_t out_ = nullptr, back_ = nullptr;
};

}  // namespace pipelora::cuda
