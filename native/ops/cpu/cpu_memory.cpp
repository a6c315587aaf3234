// Memory of the CPU device, and what the machine is.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <thread>

#include "ops/cpu/cpu_ops.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {

/// Pages come zeroed and only when touched; large ones are asked for since products walk through all of it.
class CpuMemory final : public DeviceMemory {
 public:
  CpuMemory(const char* what, std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw Error(kOutOfMemory, std::string("can't reserve ") + std::to_string(bytes) + " bytes for " + what);
    }
    ::madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~CpuMemory() override {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

/// The smaller of the machine's memory and the control group's limit.
std::uint64_t memory_limit() {
  std::uint64_t bytes =
      static_cast<std::uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::ifstream file(path);
    std::uint64_t limit = 0;
    if (file >> limit && limit > 0 && limit < bytes) bytes = limit;
  }
  return bytes;
}

}  // namespace

std::unique_ptr<DeviceMemory> CpuOps::allocate(const char* what, std::size_t bytes, bool) {
  return std::make_unique<CpuMemory>(what, bytes);
}

CpuInfo cpu_info() {
  CpuInfo info;
  info.isa = kernels().isa;
  info.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  info.bf16 = dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
  info.memory_bytes = memory_limit();
  return info;
}

}  // namespace pipelora
