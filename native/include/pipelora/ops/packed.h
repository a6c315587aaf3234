// Weights in bitsandbytes' serialised form: taken from a checkpoint's arrays after a check, or made from plain values.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>

#include "pipelora/ops/ops.h"
#include "quant/four_bit/double_quant.h"
#include "quant/state.h"

namespace pipelora {

using PackedState = std::variant<quant::State4, quant::State8>;

/// Values of a block of MXFP4.
inline constexpr std::int64_t kMxBlock = 32;

inline quant::FourBit four_bit_of(Quantisation quantisation) {
  return quantisation == Quantisation::nf4 ? quant::FourBit::nf4 : quantisation == Quantisation::fp4 ? quant::FourBit::fp4 : quant::FourBit::mxfp4;
}

/// Bytes in host memory.
struct HostBytes {
  const void* data = nullptr;
  std::size_t bytes = 0;
};

/// The arrays of one weight [rows, cols], not yet trusted. 8 bits: codes and absmax (its SCB) alone. MXFP4: codes, the even value in
/// a byte's low half, and absmax alone: a biased exponent (E8M0) a block.
template <class Array>
struct PackedArrays {
  HoldSpec hold;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Array codes, absmax;
  Array quant_map;
  Array nested_absmax, nested_quant_map;  // with double quantisation
  double nested_offset = 0;
};

/// Copies the arrays. Throws PL_QUANTIZATION_INVALID where a length, a map or a scale contradicts the rest.
PackedState unpack(const PackedArrays<HostBytes>& arrays);

/// `data` [rows, cols] quantised. Throws PL_QUANTIZATION_INVALID for a NaN or an infinity, naming its place.
PackedState quantise_weight(const HostTensor& data, const HoldSpec& hold, int threads);

/// The values [rows, cols] -> target, in `dtype`.
void dequantise_weight(const PackedState& state, void* target, DType dtype, int threads);

/// Rows and columns of the weight.
std::pair<std::int64_t, std::int64_t> shape_of(const PackedState& state);

}  // namespace pipelora
