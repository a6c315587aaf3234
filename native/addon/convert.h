// JavaScript values to the core's records and back. Messages read "expected X for Y, got Z".
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "pipelora/ops/batch.h"
#include "pipelora/ops/ops.h"
#include "pipelora/model/optimizer.h"
#include "pipelora/ops/packed.h"
#include "pipelora/model/spec.h"

namespace pipelora::addon {

/// An Error with `code`: that of the catalogue, PL_OUT_OF_MEMORY for std::bad_alloc, else PL_ENGINE_FAILED.
Napi::Error to_js_error(Napi::Env env, std::exception_ptr failure);

[[noreturn]] void mismatch(const char* expected, const char* what, const Napi::Value& value);
/// null or undefined
bool absent(const Napi::Value& value);
Napi::Object to_object(const Napi::Value& value, const char* what);
Napi::Array to_array(const Napi::Value& value, const char* what);
std::int64_t to_int(const Napi::Value& value, const char* what);
double to_number(const Napi::Value& value, const char* what);
std::string to_text(const Napi::Value& value, const char* what);
bool to_bool(const Napi::Value& value, const char* what);
Napi::Uint8Array to_bytes(const Napi::Value& value, const char* what);
struct Extents {
  std::int64_t rows = 1, cols = 1;
};

/// Of a shape: the last extent, and the product of those before it.
Extents to_extents(const Napi::Value& shape);
/// float32, bfloat16 or float16
DType to_float_dtype(const Napi::Value& value);
std::vector<double> to_doubles(const Napi::Value& value, const char* what);
std::vector<float> to_float32s(const Napi::Value& value, const char* what);
std::vector<std::int32_t> to_int32s(const Napi::Value& value, const char* what);

// describe_model.cpp
Arch to_arch(const Napi::Value& value);
SegmentSpec to_segment(const Napi::Value& value);
std::vector<LayerSpec> to_layers(const Napi::Value& value);

/// An adapter's number; absent: the first.
std::size_t to_adapter(const Napi::Value& value);
TensorSource to_source(const Napi::Value& value);
HoldSpec to_hold(const Napi::Value& value);
/// PackedWeight<TensorSource> and PackedWeight<Uint8Array>; `keep` is given each of the latter's arrays, whose bytes are not copied.
PackedArrays<TensorSource> to_packed_source(const Napi::Value& value);
PackedArrays<HostBytes> to_packed_bytes(const Napi::Value& value, const std::function<void(const Napi::Value&)>& keep);
MicroBatch to_micro_batch(const Napi::Value& value);
/// Of an optimizer step: what all matrices share, and each one's rate.
AdamSettings to_adam(const Napi::Value& value);
std::vector<MatrixRate> to_rates(const Napi::Value& value);
CachedSequences to_cached_sequences(const Napi::Value& value);
/// Its settings; what a call draws from is filled in by the caller.
Sampling to_sampling(const Napi::Value& value);
MatrixPart to_part(const Napi::Value& value);

struct RandomKey {
  std::uint64_t seed, stream, offset;
};
RandomKey to_key(const Napi::Value& value);

}  // namespace pipelora::addon
