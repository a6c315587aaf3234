#include "addon/pinned_arrays.h"

#include <string>

#include "addon/convert.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

std::shared_ptr<PinnedArrays> PinnedArrays::of(const Napi::Value& list, const char* what) {
  if (!list.IsArray()) throw Error(kTensorMismatch, std::string("expected an array of Uint8Arrays for ") + what);
  const Napi::Array from = list.As<Napi::Array>();
  auto pinned = std::make_shared<PinnedArrays>();
  pinned->what_ = what;
  for (std::uint32_t i = 0; i < from.Length(); ++i) {
    Napi::Uint8Array bytes = to_bytes(from.Get(i), what);
    pinned->spans_.push_back({bytes.Data(), bytes.ByteLength()});
    pinned->arrays_.push_back(Napi::Persistent(bytes));
  }
  return pinned;
}

void PinnedArrays::expect_in_place() const {
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    Napi::Uint8Array bytes = arrays_[i].Value();
    if (bytes.ByteLength() == spans_[i].bytes && (bytes.Data() == spans_[i].data || spans_[i].bytes == 0)) continue;
    throw Error(kTensorMismatch, std::string("an array of ") + what_ + " was transferred or resized before the engine was done with it");
  }
}

}  // namespace pipelora::addon
