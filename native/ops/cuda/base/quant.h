// Quantised weights on the device: quantise once at loading, expand to the compute dtype before a product.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "ops/cuda/kernel_choice.h"
#include "pipelora/core/tensor.h"
#include "quant/four_bit/codebook.h"

namespace pipelora::cuda {

/// Tables in device memory, one set an engine.
struct QuantTables {
  const float* dynamic_map = nullptr;         // [256]
  const float* dynamic_thresholds = nullptr;  // [255]
};

/// One checkpoint tensor [rows, in] in 4 bits; layouts as in quant/weight4.h.
struct Packed4 {
  const std::uint8_t* packed = nullptr;
  const float* absmax = nullptr;        // plain scales, or null where doubly quantised
  const std::uint8_t* codes = nullptr;  // 8-bit scales, in memory that can be read by whole groups of four bytes
  const float* nested = nullptr;
  const float* offset = nullptr;  // one number, on the device
  std::int64_t rows = 0, in = 0;
  int block_shift = 6;  // log2 of the block size
  quant::FourBit type = quant::FourBit::nf4;
  DType via = DType::f32;  // values are rounded to this dtype first: that of the weight that was quantised
};

/// to [rows, in] (strided) in its dtype.
void dequantise4(const Packed4& weight, const QuantTables& tables, const Tensor& to, cudaStream_t stream);
/// `count` weights of one shape and form (that of `one`), described on the device: to [count * rows, in].
void dequantise4_all(const Packed4* weights, std::int64_t count, const Packed4& one, const QuantTables& tables, const Tensor& to, cudaStream_t stream);

/// One of the matrices whose outputs stand beside each other in y.
struct FewPart {
  Packed4 weight;
  std::int64_t first = 0;      // of y's columns
  const void* bias = nullptr;  // of these rows, in y's dtype, or null
  std::int64_t first_inner = 0;
  Tensor bt;  // [R, rows] f32 of the pair that applies to these rows, or empty
  float scale = 0;
};
/// FewKernel::bulk: where blocks that share rows leave their sums, and how many have. Zero before the first product; each leaves it zero.
struct FewScratch {
  float* sums = nullptr;              // few_scratch_floats()
  std::uint32_t* counters = nullptr;  // [kMostFewTiles]
};
inline constexpr int kMostFewTiles = 1 << 16;
/// On the current device.
std::int64_t few_scratch_floats();

struct FewTokens {
  Tensor x;         // [T, in], T <= kFewTokens
  Tensor residual;  // [T, out] or empty
  Tensor inner;     // [T, inner columns] f32, or empty
  Tensor y;         // [T, out] in x's dtype
  std::vector<FewPart> parts;  // held the same way
  FewScratch scratch;
};
/// y = x Wᵀ + bias + residual + scale * inner Bᵀ without expanding W, the sums f32. For 16-bit y W is what the codes stand for,
/// rounded to y's dtype and times the unrounded scale (dequantise4 rounds the product of both); for f32 as dequantise4 gives it.
/// A token's numbers do not depend on the other tokens, nor on how many there are.
/// `kernel`: few_kernel()'s, not `expanded`; `bulk` takes call.scratch. False, and nothing done, where shapes do not suit `bulk`.
bool product_of_few(const FewTokens& call, FewKernel kernel, const QuantTables& tables, const GpuKind& gpu, cudaStream_t stream);
FewKernel few_kernel(const FewTokens& call, const GpuKind& gpu);

/// source [count] dense, a floating dtype, each element first rounded to `as`. Blocks [0, blocks) are written;
/// *bad becomes the index (plus `base`) of the first element that is not finite, if smaller than it was.
void quantise4(const void* source, DType dtype, DType as, std::int64_t count, int block_shift, quant::FourBit type,
               std::uint8_t* packed, float* absmax, std::int64_t base, unsigned long long* bad, cudaStream_t stream);

/// offset = mean(absmax); codes and nested absmax of absmax - offset. `partial` has 1024 entries.
void quantise_absmax(const float* absmax, std::int64_t count, const QuantTables& tables, double* partial, float* offset,
                     std::uint8_t* codes, float* nested, cudaStream_t stream);

}  // namespace pipelora::cuda
