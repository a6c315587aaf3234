// A quantised weight with everything that bitsandbytes serialises beside it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quant/array.h"
#include "quant/int8/int8.h"
#include "quant/four_bit/weight4.h"

namespace pipelora::quant {

/// How a weight is to be held in 4 bits: the fields of BitsAndBytesConfig that decide the bytes.
struct Config4 {
  FourBit type = FourBit::nf4;
  std::int64_t blocksize = 64;
  bool double_quant = false;
};

/// Owns a 4-bit weight. Either absmax is filled, or absmax_codes, nested_absmax and nested_offset are.
struct State4 {
  FourBit type = FourBit::nf4;
  std::int64_t blocksize = 64;
  Float dtype = Float::f32;
  std::int64_t out = 0;
  std::int64_t in = 0;
  Array<std::uint8_t> packed;
  Array<float> absmax;
  Array<std::uint8_t> absmax_codes;
  Array<float> nested_absmax;
  float nested_offset = 0;

  bool nested() const { return !absmax_codes.empty(); }
  Weight4 view() const;
  /// Bytes held (the two maps are constants and not counted).
  std::size_t bytes() const;
};

/// Owns an 8-bit weight.
struct State8 {
  std::int64_t out = 0;
  std::int64_t in = 0;
  Array<std::int8_t> q;
  Array<float> scb;

  Weight8 view() const { return {q.data(), scb.data(), out, in}; }
  std::size_t bytes() const { return q.bytes() + scb.bytes(); }
};

/// Quantises weight [out, in] of `format` (for example a mapped file's bytes), rounded to `as` first, in parallel chunks;
/// nothing of its size is allocated beside the result. Returns -1, or the flat index of the first NaN or infinity.
std::int64_t quantise(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in,
                      const Config4& config, int threads, State4& state);
std::int64_t quantise(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in, int threads,
                      State8& state);

/// One tensor of a checkpoint; `data` points into the state or into constants. dtype as safetensors names it.
struct SerialisedTensor {
  std::string name;
  const char* dtype;
  std::vector<std::int64_t> shape;
  const void* data;
  std::size_t bytes;
};

/// The tensors of `module` as bitsandbytes writes them: module.weight, module.weight.absmax, .quant_map, .nested_absmax,
/// .nested_quant_map and .quant_state.bitsandbytes__nf4 (the bytes of `json`, which quant_state_json makes).
std::vector<SerialisedTensor> serialised(const State4& state, const std::string& module, const std::string& json);
/// module.weight, module.SCB and module.weight_format (0: row-major).
std::vector<SerialisedTensor> serialised(const State8& state, const std::string& module);

/// {"quant_type": …, "blocksize": …, "dtype": …, "shape": […]} and, if nested, nested_blocksize, nested_dtype, nested_offset.
std::string quant_state_json(const State4& state);

/// Tensors of a 4-bit checkpoint and the fields of its quant_state, before they are trusted.
struct Serialised4 {
  State4 state;
  Array<float> quant_map;
  Array<float> nested_quant_map;
  std::int64_t nested_blocksize = 0;
};

/// Empty, or what is wrong: an odd block size, an array of another length than shape and block size imply, a map that is not
/// this format's, scales that are not finite.
std::string defect(const Serialised4& tensors);
/// Empty, or what is wrong with an 8-bit weight: array lengths, a scale that is not finite or negative.
std::string defect(const State8& state);

}  // namespace pipelora::quant
