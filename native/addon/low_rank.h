#pragma once

#include <napi.h>

namespace pipelora::addon {

/// face.ts: lowRank
Napi::Value low_rank(const Napi::CallbackInfo& info);

}  // namespace pipelora::addon
