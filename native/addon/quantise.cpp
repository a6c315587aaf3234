#include "addon/quantise.h"

#include <cstring>
#include <memory>

#include "addon/background.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {

/// Smaller arrays (maps, scales of scales) are copied; larger ones stay in the state until their buffer is collected.
constexpr std::size_t kCopiedBytes = 1 << 16;

int to_threads(const Napi::Value& value) {
  const std::int64_t threads = to_int(value, "threads");
  if (threads < 1 || threads > 1024) throw Error(kTensorMismatch, "threads: expected 1 to 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

const char* dtype_of(const char* safetensors_name) {
  constexpr std::pair<const char*, const char*> names[] = {{"U8", "uint8"}, {"I8", "int8"}, {"F32", "float32"}};
  for (const auto& [name, dtype] : names)
    if (std::strcmp(name, safetensors_name) == 0) return dtype;
  throw Error(kEngineFailed, std::string("a serialised tensor of dtype ") + safetensors_name);
}

Napi::Value to_tensor(Napi::Env env, const quant::SerialisedTensor& from, const std::shared_ptr<PackedState>& state) {
  Napi::Array shape = Napi::Array::New(env, from.shape.size());
  for (std::uint32_t i = 0; i < from.shape.size(); ++i) shape.Set(i, Napi::Number::New(env, static_cast<double>(from.shape[i])));
  auto* data = static_cast<std::uint8_t*>(const_cast<void*>(from.data));
  Napi::Object tensor = Napi::Object::New(env);
  tensor.Set("suffix", Napi::String::New(env, from.name.substr(1)));  // the module's name is empty: ".weight"
  tensor.Set("dtype", Napi::String::New(env, dtype_of(from.dtype)));
  tensor.Set("shape", shape);
  if (from.bytes <= kCopiedBytes) {
    tensor.Set("bytes", Napi::Buffer<std::uint8_t>::Copy(env, data, from.bytes));
  } else {
    tensor.Set("bytes", Napi::Buffer<std::uint8_t>::New(
                            env, data, from.bytes,
                            [](Napi::Env, std::uint8_t*, std::shared_ptr<PackedState>* owner) { delete owner; },
                            new std::shared_ptr<PackedState>(state)));
  }
  return tensor;
}

Napi::Value to_tensors(Napi::Env env, const std::shared_ptr<PackedState>& state) {
  std::string json;
  std::vector<quant::SerialisedTensor> tensors;
  if (const auto* four = std::get_if<quant::State4>(state.get())) {
    json = quant::quant_state_json(*four);
    tensors = quant::serialised(*four, "", json);
  } else {
    tensors = quant::serialised(std::get<quant::State8>(*state), "");
  }
  Napi::Array result = Napi::Array::New(env, tensors.size());
  for (std::uint32_t i = 0; i < tensors.size(); ++i) result.Set(i, to_tensor(env, tensors[i], state));
  return result;
}

}  // namespace

Napi::Value quantize(const Napi::CallbackInfo& info) {
  return promised(info, [&]() -> Napi::Value {
    const Napi::Uint8Array weight = to_bytes(info[0], "weight");
    const DType dtype = to_float_dtype(info[1]);
    if (!info[2].IsArray() || info[2].As<Napi::Array>().Length() != 2) throw Error(kTensorMismatch, "expected [out, in] for shape");
    const Napi::Array shape = info[2].As<Napi::Array>();
    const std::int64_t out = to_int(shape.Get(0u), "shape"), in = to_int(shape.Get(1u), "shape");
    const HoldSpec hold = to_hold(info[3]);
    const int threads = to_threads(info[4]);
    if (out <= 0 || in <= 0 || out >= (std::int64_t{1} << 31) || in >= (std::int64_t{1} << 31) ||
        weight.ByteLength() != static_cast<std::size_t>(out * in) * dtype_bytes(dtype))
      throw Error(kTensorMismatch, "expected a weight " + shape_text(out, in) + " in " + dtype_name(dtype) + ", got " +
                                       std::to_string(weight.ByteLength()) + " bytes");
    if (hold.quantisation == Quantisation::none) throw Error(kTensorMismatch, "hold: expected a quantised form");
    const auto state = std::make_shared<PackedState>();
    auto* work = new Background(
        info.Env(),
        [state, data = HostTensor{weight.Data(), dtype, out, in}, hold, threads] { *state = quantise_weight(data, hold, threads); },
        [state](Napi::Env env) { return to_tensors(env, state); });
    work->keep(weight);
    work->Queue();
    return work->promise();
  });
}

Napi::Value dequantize(const Napi::CallbackInfo& info) {
  return promised(info, [&]() -> Napi::Value {
    std::vector<Napi::Value> arrays;
    const PackedArrays<HostBytes> packed = to_packed_bytes(info[0], [&arrays](const Napi::Value& array) { arrays.push_back(array); });
    const DType dtype = to_float_dtype(info[1]);
    const int threads = to_threads(info[2]);
    const auto values = std::make_shared<std::unique_ptr<std::uint8_t[]>>();
    const auto bytes = std::make_shared<std::size_t>(0);
    auto* work = new Background(
        info.Env(),
        [values, bytes, packed, dtype, threads] {
          const PackedState state = unpack(packed);
          const auto [out, in] = shape_of(state);
          *bytes = static_cast<std::size_t>(out * in) * dtype_bytes(dtype);
          values->reset(new std::uint8_t[*bytes]);
          dequantise_weight(state, values->get(), dtype, threads);
        },
        [values, bytes](Napi::Env env) -> Napi::Value {
          std::uint8_t* data = values->release();
          return Napi::Buffer<std::uint8_t>::New(env, data, *bytes, [](Napi::Env, std::uint8_t* held) { delete[] held; });
        });
    for (const Napi::Value& array : arrays) work->keep(array);
    work->Queue();
    return work->promise();
  });
}

}  // namespace pipelora::addon
