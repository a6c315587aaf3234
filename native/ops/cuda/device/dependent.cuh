// Programmatic dependent launch (CUDA programming guide): a kernel may start while the one before it still runs.
//
// A kernel started by launch_dependent() calls wait_for_previous() before it touches what kernels write (activations, anything
// in the arena) and before it ends; what it may read earlier are weights, which nothing that lets the next kernel start writes.
// It starts early only behind a kernel that calls let_next_start() in all its blocks; behind anything else, copies too, the
// order of the stream holds as ever.
#pragma once

#include <cuda_runtime.h>

#include "ops/cuda/device/check.h"

namespace pipelora::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PIPELORA_DEPENDENT 1
#endif

/// Until all kernels before this one have ended and their writes can be read.
__device__ inline void wait_for_previous() {
#ifdef PIPELORA_DEPENDENT
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void let_next_start() {
#ifdef PIPELORA_DEPENDENT
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), dim3 grid, int threads, std::size_t shared, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = on_hopper() ? 1 : 0;  // elsewhere kernels do not wait
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "launching a kernel");
}

}  // namespace pipelora::cuda
