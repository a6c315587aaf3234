// Copies of tiles that the hardware makes by itself (Hopper): one thread asks, a barrier tells when the bytes are there.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace pipelora::cuda {

/// Arrives, and lets the phase last until so many bytes have come besides.
__device__ inline void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
/// The tile of `map` from (`row`, `column`) on to shared memory, where a full tile's bytes are counted at `barrier`.
__device__ inline void copy_tile(std::uint32_t to, const CUtensorMap& map, int row, int column, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
               "l"(reinterpret_cast<std::uint64_t>(&map)), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
/// Barriers just made are seen by the copies.
__device__ inline void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
__device__ inline void fetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(reinterpret_cast<std::uint64_t>(&map)) : "memory");
}

}  // namespace pipelora::cuda
