#include "ops/cpu/kernels/kernels.h"

#include <cstdlib>
#include <new>
#include <string_view>

namespace pipelora {

namespace avx2 {
Kernels make_kernels();
}
namespace avx512 {
Kernels make_kernels();
}
namespace avx512_bf16 {
Kernels make_kernels();
}

const Kernels& kernels() {
  static const Kernels table = [] {
    // Lets machines of different kinds share a run with the same bits (oneDNN has ONEDNN_MAX_CPU_ISA for its part).
    const char* limit = std::getenv("PIPELORA_CPU_ISA");
    const std::string_view most = limit == nullptr ? "avx512_bf16" : limit;
    const bool wide = most != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
    if (!wide) return avx2::make_kernels();
    const bool converts = most != "avx512" && __builtin_cpu_supports("avx512bf16");
    return converts ? avx512_bf16::make_kernels() : avx512::make_kernels();
  }();
  return table;
}

Scratch::Aligned::~Aligned() { std::free(data); }

float* Scratch::floats(std::size_t slot, std::size_t count) {
  Aligned& held = slots_[slot];
  if (held.count < count) {
    std::free(held.data);
    held.data = nullptr;
    held.count = 0;
    const std::size_t bytes = (count * sizeof(float) + 4095) / 4096 * 4096;
    held.data = static_cast<float*>(std::aligned_alloc(4096, bytes));
    if (held.data == nullptr) throw std::bad_alloc();
    held.count = bytes / sizeof(float);
  }
  return held.data;
}

}  // namespace pipelora
