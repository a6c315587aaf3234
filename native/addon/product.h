// A product for whoever tries the addon: does oneDNN, and what it needs, work on this machine?
#pragma once

#include <napi.h>

namespace pipelora::addon {

/// (a [m, k], b [n, k], k) -> a b^T [m, n], float32, on the calling thread.
Napi::Value product(const Napi::CallbackInfo& info);

}  // namespace pipelora::addon
