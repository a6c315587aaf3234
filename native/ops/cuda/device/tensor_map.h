// Descriptions of matrices that Hopper's bulk copies read tiles of.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// Bytes of a panel's rows in shared memory, as SharedMatrix (wgmma.cuh) lays them out.
inline constexpr std::uint32_t kPanelRowBytes = 128;
/// Columns of a panel in a 16-bit dtype.
inline constexpr std::uint32_t kPanelColumns = kPanelRowBytes / 2;

/// Tiles of `box_rows` rows and one panel of `matrix`, which has a 16-bit dtype or e4m3, and base and rows on 16 bytes. What lies outside it is read as zero. Throws PL_DEVICE_UNAVAILABLE where the driver has no such copies, PL_ENGINE_FAILED where the matrix does not suit.
CUtensorMap tensor_map(const Tensor& matrix, std::uint32_t box_rows);

}  // namespace pipelora::cuda
