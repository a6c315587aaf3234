// LLM.int8() on the device; numbers as in quant/int8.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/lora/lora.h"
#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// source [n, in], rounded to `as` and then to f16 -> codes [n, in] and scales [n]. *bad as in quantise4.
void quantise_weight8(const Tensor& source, DType as, const Tensor& codes, float* scales, std::int64_t base,
                      unsigned long long* bad, cudaStream_t stream);

/// to [out, in] = codes * (scale / 127), rounded once.
void dequantise8(const Tensor& codes, const float* scales, const Tensor& to, cudaStream_t stream);

/// Columns of x [T, in] that hold an outlier, ascending: columns [in] and *count, all on the device. flags [in] is scratch.
void find_outliers(const Tensor& x, float threshold, std::int32_t* flags, std::int32_t* columns, std::int32_t* count,
                   cudaStream_t stream);

/// x -> codes [T, in] (outliers and outlier columns 0; the padding behind `in` too) and absmax [T].
void quantise_rows(const Tensor& x, float threshold, const std::int32_t* flags, const Tensor& codes, float* absmax,
                   cudaStream_t stream);

/// y += x's outlier columns times the weight's, which are first rounded to the compute dtype; `count` of `columns`, both on the device.
void add_outlier_product(const Tensor& x, const Tensor& codes, const float* scales, const std::int32_t* columns, const std::int32_t* count,
                         const Tensor& y, cudaStream_t stream);

struct Int8Finish {
  Tensor sums;  // [T, out] int32
  const float* absmax = nullptr;
  const float* scales = nullptr;
  const void* bias = nullptr;  // [out] compute, or null
  Tensor residual;             // or empty
  Tensor y;
  LoraSet lora;  // pairs of rank 8 at most, or none
  Tensor inner;
};
/// y = f16(sums * absmax * scales / 127² + bias) + residual + scale * inner Bᵀ, rounded once to y's dtype.
void finish_int8(const Int8Finish& call, cudaStream_t stream);

}  // namespace pipelora::cuda
