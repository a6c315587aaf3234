#include "ops/cuda/device/link_device.h"

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/device/check.h"
#include "ops/cuda/device/device.h"
#include "ops/cuda/device/event_fence.h"

namespace pipelora::cuda {

namespace {

class CudaLinkDevice final : public comm::LinkDevice {
 public:
  explicit CudaLinkDevice(int index) : index_(index) {
    use_device(index_);
    int lowest = 0, highest = 0;
    check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
    // Before compute that waits for room on the GPU: a message holds up two ranks.
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest), "cudaStreamCreate");
    check(cudaStreamCreateWithFlags(&allocations_, cudaStreamNonBlocking), "cudaStreamCreate");
    cudaMemPool_t pool = nullptr;
    check(cudaDeviceGetDefaultMemPool(&pool, index_), "cudaDeviceGetDefaultMemPool");
    // What was used once is used again: giving it back to the system would make the device wait.
    std::uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  }
  ~CudaLinkDevice() override {
    cudaStreamDestroy(allocations_);
    cudaStreamDestroy(stream_);
  }

  void use() override { use_device(index_); }
  void* stream() const override { return stream_; }
  std::shared_ptr<const Fence> mark() override { return std::make_shared<EventFence>(stream_); }
  void* allocate(std::size_t bytes) override {
    use();
    void* data = nullptr;
    check(cudaMallocAsync(&data, bytes, allocations_), "memory of a link");
    // Nothing else is on that stream: this waits for nobody, and from here on every stream may use the memory.
    check(cudaStreamSynchronize(allocations_), "memory of a link");
    return data;
  }
  void release(void* data) override {
    use();
    cudaFreeAsync(data, allocations_);
  }
  bool is_host() const override { return false; }

 private:
  int index_;
  cudaStream_t stream_ = nullptr, allocations_ = nullptr;
};

}  // namespace

}  // namespace pipelora::cuda

namespace pipelora {

std::unique_ptr<comm::LinkDevice> make_cuda_link_device(int device) { return std::make_unique<cuda::CudaLinkDevice>(device); }

}  // namespace pipelora
