// Free functions of the addon: plain weights to bitsandbytes' tensors and back.
#pragma once

#include <napi.h>

namespace pipelora::addon {

Napi::Value quantize(const Napi::CallbackInfo& info);
Napi::Value dequantize(const Napi::CallbackInfo& info);

}  // namespace pipelora::addon
