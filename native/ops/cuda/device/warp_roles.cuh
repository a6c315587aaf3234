// What warps of a block that do different work tell each other (Hopper): barriers in shared memory that one side arrives at
// and the other waits for, named barriers of some of the block's threads, and shares of the registers.
#pragma once

#include <cstdint>

namespace pipelora::cuda {

/// A barrier of `count` arrivals a phase, 8 bytes of shared memory. To be seen by others after __syncthreads.
__device__ inline void barrier_init(std::uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(count) : "memory");
}
__device__ inline void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
/// Until the phase of this parity is over: 0 for the first. A barrier never used counts as just past a phase of parity 1.
__device__ inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t over = 0;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (over == 0);
  __syncwarp();
}

/// Place and phase in a ring of kStages buffers.
template <int kStages>
struct Ring {
  std::uint32_t stage = 0, parity = 0;
  __device__ void step() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Waits for `threads` threads, whole warps, at named barrier `id` (1 … 15; 0 is __syncthreads).
__device__ inline void named_wait(int id, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }
/// Counts as there without waiting.
__device__ inline void named_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

}  // namespace pipelora::cuda
