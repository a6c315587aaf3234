// How weights are held, and what products see of them, by the quantisation library.
#pragma once

#include <string>
#include <vector>

#include "pipelora/core/half.h"
#include "pipelora/ops/ops.h"
#include "quant/four_bit/double_quant.h"
#include "quant/int8/int8.h"
#include "quant/four_bit/weight4.h"
#include "tests/gpu/cuda_fixture.h"

namespace pipelora::test {

inline std::string hold_name(const HoldSpec& hold) {
  std::string name = hold.quantisation == Quantisation::none ? "held"
                     : hold.quantisation == Quantisation::nf4 ? "nf4"
                     : hold.quantisation == Quantisation::fp4 ? "fp4"
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
inline HoldSpec int8(DType dtype, float threshold) {
  HoldSpec hold = held(dtype);
  hold.quantisation = Quantisation::int8;
  hold.threshold = threshold;
  return hold;
}

}  // namespace pipelora::test
