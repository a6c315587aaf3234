// What GPUs there are, and the Ops on one of them.
#include "pipelora/ops/cuda.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <map>

#include "ops/cuda/device/check.h"
#include "ops/cuda/cuda_ops.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {

constexpr int kOldestMajor = 8;

/// Free memory by PCI address, asked of the driver's management library: asking the runtime would open a context on every GPU.
class FreeMemory {
 public:
  FreeMemory() {
    handle_ = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) return;
    const auto init = reinterpret_cast<int (*)()>(dlsym(handle_, "nvmlInit_v2"));
    by_address_ = reinterpret_cast<int (*)(const char*, void**)>(dlsym(handle_, "nvmlDeviceGetHandleByPciBusId_v2"));
    memory_ = reinterpret_cast<int (*)(void*, Memory*)>(dlsym(handle_, "nvmlDeviceGetMemoryInfo"));
    usable_ = init != nullptr && by_address_ != nullptr && memory_ != nullptr && init() == 0;
  }
  /// 0 where it cannot be told.
  std::uint64_t of(int device) const {
    char address[32];
    void* found = nullptr;
    Memory memory{};
    if (!usable_ || cudaDeviceGetPCIBusId(address, sizeof address, device) != cudaSuccess || by_address_(address, &found) != 0 ||
        memory_(found, &memory) != 0)
      return 0;
    return memory.free;
  }

 private:
  struct Memory {
    unsigned long long total, free, used;
  };
  void* handle_ = nullptr;  // stays open with the process
  int (*by_address_)(const char*, void**) = nullptr;
  int (*memory_)(void*, Memory*) = nullptr;
  bool usable_ = false;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

CudaInfo cuda_info() {
  CudaInfo info;
  cudaRuntimeGetVersion(&info.runtime);
  cudaDriverGetVersion(&info.driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (info.driver == 0) {
    info.reason = "no NVIDIA driver is loaded";
  } else if (status == cudaErrorInsufficientDriver) {
    info.reason = "the driver supports CUDA " + version_text(info.driver) + ", this build needs " + version_text(info.runtime);
  } else if (status != cudaSuccess) {
    info.reason = cudaGetErrorString(status);
  } else if (count == 0) {
    info.reason = "there is no NVIDIA GPU";
  }
  cudaGetLastError();
  bool usable = false;
  static const FreeMemory free_memory;
  for (int i = 0; status == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    usable = usable || properties.major >= kOldestMajor;
    char address[32] = "";
    cudaDeviceGetPCIBusId(address, sizeof address, i);
    info.devices.push_back({i, properties.name, address, properties.major, properties.minor, properties.totalGlobalMem, free_memory.of(i)});
  }
  cudaGetLastError();
  if (!info.devices.empty() && !usable) info.reason = "every GPU here is older than compute capability 8.0";
  return info;
}

std::unique_ptr<Ops> make_cuda_ops(int device, DType compute) {
  const std::string name = "cuda:" + std::to_string(device);
  if (compute != DType::f32 && compute != DType::bf16 && compute != DType::f16)
    throw Error(kDeviceUnavailable, name + ": expected a compute dtype of float32, bfloat16 or float16, got " + dtype_name(compute));
  const CudaInfo info = cuda_info();
  if (info.devices.empty()) throw Error(kDeviceUnavailable, name + " can't be used: " + info.reason);
  if (device < 0 || device >= static_cast<int>(info.devices.size()))
    throw Error(kDeviceUnavailable, name + ": this machine has " + std::to_string(info.devices.size()) + " GPUs, counted from 0");
  const CudaDevice& found = info.devices[static_cast<std::size_t>(device)];
  if (found.major < kOldestMajor)
    throw Error(kDeviceUnavailable, name + " (" + found.name + ") has compute capability " + std::to_string(found.major) + "." +
                                        std::to_string(found.minor) + ", 8.0 is needed");
  auto ops = std::make_unique<cuda::CudaOps>(device, compute);
  // A process's first engine meets the GPU without a context of its own; later ones count from there too.
  static std::map<int, std::uint64_t> free_at_first;
  ops->remember_free(free_at_first.emplace(device, found.free_bytes).first->second);
  return ops;
}

}  // namespace pipelora
