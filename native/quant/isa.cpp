#include "quant/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string_view>

namespace pipelora::quant {

Isa detected_isa() {
  static const Isa detected = [] {
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!avx2) return Isa::scalar;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!avx512) return Isa::avx2;
    return __builtin_cpu_supports("avx512vnni") ? Isa::avx512_vnni : Isa::avx512;
  }();
  return detected;
}

namespace {
std::atomic<Isa>& level() {
  static std::atomic<Isa> in_use{[] {
    const char* wanted = std::getenv("PIPELORA_CPU_ISA");
    const bool narrow = wanted != nullptr && std::string_view(wanted) == "avx2";
    return narrow ? std::min(Isa::avx2, detected_isa()) : detected_isa();
  }()};
  return in_use;
}
}  // namespace

Isa current_isa() { return level().load(std::memory_order_relaxed); }

void limit_isa(Isa highest) { level().store(std::min(highest, detected_isa()), std::memory_order_relaxed); }

}  // namespace pipelora::quant
