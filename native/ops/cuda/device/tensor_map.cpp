#include "ops/cuda/device/tensor_map.h"

#include <cuda_runtime.h>

#include <string>

#include "ops/cuda/device/check.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                            const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::f16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::f8: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default: throw Error(kEngineFailed, std::string("bulk copies of matrices: expected 16 bits or e4m3, got ") + dtype_name(dtype));
  }
}

// The driver's library is not linked: a build runs where there is none.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result), "cuTensorMapEncodeTiled");
  if (found == nullptr || result != cudaDriverEntryPointSuccess)
    throw Error(kDeviceUnavailable, "the driver has no cuTensorMapEncodeTiled: expected that of CUDA 12 or later");
  return reinterpret_cast<Encode>(found);
}

}  // namespace

CUtensorMap tensor_map(const Tensor& matrix, std::uint32_t box_rows) {
  static const Encode encode = find_encode();
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.cols), static_cast<cuuint64_t>(matrix.rows)};
  const auto size = static_cast<std::uint32_t>(dtype_bytes(matrix.dtype));
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(matrix.stride) * size};
  const cuuint32_t box[2] = {kPanelRowBytes / size, box_rows}, steps[2] = {1, 1};
  const CUresult result = encode(&map, type_of(matrix.dtype), 2, matrix.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw Error(kEngineFailed, "a matrix of " + shape_text(matrix.rows, matrix.cols) + ", stride " + std::to_string(matrix.stride) +
                                   ", can't be described to bulk copies (CUDA error " + std::to_string(static_cast<int>(result)) + ")");
  return map;
}

}  // namespace pipelora::cuda
