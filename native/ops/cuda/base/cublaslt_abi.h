// The part of cuBLASLt's C interface that is used, as documented by NVIDIA for versions 12 and 13.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pipelora::cuda::lt {

using Status = int;  // 0: success, 3: allocation failed
using Handle = void*;
using MatmulDesc = void*;
using MatrixLayout = void*;
using Preference = void*;

struct Algo {
  std::uint64_t data[8];
};
struct HeuristicResult {
  Algo algo;
  std::size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

inline constexpr std::int32_t kCompute32F = 68, kCompute32I = 72;
inline constexpr std::int32_t kNotTransposed = 0, kTransposed = 1;
inline constexpr std::int32_t kDescTransA = 3, kDescTransB = 4, kDescEpilogue = 7, kDescBiasPointer = 8, kDescBiasType = 26;
inline constexpr std::int32_t kDescScaleA = 17, kDescScaleB = 18, kDescFastSums = 25, kDescScaleModeA = 31, kDescScaleModeB = 32;
inline constexpr std::int32_t kScaleRows = 3;  // a float32 a row of the product's operand
inline constexpr std::int32_t kEpilogueBias = 4;
inline constexpr std::int32_t kAlgoTile = 1;
inline constexpr std::int32_t kTile128x256 = 23, kTile256x128 = 24;
inline constexpr std::int32_t kPreferWorkspace = 1, kPreferAlignA = 5, kPreferAlignB = 6, kPreferAlignC = 7, kPreferAlignD = 8;

}  // namespace pipelora::cuda::lt
