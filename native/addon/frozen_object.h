// Frozen layers between two engines, as JavaScript holds them.
#pragma once

#include <napi.h>

#include <map>
#include <memory>
#include <string>

#include "pipelora/model/frozen_layers.h"

namespace pipelora::addon {

/// {layers, bytes, free()}
class FrozenObject : public Napi::ObjectWrap<FrozenObject> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Value wrap(Napi::Env env, FrozenLayers frozen);
  /// Throws PL_ENGINE_FAILED for layers that were freed or taken before.
  static std::unique_ptr<FrozenLayers> take(const Napi::Value& value);
  explicit FrozenObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value free(const Napi::CallbackInfo& info);

  std::unique_ptr<FrozenLayers> frozen_;
};

/// [{layer, expanded}]
std::map<std::string, FrozenLayers::Wanted> to_wanted_layers(const Napi::Value& value);

}  // namespace pipelora::addon
