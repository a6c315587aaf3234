// Every status of the CUDA runtime goes through check().
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "ops/cuda/kernel_choice.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

/// Throws PL_OUT_OF_MEMORY, PL_DEVICE_UNAVAILABLE or PL_ENGINE_FAILED. `what` says what was being done.
void check(cudaError_t status, const char* what);

/// After a kernel launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

/// Multiprocessors of the current device.
int processors();
/// Whether what runs there was compiled for sm_90a: of what only Hopper can do other images have nothing.
bool on_hopper();
/// What kernels are chosen by, of the current device.
GpuKind gpu_kind();

}  // namespace pipelora::cuda
