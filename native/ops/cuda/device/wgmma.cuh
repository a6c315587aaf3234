// Products of a warpgroup (wgmma, compute capability 9.0a): 64 rows, inputs in 16 bits or e4m3, f32 sums in registers. A sum's fragment
// is that of mma.sync: element [j][2 h + i] of a thread is row 8 h + lane / 4 of its warp's 16, column 8 j + 2 (lane % 4) + i.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstddef>
#include <cstdint>

#include "ops/cuda/device/mma.cuh"

namespace pipelora::cuda {

// What only Hopper can do is compiled for it, and seen by the host; for other GPUs it is left out.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define PIPELORA_HOPPER 1
#endif

/// A matrix in shared memory in panels of 64 columns of 16 bits (128 of e4m3), rows of 128 bytes whose 16-byte pieces are permuted by the row's
/// number modulo 8; panels start at multiples of 1024 bytes. `leading`: bytes from panel to panel, used where the inner
/// dimension runs along rows.
struct SharedMatrix {
  std::uint32_t low;
  __device__ SharedMatrix(std::uint32_t address, std::uint32_t leading) : low((address & 0x3FFFFu) >> 4 | leading >> 4 << 16) {
    asm volatile("" : "+r"(low));  // the compiler would keep a descriptor of every offset in registers
  }
  /// What a product takes: the matrix from `bytes` behind its start on.
  __device__ std::uint64_t at(int bytes) const {
    return std::uint64_t{1024 >> 4 | 1u << 30} << 32 | (low + static_cast<std::uint32_t>(bytes) / 16);
  }
};

/// Dynamic shared memory from the next multiple of 1024, for which kAlignmentBytes more are asked for.
inline constexpr std::size_t kAlignmentBytes = 1024;
__device__ inline char* aligned_shared() {
  extern __shared__ char raw[];
  return raw + ((1024 - (shared_address(raw) & 1023u)) & 1023u);
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int N>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
/// Keeps the compiler from moving reads of sums before the wait for them, or writes behind the products that read them.
template <int N>
__device__ inline void wgmma_hold(float (&d)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[j][i])::"memory");
  }
}
/// The same for factors that stand in registers: made before the fence, left alone until the wait.
template <int N>
__device__ inline void wgmma_hold(std::uint32_t (&a)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[j][i])::"memory");
  }
}
/// Ordinary stores and asynchronous copies to shared memory before it are seen by products after it.
__device__ inline void fence_shared() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A product's sums as operands: their text and their constraints.
#define PIPELORA_TEXT_32                                                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define PIPELORA_TEXT_64                                                                                               \
  PIPELORA_TEXT_32                                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, " \
  "%55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PIPELORA_SUMS_4(d, j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define PIPELORA_SUMS_16(d, j) \
  PIPELORA_SUMS_4(d, j), PIPELORA_SUMS_4(d, j + 1), PIPELORA_SUMS_4(d, j + 2), PIPELORA_SUMS_4(d, j + 3)
#define PIPELORA_SUMS_32(d) PIPELORA_SUMS_16(d, 0), PIPELORA_SUMS_16(d, 4)
#define PIPELORA_SUMS_64(d) PIPELORA_SUMS_32(d), PIPELORA_SUMS_16(d, 8), PIPELORA_SUMS_16(d, 12)

// The products of one number type and one count of columns (COLUMNS = 8 J; SUMS of a thread). The numbers of the operands
// behind the sums: P0 … P4.
#define PIPELORA_WGMMA(T, NAME, J, COLUMNS, SUMS, P0, P1, P2, P3, P4)                                                          \
  /* d = (add ? d : 0) + a b, both in shared memory; kRows…: the inner dimension runs along the matrix's rows. */              \
  template <bool kRowsA = false, bool kRowsB = false>                                                                          \
  __device__ inline void wgmma_shared(T, float (&d)[J][4], std::uint64_t a, std::uint64_t b, bool add) {                       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2 ", 0;\n"                                                               \
                 "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." NAME "." NAME " {" PIPELORA_TEXT_##SUMS "}, " P0 ", " P1 \
                 ", p, 1, 1, " P3 ", " P4 ";\n}\n"                                                                             \
                 : PIPELORA_SUMS_##SUMS(d)                                                                                     \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kRowsA ? 1 : 0), "n"(kRowsB ? 1 : 0));                      \
  }                                                                                                                            \
  /* d += a b: a in registers, b's rows are the inner dimension. */                                                            \
  __device__ inline void wgmma_rows(T, float (&d)[J][4], const std::uint32_t (&a)[4], std::uint64_t b) {                       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." NAME "." NAME " {" PIPELORA_TEXT_##SUMS "}, {" P0 ", " \
                 P1 ", " P2 ", " P3 "}, " P4 ", 1, 1, 1, 1;\n"                                                                 \
                 : PIPELORA_SUMS_##SUMS(d)                                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                        \
  }
#define PIPELORA_WGMMA_64(T, NAME) PIPELORA_WGMMA(T, NAME, 8, 64, 32, "%32", "%33", "%34", "%35", "%36")
#define PIPELORA_WGMMA_128(T, NAME) PIPELORA_WGMMA(T, NAME, 16, 128, 64, "%64", "%65", "%66", "%67", "%68")

/// The same in e4m3, of which tensor cores take rows along the inner dimension alone: 32 numbers a product, the 32 bytes that 16 take in 16 bits.
template <bool kRowsA = false, bool kRowsB = false>
__device__ inline void wgmma_shared(__nv_fp8_e4m3, float (&d)[16][4], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(!kRowsA && !kRowsB);
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" PIPELORA_TEXT_64 "}, %64, %65, p, 1, 1;\n}\n"
               : PIPELORA_SUMS_64(d)
               : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

PIPELORA_WGMMA_64(__nv_bfloat16, "bf16")
PIPELORA_WGMMA_128(__nv_bfloat16, "bf16")
PIPELORA_WGMMA_64(__half, "f16")
PIPELORA_WGMMA_128(__half, "f16")

#undef PIPELORA_WGMMA_128
#undef PIPELORA_WGMMA_64
#undef PIPELORA_WGMMA
#undef PIPELORA_SUMS_64
#undef PIPELORA_SUMS_32
#undef PIPELORA_SUMS_16
#undef PIPELORA_SUMS_4
#undef PIPELORA_TEXT_64
#undef PIPELORA_TEXT_32

}  // namespace pipelora::cuda
