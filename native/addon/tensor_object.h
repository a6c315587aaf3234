// A DeviceTensor of JavaScript.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/thread/engine_thread.h"

namespace pipelora::addon {

class TensorObject : public Napi::ObjectWrap<TensorObject> {
 public:
  static Napi::Function define(Napi::Env env);
  /// null for no handle.
  static Napi::Value wrap(Napi::Env env, std::shared_ptr<EngineThread> owner, std::shared_ptr<TensorHandle> handle);
  /// The handle of a value that must be a tensor of `owner`; the object holds none afterwards if `consume`.
  static std::shared_ptr<TensorHandle> unwrap(const Napi::Value& value, const EngineThread& owner, bool consume);

  explicit TensorObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value free(const Napi::CallbackInfo& info);

  std::shared_ptr<EngineThread> owner_;
  std::shared_ptr<TensorHandle> handle_;
};

}  // namespace pipelora::addon
