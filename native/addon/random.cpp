#include "addon/random.h"

#include "addon/background.h"
#include "addon/convert.h"
#include "pipelora/core/error.h"
#include "pipelora/core/host_math.h"

namespace pipelora::addon {

namespace {

Napi::Float32Array to_floats(const Napi::Value& value, const char* what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array)
    throw Error(kTensorMismatch, std::string("expected a Float32Array for ") + what);
  return value.As<Napi::Float32Array>();
}

}  // namespace

Napi::Value fill_normal(const Napi::CallbackInfo& info) {
  return promised(info, [&]() -> Napi::Value {
    Napi::Uint8Array out = to_bytes(info[0], "out");
    const DType dtype = to_float_dtype(info[1]);
    const RandomKey key = to_key(info[2]);
    const double std = to_number(info[3], "std");
    const std::int64_t threads = to_int(info[4], "threads");
    if (threads < 1 || threads > 1024) throw Error(kTensorMismatch, "threads: expected 1 to 1024, got " + std::to_string(threads));
    if (out.ByteLength() % dtype_bytes(dtype) != 0) throw Error(kTensorMismatch, "out: its size is no multiple of the dtype's");
    auto* work = new Background(info.Env(), [data = out.Data(), count = out.ByteLength() / dtype_bytes(dtype), dtype, key, std, threads] {
      pipelora::fill_normal(data, dtype, static_cast<std::int64_t>(count), key.seed, key.stream, key.offset, static_cast<float>(std),
                            static_cast<int>(threads));
    });
    work->keep(out);
    work->Queue();
    return work->promise();
  });
}

Napi::Value fill_uniform(const Napi::CallbackInfo& info) {
  try {
    Napi::Float32Array out = to_floats(info[0], "out");
    const RandomKey key = to_key(info[1]);
    pipelora::fill_uniform(out.Data(), static_cast<std::int64_t>(out.ElementLength()), key.seed, key.stream, key.offset,
                           static_cast<float>(to_number(info[2], "bound")));
    return info.Env().Undefined();
  } catch (...) {
    throw to_js_error(info.Env(), std::current_exception());
  }
}

Napi::Value add_low_rank(const Napi::CallbackInfo& info) {
  return promised(info, [&]() -> Napi::Value {
    Napi::Uint8Array weight = to_bytes(info[0], "weight");
    const DType dtype = to_float_dtype(info[1]);
    const std::int64_t out = to_int(info[2], "out"), in = to_int(info[3], "input");
    Napi::Float32Array a = to_floats(info[4], "a"), b = to_floats(info[5], "b");
    const double scale = to_number(info[6], "scale");
    const auto a_size = static_cast<std::int64_t>(a.ElementLength());
    const std::int64_t r = in > 0 ? a_size / in : 0;
    if (out <= 0 || in <= 0 || r <= 0 || r * in != a_size || static_cast<std::int64_t>(b.ElementLength()) != out * r ||
        weight.ByteLength() != static_cast<std::size_t>(out * in) * dtype_bytes(dtype))
      throw Error(kTensorMismatch, "expected a weight " + shape_text(out, in) + ", a [R, in] and b [out, R]; got " +
                                       std::to_string(weight.ByteLength()) + " bytes, " + std::to_string(a_size) + " and " +
                                       std::to_string(b.ElementLength()) + " values");
    auto* work = new Background(info.Env(), [data = weight.Data(), dtype, out, in, pa = a.Data(), pb = b.Data(), r, scale] {
      pipelora::add_low_rank(data, dtype, out, in, pa, pb, r, static_cast<float>(scale));
    });
    for (const Napi::Value& value : {info[0], info[4], info[5]}) work->keep(value);
    work->Queue();
    return work->promise();
  });
}

}  // namespace pipelora::addon
