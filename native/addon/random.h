// Free functions of the addon: random tensors and merging LoRA into a weight.
#pragma once

#include <napi.h>

namespace pipelora::addon {

Napi::Value fill_normal(const Napi::CallbackInfo& info);
Napi::Value fill_uniform(const Napi::CallbackInfo& info);
Napi::Value add_low_rank(const Napi::CallbackInfo& info);

}  // namespace pipelora::addon
