// Which of the images in this build the driver took for a device.
#include <map>
#include <mutex>

#include "ops/cuda/device/check.h"

namespace pipelora::cuda {

namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ int image_for_hopper = 1;
#else
__device__ int image_for_hopper = 0;
#endif

}  // namespace

bool on_hopper() {
  static std::mutex mutex;
  static std::map<int, bool> known;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  int value = 0;
  check(cudaMemcpyFromSymbol(&value, image_for_hopper, sizeof value), "the image for Hopper");
  return known.emplace(device, value == 1).first->second;
}

}  // namespace pipelora::cuda
