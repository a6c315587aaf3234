#include "pipelora/ops/packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "pipelora/core/error.h"

namespace pipelora {

namespace {

quant::Float float_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return quant::Float::f32;
    case DType::bf16: return quant::Float::bf16;
    case DType::f16: return quant::Float::f16;
    default: throw Error(kTensorMismatch, std::string("expected float32, bfloat16 or float16, got ") + dtype_name(dtype));
  }
}

template <class T>
quant::Array<T> copied(const HostBytes& bytes, const char* what) {
  if (bytes.bytes % sizeof(T) != 0)
    throw Error(kQuantizationInvalid, std::string("expected elements of ") + std::to_string(sizeof(T)) + " bytes in " + what +
                                          ", got " + std::to_string(bytes.bytes) + " bytes");
  quant::Array<T> array(static_cast<std::int64_t>(bytes.bytes / sizeof(T)));
  if (bytes.bytes > 0) std::memcpy(array.data(), bytes.data, bytes.bytes);
  return array;
}

void refuse(const std::string& defect) {
  if (!defect.empty()) throw Error(kQuantizationInvalid, defect);
}

/// OCP Microscaling Formats 1.0: value = E2M1 code * 2^(scale - 127).
quant::State4 unpack_mx(const PackedArrays<HostBytes>& from) {
  const std::int64_t count = from.rows * from.cols;
  if (from.cols % kMxBlock != 0) refuse("its rows of " + std::to_string(from.cols) + " values are no blocks of " + std::to_string(kMxBlock));
  const quant::Array<std::uint8_t> scales = copied<std::uint8_t>(from.absmax, "scales");
  quant::State4 state;
  state.type = quant::FourBit::mxfp4;
  state.blocksize = kMxBlock;
  state.dtype = float_of(from.hold.dtype);
  state.out = from.rows;
  state.in = from.cols;
  state.packed = copied<std::uint8_t>(from.codes, "a 4-bit weight");
  if (state.packed.size() != count / 2 || scales.size() != count / kMxBlock)
    refuse("expected " + std::to_string(count / 2) + " bytes of codes and " + std::to_string(count / kMxBlock) + " scales, got " +
           std::to_string(state.packed.size()) + " and " + std::to_string(scales.size()));
  for (std::int64_t i = 0; i < state.packed.size(); ++i) {
    const std::uint8_t pair = state.packed.data()[i];
    state.packed.data()[i] = static_cast<std::uint8_t>(pair << 4 | pair >> 4);
  }
  state.absmax = quant::Array<float>(scales.size());
  for (std::int64_t i = 0; i < scales.size(); ++i) {
    if (scales.data()[i] == 255) refuse("the scale of block " + std::to_string(i) + " is no number");
    state.absmax.data()[i] = std::ldexp(1.0f, static_cast<int>(scales.data()[i]) - 127);
  }
  return state;
}

}  // namespace

void LinearWeight::load(std::size_t, quant::State4&&, const HoldSpec&) {
  throw Error(kDeviceUnavailable, "this device takes no weights that are quantised already");
}
void LinearWeight::load(std::size_t, quant::State8&&, const HoldSpec&) {
  throw Error(kDeviceUnavailable, "this device takes no weights that are quantised already");
}

PackedState unpack(const PackedArrays<HostBytes>& from) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (from.rows <= 0 || from.cols <= 0 || from.rows >= kMost || from.cols >= kMost)
    throw Error(kQuantizationInvalid, "its shape is " + shape_text(from.rows, from.cols));
  if (from.hold.quantisation == Quantisation::int8) {
    quant::State8 state;
    state.out = from.rows;
    state.in = from.cols;
    state.q = copied<std::int8_t>(from.codes, "an 8-bit weight");
    state.scb = copied<float>(from.absmax, "SCB");
    refuse(quant::defect(state));
    return state;
  }
  if (from.hold.quantisation == Quantisation::mxfp4) return unpack_mx(from);
  quant::Serialised4 tensors;
  quant::State4& state = tensors.state;
  state.type = four_bit_of(from.hold.quantisation);
  state.blocksize = from.hold.block_size;
  state.dtype = float_of(from.hold.dtype);
  state.out = from.rows;
  state.in = from.cols;
  state.packed = copied<std::uint8_t>(from.codes, "a 4-bit weight");
  tensors.quant_map = copied<float>(from.quant_map, "quant_map");
  if (from.hold.double_quant) {
    state.absmax_codes = copied<std::uint8_t>(from.absmax, "absmax");
    state.nested_absmax = copied<float>(from.nested_absmax, "nested_absmax");
    state.nested_offset = static_cast<float>(from.nested_offset);
    tensors.nested_quant_map = copied<float>(from.nested_quant_map, "nested_quant_map");
    tensors.nested_blocksize = quant::kNestedBlock;
  } else {
    state.absmax = copied<float>(from.absmax, "absmax");
  }
  refuse(quant::defect(tensors));
  return std::move(state);
}

PackedState quantise_weight(const HostTensor& data, const HoldSpec& hold, int threads) {
  const auto check = [&](std::int64_t bad, DType dtype) {
    if (bad < 0) return;
    throw Error(kQuantizationInvalid, "row " + std::to_string(bad / data.cols) + ", column " + std::to_string(bad % data.cols) +
                                          " is NaN or infinite in " + dtype_name(dtype) + ": it can't be quantised");
  };
  if (hold.quantisation == Quantisation::int8) {
    quant::State8 state;
    check(quant::quantise(data.data, float_of(data.dtype), float_of(hold.dtype), data.rows, data.cols, threads, state), DType::f16);
    return state;
  }
  if (!quant::is_block_size(hold.block_size))
    throw Error(kQuantizationInvalid,
                "4-bit block size: expected a power of two from 32 to 4096, got " + std::to_string(hold.block_size));
  if (hold.quantisation == Quantisation::mxfp4) throw Error(kQuantizationInvalid, "nothing is quantised to MXFP4");
  quant::State4 state;
  check(quant::quantise(data.data, float_of(data.dtype), float_of(hold.dtype), data.rows, data.cols,
                        {four_bit_of(hold.quantisation), hold.block_size, hold.double_quant}, threads, state),
        hold.dtype);
  return state;
}

void dequantise_weight(const PackedState& state, void* target, DType dtype, int threads) {
  if (const auto* four = std::get_if<quant::State4>(&state)) {
    quant::dequantise(four->view(), target, float_of(dtype), threads);
    return;
  }
  const auto& eight = std::get<quant::State8>(state);
  constexpr std::int64_t kRows = 64;
  const std::int64_t tasks = (eight.out + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && tasks > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::int64_t first = task * kRows;
    char* to = static_cast<char*>(target) + static_cast<std::size_t>(first * eight.in) * dtype_bytes(dtype);
    quant::dequantise_tile(eight.view(), first, std::min(eight.out, first + kRows), 0, eight.in, to, float_of(dtype), eight.in);
  }
}

std::pair<std::int64_t, std::int64_t> shape_of(const PackedState& state) {
  return std::visit([](const auto& held) { return std::pair(held.out, held.in); }, state);
}

}  // namespace pipelora
