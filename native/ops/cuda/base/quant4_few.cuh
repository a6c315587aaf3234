// What the products of a few tokens with a weight in 4 bits share: their parts, and what is added to their sums.
#pragma once

#include "ops/cuda/base/quant_device.cuh"

namespace pipelora::cuda {

inline constexpr int kMaxParts = 4;

template <class T>
struct FewCallPart {
  Packed4 w;
  const T* bias;
  const T* residual;
  const float* inner;
  const float* bt;
  std::int64_t bt_stride;
  int rank;
  float scale;
  T* y;
  unsigned first_unit;  // of what the kernel divides rows into: blocks, or tiles
};

template <class T>
struct FewCall {
  FewCallPart<T> part[kMaxParts];
  int parts;
  const T* x;
  std::int64_t x_stride, residual_stride, inner_stride, y_stride;
  int tokens;
  int groups_per_block;
};

/// What is added to the sum of one token and row: what of it are weights, read ahead, all but the ranks of LoRA above eight.
inline constexpr int kEarlyRanks = 8;
template <class T>
struct FewAddend {
  float bias = 0, bt[kEarlyRanks] = {};
};

template <class T>
__device__ inline FewAddend<T> read_addend(const FewCallPart<T>& part, std::int64_t row) {
  FewAddend<T> addend;
  if (part.bias != nullptr) addend.bias = widen(part.bias[row]);
#pragma unroll
  for (int k = 0; k < kEarlyRanks; ++k)
    if (k < part.rank) addend.bt[k] = part.bt[k * part.bt_stride + row];
  return addend;
}

template <class T>
__device__ inline float finished(const FewCall<T>& call, const FewCallPart<T>& part, int t, std::int64_t row, const FewAddend<T>& addend) {
  float term = 0, residual = 0;
  if (part.residual != nullptr) residual = widen(part.residual[t * call.residual_stride + row]);
#pragma unroll
  for (int k = 0; k < kEarlyRanks; ++k)
    if (k < part.rank) term += part.inner[t * call.inner_stride + k] * addend.bt[k];
  for (int k = kEarlyRanks; k < part.rank; ++k) term += part.inner[t * call.inner_stride + k] * part.bt[k * part.bt_stride + row];
  return addend.bias + residual + part.scale * term;
}

template <class T>
FewCall<T> call_of(const FewTokens& few) {
  FewCall<T> call{};
  call.parts = static_cast<int>(few.parts.size());
  call.x = few.x.as<T>();
  call.x_stride = few.x.stride;
  call.residual_stride = few.residual.stride;
  call.inner_stride = few.inner.stride;
  call.y_stride = few.y.stride;
  call.tokens = static_cast<int>(few.x.rows);
  for (int i = 0; i < call.parts; ++i) {
    const FewPart& from = few.parts[static_cast<std::size_t>(i)];
    FewCallPart<T>& part = call.part[i];
    part.w = from.weight;
    part.bias = static_cast<const T*>(from.bias);
    if (few.residual) part.residual = few.residual.as<T>() + from.first;
    if (from.bt) part.inner = few.inner.as<float>() + from.first_inner;
    part.bt = from.bt.as<float>();
    part.bt_stride = from.bt.stride;
    part.rank = static_cast<int>(from.bt.rows);
    part.scale = from.scale;
    part.y = few.y.as<T>() + from.first;
  }
  return call;
}

/// 16-bit inputs on Hopper (quant4_few_hopper.cu): scales of whole 64 columns. False, and nothing done, where shapes do not suit.
bool product_of_few_hopper(const FewTokens& few, const QuantTables& tables, cudaStream_t stream);
/// float32 (quant4_few_plain.cu).
void product_of_few_plain(const FewTokens& few, const QuantTables& tables, cudaStream_t stream);

}  // namespace pipelora::cuda
