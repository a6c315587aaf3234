// What the links need of the machine.
#pragma once

#include <napi.h>

namespace pipelora::addon {

void define_comm(Napi::Env env, Napi::Object exports);

}  // namespace pipelora::addon
