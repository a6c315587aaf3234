#pragma once

#include <cuda_runtime.h>

#include "ops/cuda/device/check.h"
#include "pipelora/core/fence.h"

namespace pipelora::cuda {

/// Behind all work queued on a stream of this thread's GPU so far.
class EventFence final : public Fence {
 public:
  explicit EventFence(cudaStream_t stream) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
    if (const cudaError_t status = cudaEventRecord(event_, stream); status != cudaSuccess) {
      cudaEventDestroy(event_);
      check(status, "cudaEventRecord");
    }
  }
  ~EventFence() override { cudaEventDestroy(event_); }
  EventFence(const EventFence&) = delete;
  EventFence& operator=(const EventFence&) = delete;

  bool passed() const override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    check(status, "waiting for the GPU");
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace pipelora::cuda
