#include "quant/state.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "quant/four_bit/double_quant.h"

namespace pipelora::quant {
namespace {

const char* type_name(FourBit type) { return type == FourBit::nf4 ? "nf4" : type == FourBit::fp4 ? "fp4" : "mxfp4"; }

const char* dtype_name(Float format) {
  switch (format) {
    case Float::bf16: return "bfloat16";
    case Float::f16: return "float16";
    default: return "float32";
  }
}

std::string shortest(double value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value);
  return std::string(text, end.ptr);
}

template <class T>
SerialisedTensor tensor(std::string name, const char* dtype, std::vector<std::int64_t> shape, const T* data,
                        std::int64_t count) {
  return {std::move(name), dtype, std::move(shape), data, static_cast<std::size_t>(count) * sizeof(T)};
}

std::string expected(const char* what, std::int64_t wanted, std::int64_t got) {
  return std::string("expected ") + std::to_string(wanted) + " elements of " + what + " but found " +
         std::to_string(got);
}

bool all_finite(const Array<float>& values) {
  return std::all_of(values.data(), values.data() + values.size(), [](float value) { return std::isfinite(value); });
}

template <std::size_t kSize>
bool same(const Array<float>& values, const std::array<float, kSize>& map) {
  return values.size() == static_cast<std::int64_t>(kSize) && std::equal(map.begin(), map.end(), values.data());
}

}  // namespace

Weight4 State4::view() const {
  Weight4 weight;
  weight.packed = packed.data();
  weight.absmax = nested() ? Absmax{nullptr, absmax_codes.data(), nested_absmax.data(), nested_offset}
                           : Absmax{absmax.data(), nullptr, nullptr, 0.0f};
  weight.out = out;
  weight.in = in;
  weight.blocksize = blocksize;
  weight.type = type;
  weight.dtype = dtype;
  return weight;
}

std::size_t State4::bytes() const {
  return packed.bytes() + absmax.bytes() + absmax_codes.bytes() + nested_absmax.bytes();
}

std::int64_t quantise(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in,
                      const Config4& config, int threads, State4& state) {
  const std::int64_t count = out * in;
  const std::int64_t blocks = blocks_of(count, config.blocksize);
  state = State4{};
  state.type = config.type;
  state.blocksize = config.blocksize;
  state.dtype = as;
  state.out = out;
  state.in = in;
  state.packed = Array<std::uint8_t>(packed_bytes(count));
  state.absmax = Array<float>(blocks);
  const std::int64_t bad = quantise4(weight, format, as, count, config.blocksize, config.type, state.packed.data(),
                                     state.absmax.data(), threads);
  if (bad >= 0 || !config.double_quant) return bad;
  state.nested_offset = absmax_offset(state.absmax.data(), blocks);
  state.absmax_codes = Array<std::uint8_t>(blocks);
  state.nested_absmax = Array<float>(nested_blocks_of(blocks));
  quantise_absmax(state.absmax.data(), blocks, state.nested_offset, state.absmax_codes.data(),
                  state.nested_absmax.data(), threads);
  state.absmax = Array<float>();
  return -1;
}

std::int64_t quantise(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in, int threads,
                      State8& state) {
  state.out = out;
  state.in = in;
  state.q = Array<std::int8_t>(out * in);
  state.scb = Array<float>(out);
  return quantise_weight8(weight, format, as, out, in, state.q.data(), state.scb.data(), threads);
}

std::string quant_state_json(const State4& state) {
  std::string json = std::string("{\"quant_type\": \"") + type_name(state.type) +
                     "\", \"blocksize\": " + std::to_string(state.blocksize) + ", \"dtype\": \"" +
                     dtype_name(state.dtype) + "\", \"shape\": [" + std::to_string(state.out) + ", " +
                     std::to_string(state.in) + "]";
  if (state.nested()) {
    json += ", \"nested_blocksize\": " + std::to_string(kNestedBlock) +
            ", \"nested_dtype\": \"float32\", \"nested_offset\": " +
            shortest(static_cast<double>(state.nested_offset));
  }
  return json + "}";
}

std::vector<SerialisedTensor> serialised(const State4& state, const std::string& module, const std::string& json) {
  const std::string weight = module + ".weight";
  std::vector<SerialisedTensor> tensors;
  tensors.push_back(tensor(weight, "U8", {state.packed.size(), 1}, state.packed.data(), state.packed.size()));
  if (state.nested()) {
    tensors.push_back(
        tensor(weight + ".absmax", "U8", {state.absmax_codes.size()}, state.absmax_codes.data(), state.absmax_codes.size()));
    tensors.push_back(tensor(weight + ".nested_absmax", "F32", {state.nested_absmax.size()}, state.nested_absmax.data(),
                             state.nested_absmax.size()));
    tensors.push_back(tensor(weight + ".nested_quant_map", "F32", {256}, dynamic_map().data(), 256));
  } else {
    tensors.push_back(
        tensor(weight + ".absmax", "F32", {state.absmax.size()}, state.absmax.data(), state.absmax.size()));
  }
  tensors.push_back(tensor(weight + ".quant_map", "F32", {16}, codebook4(state.type).values.data(), 16));
  const auto size = static_cast<std::int64_t>(json.size());
  tensors.push_back(
      tensor(weight + ".quant_state.bitsandbytes__" + type_name(state.type), "U8", {size}, json.data(), size));
  return tensors;
}

std::vector<SerialisedTensor> serialised(const State8& state, const std::string& module) {
  static constexpr std::uint8_t kRowMajor = 0;
  std::vector<SerialisedTensor> tensors;
  tensors.push_back(tensor(module + ".weight", "I8", {state.out, state.in}, state.q.data(), state.q.size()));
  tensors.push_back(tensor(module + ".SCB", "F32", {state.out}, state.scb.data(), state.scb.size()));
  tensors.push_back(tensor(module + ".weight_format", "U8", {}, &kRowMajor, 1));
  return tensors;
}

std::string defect(const Serialised4& tensors) {
  const State4& state = tensors.state;
  if (!is_block_size(state.blocksize)) {
    return "expected a block size that is a power of two from 32 to 4096 but found " + std::to_string(state.blocksize);
  }
  const std::int64_t count = state.out * state.in;
  const std::int64_t blocks = blocks_of(count, state.blocksize);
  if (state.packed.size() != packed_bytes(count)) {
    return expected("packed codes", packed_bytes(count), state.packed.size());
  }
  if (!same(tensors.quant_map, codebook4(state.type).values)) {
    return std::string("quant_map does not hold the sixteen values of ") + type_name(state.type);
  }
  if (!state.nested()) {
    if (state.absmax.size() != blocks) return expected("absmax", blocks, state.absmax.size());
    return all_finite(state.absmax) ? "" : "absmax holds a NaN or an infinity";
  }
  if (state.absmax_codes.size() != blocks) return expected("absmax", blocks, state.absmax_codes.size());
  if (tensors.nested_blocksize != kNestedBlock) {
    return "expected a nested_blocksize of 256 but found " + std::to_string(tensors.nested_blocksize);
  }
  if (state.nested_absmax.size() != nested_blocks_of(blocks)) {
    return expected("nested_absmax", nested_blocks_of(blocks), state.nested_absmax.size());
  }
  if (!same(tensors.nested_quant_map, dynamic_map())) return "nested_quant_map does not hold the dynamic map's 256 values";
  if (!all_finite(state.nested_absmax) || !std::isfinite(state.nested_offset)) {
    return "nested_absmax or nested_offset holds a NaN or an infinity";
  }
  return "";
}

std::string defect(const State8& state) {
  if (state.q.size() != state.out * state.in) return expected("int8 codes", state.out * state.in, state.q.size());
  if (state.scb.size() != state.out) return expected("SCB", state.out, state.scb.size());
  const bool sound = std::all_of(state.scb.data(), state.scb.data() + state.scb.size(),
                                 [](float value) { return std::isfinite(value) && value >= 0.0f; });
  return sound ? "" : "SCB holds a negative number, a NaN or an infinity";
}

}  // namespace pipelora::quant
