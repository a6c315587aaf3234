#include "ops/cpu/kernels.h"

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

const Kernels& kernels() {
  static const Kernels table = [] {
    // Lets machines of both kinds share a run with the same bits (oneDNN has ONEDNN_MAX_CPU_ISA for its part).
    const char* wanted = std::getenv("PIPELORA_CPU_ISA");
    const bool narrow = wanted != nullptr && std::string_view(wanted) == "avx2";
    const bool wide = !narrow && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? avx512::make_kernels() : avx2::make_kernels();
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
