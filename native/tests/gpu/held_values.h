// How weights are held, and what products see of them, by the quantisation library.
#pragma once

#include <string>
#include <vector>

#include "pipelora/core/half.h"
#include "pipelora/ops/ops.h"
#include "quant/four_bit/double_quant.h"
#include "quant/int8/int8.h"
#include "quant/state.h"
#include "quant/four_bit/weight4.h"
#include "tests/gpu/cuda_fixture.h"

namespace pipelora::test {

inline std::string hold_name(const HoldSpec& hold) {
  std::string name = hold.quantisation == Quantisation::none ? "held"
                     : hold.quantisation == Quantisation::nf4 ? "nf4"
                     : hold.quantisation == Quantisation::fp4 ? "fp4"
                     : hold.quantisation == Quantisation::mxfp4 ? "mxfp4"
                                                              : "int8";
  if (hold.double_quant) name += "+dq";
  if (hold.keep_expanded) name += "+kept";
  if (hold.fp8) name += "+fp8";
  return name + " " + dtype_name(hold.dtype);
}

inline std::vector<float> floats(const Values& values) { return {values.begin(), values.end()}; }

inline quant::Float format_of(DType dtype) {
  return dtype == DType::f32 ? quant::Float::f32 : dtype == DType::bf16 ? quant::Float::bf16 : quant::Float::f16;
}

/// Blocks of 32 numbers of two bits' exponent and one of fraction, each with the power of two that its largest number calls for. `in` is a multiple of 32.
inline quant::State4 in_mxfp4(const std::vector<float>& source, std::int64_t rows, std::int64_t in, DType dtype) {
  constexpr std::int64_t kBlock = 32;
  quant::State4 state;
  state.type = quant::FourBit::mxfp4;
  state.blocksize = kBlock;
  state.dtype = format_of(dtype);
  state.out = rows;
  state.in = in;
  state.packed = quant::Array<std::uint8_t>(rows * in / 2);
  state.absmax = quant::Array<float>(rows * in / kBlock);
  const auto& values = quant::codebook4(state.type).values;
  for (std::int64_t block = 0; block < state.absmax.size(); ++block) {
    const float* from = source.data() + block * kBlock;
    float largest = 0;
    for (std::int64_t i = 0; i < kBlock; ++i) largest = std::max(largest, std::fabs(from[i]));
    const float scale = std::ldexp(1.0f, largest == 0 ? 0 : std::ilogb(largest) - 2);
    state.absmax.data()[block] = scale;
    const auto code = [&](float x) {
      const auto nearer = [&](float a, float b) { return std::fabs(a * scale - x) < std::fabs(b * scale - x); };
      return static_cast<unsigned>(std::min_element(values.begin(), values.end(), nearer) - values.begin());
    };
    for (std::int64_t i = 0; i < kBlock; i += 2)
      state.packed.data()[(block * kBlock + i) / 2] = static_cast<std::uint8_t>(code(from[i]) << 4 | code(from[i + 1]));
  }
  return state;
}

/// Loads one part [rows, in] as `hold` says, MXFP4 among it, to which no device quantises.
inline void load_held(LinearWeight& weight, std::size_t part, const Values& values, std::int64_t rows, std::int64_t in, const HoldSpec& hold) {
  const std::vector<float> source = floats(values);
  if (hold.quantisation == Quantisation::mxfp4)
    weight.load(part, in_mxfp4(source, rows, in, hold.dtype), hold);
  else
    weight.load(part, {source.data(), DType::f32, rows, in}, hold);
}

/// What a product sees of one part [rows, in].
inline Values seen_values(const Values& weight, std::int64_t rows, std::int64_t in, const HoldSpec& hold, DType compute) {
  Values seen(weight.size());
  const std::vector<float> source = floats(weight);
  const std::int64_t count = rows * in;
  if (hold.quantisation == Quantisation::none) {
    for (std::size_t i = 0; i < seen.size(); ++i) seen[i] = rounded(rounded(weight[i], hold.dtype), compute);
    return seen;
  }
  std::vector<float> values(weight.size());
  if (hold.quantisation == Quantisation::int8) {
    std::vector<std::int8_t> q(weight.size());
    std::vector<float> scb(static_cast<std::size_t>(rows));
    quant::quantise_weight8(source.data(), quant::Float::f32, format_of(hold.dtype), rows, in, q.data(), scb.data(), 4);
    quant::dequantise_tile(quant::Weight8{q.data(), scb.data(), rows, in}, 0, rows, 0, in, values.data(), quant::Float::f32, in);
  } else if (hold.quantisation == Quantisation::mxfp4) {
    quant::dequantise(in_mxfp4(source, rows, in, hold.dtype).view(), values.data(), quant::Float::f32, 4);
  } else {
    const auto type = hold.quantisation == Quantisation::nf4 ? quant::FourBit::nf4 : quant::FourBit::fp4;
    const std::int64_t blocks = quant::blocks_of(count, hold.block_size);
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(quant::packed_bytes(count))), codes(static_cast<std::size_t>(blocks));
    std::vector<float> absmax(static_cast<std::size_t>(blocks)), nested(static_cast<std::size_t>(quant::nested_blocks_of(blocks)));
    quant::quantise4(source.data(), quant::Float::f32, format_of(hold.dtype), count, hold.block_size, type, packed.data(), absmax.data(), 4);
    quant::Weight4 w;
    w.packed = packed.data();
    w.absmax.plain = absmax.data();
    w.out = rows;
    w.in = in;
    w.blocksize = hold.block_size;
    w.type = type;
    w.dtype = format_of(hold.dtype);
    if (hold.double_quant) {
      const float offset = quant::absmax_offset(absmax.data(), blocks);
      quant::quantise_absmax(absmax.data(), blocks, offset, codes.data(), nested.data(), 4);
      w.absmax = {nullptr, codes.data(), nested.data(), offset};
    }
    quant::dequantise(w, values.data(), quant::Float::f32, 4);
  }
  for (std::size_t i = 0; i < seen.size(); ++i) seen[i] = rounded(static_cast<double>(values[i]), compute);
  return seen;
}

inline HoldSpec held(DType dtype) {
  HoldSpec hold;
  hold.dtype = dtype;
  return hold;
}
inline HoldSpec four_bit(Quantisation type, DType dtype, bool double_quant, std::int64_t block = 64, bool kept = false) {
  HoldSpec hold = held(dtype);
  hold.quantisation = type;
  hold.double_quant = double_quant;
  hold.block_size = block;
  hold.keep_expanded = kept;
  return hold;
}
inline HoldSpec fp8(HoldSpec hold, bool kept = false) {
  hold.fp8 = true;
  hold.keep_expanded = kept;
  return hold;
}
inline HoldSpec mxfp4(DType dtype) {
  HoldSpec hold = held(dtype);
  hold.quantisation = Quantisation::mxfp4;
  hold.block_size = 32;
  return hold;
}
inline HoldSpec int8(DType dtype, float threshold) {
  HoldSpec hold = held(dtype);
  hold.quantisation = Quantisation::int8;
  hold.threshold = threshold;
  return hold;
}

}  // namespace pipelora::test
