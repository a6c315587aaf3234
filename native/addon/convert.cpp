#include "addon/convert.h"

#include <cmath>
#include <new>

#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {

std::string shown(const Napi::Value& value) {
  if (value.IsEmpty() || value.IsUndefined()) return "nothing";
  if (value.IsObject()) return "an object";
  return value.ToString().Utf8Value();
}

}  // namespace

void mismatch(const char* expected, const char* what, const Napi::Value& value) {
  throw Error(kTensorMismatch, std::string("expected ") + expected + " for " + what + ", got " + shown(value));
}

Napi::Object to_object(const Napi::Value& value, const char* what) {
  if (!value.IsObject()) mismatch("an object", what, value);
  return value.As<Napi::Object>();
}

Napi::Array to_array(const Napi::Value& value, const char* what) {
  if (!value.IsArray()) mismatch("an array", what, value);
  return value.As<Napi::Array>();
}

bool absent(const Napi::Value& value) { return value.IsNull() || value.IsUndefined(); }

Napi::Error to_js_error(Napi::Env env, std::exception_ptr failure) {
  const auto make = [&](const char* code, const std::string& message) {
    Napi::Error error = Napi::Error::New(env, message);
    error.Set("code", Napi::String::New(env, code));
    return error;
  };
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return make(error.code(), error.what());
  } catch (const Napi::Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return make(kOutOfMemory, "the system has no memory left for the engine");
  } catch (const std::exception& error) {
    return make(kEngineFailed, error.what());
  }
}

std::int64_t to_int(const Napi::Value& value, const char* what) {
  const double number = to_number(value, what);
  if (number != std::floor(number) || std::abs(number) > 9007199254740991.0) mismatch("an integer", what, value);
  return static_cast<std::int64_t>(number);
}
double to_number(const Napi::Value& value, const char* what) {
  if (!value.IsNumber()) mismatch("a number", what, value);
  return value.As<Napi::Number>().DoubleValue();
}
std::string to_text(const Napi::Value& value, const char* what) {
  if (!value.IsString()) mismatch("a string", what, value);
  return value.As<Napi::String>().Utf8Value();
}
bool to_bool(const Napi::Value& value, const char* what) {
  if (!value.IsBoolean()) mismatch("a boolean", what, value);
  return value.As<Napi::Boolean>().Value();
}

namespace {
template <class T>
std::vector<T> to_values(const Napi::Value& value, napi_typedarray_type type, const char* expected, const char* what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) mismatch(expected, what, value);
  const auto array = value.As<Napi::TypedArrayOf<T>>();
  return std::vector<T>(array.Data(), array.Data() + array.ElementLength());
}
}  // namespace

Napi::Uint8Array to_bytes(const Napi::Value& value, const char* what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw Error(kTensorMismatch, std::string("expected a Uint8Array for ") + what);
  return value.As<Napi::Uint8Array>();
}
Extents to_extents(const Napi::Value& shape) {
  if (!shape.IsArray()) throw Error(kTensorMismatch, "expected an array for shape");
  const Napi::Array extents = shape.As<Napi::Array>();
  Extents folded;
  for (std::uint32_t i = 0; i < extents.Length(); ++i) {
    const std::int64_t extent = to_int(extents.Get(i), "shape");
    if (extent <= 0 || extent >= (std::int64_t{1} << 31)) throw Error(kTensorMismatch, "shape: an extent is " + std::to_string(extent));
    if (i > 0) folded.rows *= folded.cols;
    folded.cols = extent;
    if (folded.rows >= (std::int64_t{1} << 31)) throw Error(kTensorMismatch, "shape: too many rows");
  }
  return folded;
}

DType to_float_dtype(const Napi::Value& value) {
  const DType dtype = dtype_from_name(to_text(value, "dtype"));
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16)
    throw Error(kTensorMismatch, std::string("expected float32, bfloat16 or float16 for dtype, got ") + dtype_name(dtype));
  return dtype;
}

std::vector<std::int32_t> to_int32s(const Napi::Value& value, const char* what) {
  return to_values<std::int32_t>(value, napi_int32_array, "an Int32Array", what);
}

std::vector<double> to_doubles(const Napi::Value& value, const char* what) {
  return to_values<double>(value, napi_float64_array, "a Float64Array", what);
}

std::vector<float> to_float32s(const Napi::Value& value, const char* what) {
  return to_values<float>(value, napi_float32_array, "a Float32Array", what);
}

std::size_t to_adapter(const Napi::Value& value) {
  if (absent(value)) return 0;
  const std::int64_t adapter = to_int(value, "adapter");
  if (adapter < 0) mismatch("no negative number", "adapter", value);
  return static_cast<std::size_t>(adapter);
}

TensorSource to_source(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the tensor's source");
  TensorSource source;
  source.path = to_text(from.Get("path"), "source.path");
  const std::int64_t offset = to_int(from.Get("offset"), "source.offset"), bytes = to_int(from.Get("bytes"), "source.bytes");
  if (offset < 0 || bytes < 0) throw Error(kCheckpointInvalid, source.path + ": a tensor's offset or size is negative");
  source.offset = static_cast<std::uint64_t>(offset);
  source.bytes = static_cast<std::uint64_t>(bytes);
  source.dtype = dtype_from_name(to_text(from.Get("dtype"), "source.dtype"));
  const Napi::Array shape = to_array(from.Get("shape"), "source.shape");
  for (std::uint32_t i = 0; i < shape.Length(); ++i) source.shape.push_back(to_int(shape.Get(i), "source.shape"));
  source.transposed = from.Has("transposed") && to_bool(from.Get("transposed"), "source.transposed");
  if (from.Has("scales")) {
    const Napi::Object scales = to_object(from.Get("scales"), "source.scales");
    const TensorSource values = to_source(scales.Get("location"));
    const Napi::Array block = to_array(scales.Get("block"), "source.scales.block");
    source.scales = {values.path, values.offset, values.bytes, values.dtype, to_int(block.Get(0u), "source.scales.block"), to_int(block.Get(1u), "source.scales.block")};
    if (source.scales.block_rows <= 0 || source.scales.block_cols <= 0) throw Error(kQuantizationInvalid, source.path + ": a block of scales has no rows or columns");
  }
  return source;
}

HoldSpec to_hold(const Napi::Value& value) {
  HoldSpec hold;
  if (value.IsString()) {
    hold.dtype = to_float_dtype(value);
    return hold;
  }
  const Napi::Object from = to_object(value, "hold");
  hold.dtype = to_float_dtype(from.Get("dtype"));
  const std::string method = to_text(from.Get("method"), "hold.method");
  if (method == "8bit") {
    hold.quantisation = Quantisation::int8;
    hold.threshold = static_cast<float>(to_number(from.Get("threshold"), "hold.threshold"));
    return hold;
  }
  if (method == "mxfp4") {
    hold.quantisation = Quantisation::mxfp4;
    hold.block_size = kMxBlock;
    return hold;
  }
  if (method != "4bit") mismatch("4bit, 8bit or mxfp4", "hold.method", from.Get("method"));
  const std::string type = to_text(from.Get("quantType"), "hold.quantType");
  if (type != "nf4" && type != "fp4") mismatch("nf4 or fp4", "hold.quantType", from.Get("quantType"));
  hold.quantisation = type == "nf4" ? Quantisation::nf4 : Quantisation::fp4;
  hold.block_size = to_int(from.Get("blockSize"), "hold.blockSize");
  hold.double_quant = to_bool(from.Get("doubleQuant"), "hold.doubleQuant");
  return hold;
}

namespace {
template <class Array, class To>
PackedArrays<Array> to_packed(const Napi::Value& value, To to) {
  const Napi::Object from = to_object(value, "the packed weight");
  PackedArrays<Array> packed;
  packed.hold = to_hold(from.Get("hold"));
  const Napi::Array shape = to_array(from.Get("shape"), "packed.shape");
  if (shape.Length() != 2) mismatch("two extents", "packed.shape", shape);
  packed.rows = to_int(shape.Get(0u), "packed.shape");
  packed.cols = to_int(shape.Get(1u), "packed.shape");
  packed.codes = to(from.Get("codes"));
  if (packed.hold.quantisation == Quantisation::int8) {
    packed.absmax = to(from.Get("scb"));
    return packed;
  }
  packed.absmax = to(from.Get(packed.hold.quantisation == Quantisation::mxfp4 ? "scales" : "absmax"));
  if (packed.hold.quantisation == Quantisation::mxfp4) return packed;
  packed.quant_map = to(from.Get("quantMap"));
  if (!packed.hold.double_quant) return packed;
  const Napi::Object nested = to_object(from.Get("nested"), "packed.nested");
  packed.nested_absmax = to(nested.Get("absmax"));
  packed.nested_quant_map = to(nested.Get("quantMap"));
  packed.nested_offset = to_number(nested.Get("offset"), "packed.nested.offset");
  return packed;
}
}  // namespace

PackedArrays<TensorSource> to_packed_source(const Napi::Value& value) {
  return to_packed<TensorSource>(value, [](const Napi::Value& array) { return to_source(array); });
}

PackedArrays<HostBytes> to_packed_bytes(const Napi::Value& value, const std::function<void(const Napi::Value&)>& keep) {
  return to_packed<HostBytes>(value, [&keep](const Napi::Value& array) {
    const Napi::Uint8Array bytes = to_bytes(array, "an array of a packed weight");
    keep(array);
    return HostBytes{bytes.Data(), bytes.ByteLength()};
  });
}

MicroBatch to_micro_batch(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the micro-batch");
  MicroBatch batch;
  batch.index = to_int(from.Get("index"), "batch.index");
  batch.adapter = to_adapter(from.Get("adapter"));
  batch.cu_seqlens = to_int32s(from.Get("cuSeqlens"), "batch.cuSeqlens");
  batch.row_ids = to_int32s(from.Get("rowIds"), "batch.rowIds");
  batch.step = static_cast<std::uint32_t>(to_int(from.Get("step"), "batch.step"));
  batch.seed = static_cast<std::uint64_t>(to_int(from.Get("seed"), "batch.seed"));
  batch.training = to_bool(from.Get("training"), "batch.training");
  batch.label_smoothing = static_cast<float>(to_number(from.Get("labelSmoothing"), "batch.labelSmoothing"));
  batch.noise_alpha = static_cast<float>(to_number(from.Get("noiseAlpha"), "batch.noiseAlpha"));
  batch.loss_scale = to_number(from.Get("lossScale"), "batch.lossScale");
  if (!absent(from.Get("tokens"))) batch.tokens = to_int32s(from.Get("tokens"), "batch.tokens");
  if (!absent(from.Get("targets"))) batch.targets = to_int32s(from.Get("targets"), "batch.targets");
  if (!absent(from.Get("weights"))) batch.weights = to_float32s(from.Get("weights"), "batch.weights");
  return batch;
}

AdamSettings to_adam(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the optimizer step");
  AdamSettings step;
  step.step = to_int(from.Get("step"), "step");
  step.grad_scale = to_number(from.Get("gradScale"), "gradScale");
  step.beta1 = to_number(from.Get("beta1"), "beta1");
  step.beta2 = to_number(from.Get("beta2"), "beta2");
  step.epsilon = to_number(from.Get("epsilon"), "epsilon");
  return step;
}

std::vector<MatrixRate> to_rates(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the optimizer step");
  const auto read = [&](const char* key) { return to_doubles(from.Get(key), key); };
  const std::vector<double> rates = read("learningRates"), decays = read("weightDecays");
  if (rates.size() != decays.size()) mismatch("as many weightDecays as learningRates", "the optimizer step", value);
  std::vector<MatrixRate> all;
  for (std::size_t i = 0; i < rates.size(); ++i) all.push_back({rates[i], decays[i]});
  return all;
}

CachedSequences to_cached_sequences(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the sequences of inference");
  const auto values = [&](const char* name) { return to_int32s(from.Get(name), name); };
  return {values("cuSeqlens"), values("slots"), values("starts"), values("past"), values("lengths")};
}

Sampling to_sampling(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the settings of sampling");
  Sampling call;
  call.repetition_penalty = static_cast<float>(to_number(from.Get("repetitionPenalty"), "repetitionPenalty"));
  call.temperature = to_number(from.Get("temperature"), "temperature");
  call.top_k = to_int(from.Get("topK"), "topK");
  call.top_p = to_number(from.Get("topP"), "topP");
  call.min_p = to_number(from.Get("minP"), "minP");
  return call;
}

MatrixPart to_part(const Napi::Value& value) {
  const std::string name = to_text(value, "part");
  if (name == "weight") return MatrixPart::weight;
  if (name == "grad") return MatrixPart::grad;
  if (name == "exp_avg") return MatrixPart::exp_avg;
  if (name == "exp_avg_sq") return MatrixPart::exp_avg_sq;
  mismatch("weight, grad, exp_avg or exp_avg_sq", "part", value);
}

RandomKey to_key(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "key");
  return {static_cast<std::uint64_t>(to_int(from.Get("seed"), "key.seed")), static_cast<std::uint64_t>(to_int(from.Get("stream"), "key.stream")),
          static_cast<std::uint64_t>(to_int(from.Get("offset"), "key.offset"))};
}

}  // namespace pipelora::addon
