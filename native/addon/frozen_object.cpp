#include "addon/frozen_object.h"

#include "addon/convert.h"
#include "addon/engine_object.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

Napi::Function FrozenObject::define(Napi::Env env) { return DefineClass(env, "FrozenLayers", {InstanceMethod<&FrozenObject::free>("free")}); }

FrozenObject::FrozenObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<FrozenObject>(info) {
  const Napi::Env env = info.Env();
  if (info.Length() != 1 || !info[0].IsExternal()) throw Napi::TypeError::New(env, "frozen layers are made by an engine's release()");
  frozen_ = std::make_unique<FrozenLayers>(std::move(*info[0].As<Napi::External<FrozenLayers>>().Data()));
  Napi::Array layers = Napi::Array::New(env);
  for (const auto& [name, weights] : frozen_->layers) layers.Set(layers.Length(), Napi::String::New(env, name));
  Napi::Object self = info.This().As<Napi::Object>();
  self.Set("layers", layers);
  self.Set("bytes", Napi::Number::New(env, static_cast<double>(frozen_->bytes())));
}

Napi::Value FrozenObject::wrap(Napi::Env env, FrozenLayers frozen) {
  return env.GetInstanceData<Constructors>()->frozen.New({Napi::External<FrozenLayers>::New(env, &frozen)});
}

Napi::Value FrozenObject::free(const Napi::CallbackInfo& info) {
  frozen_.reset();
  return info.Env().Undefined();
}

std::unique_ptr<FrozenLayers> FrozenObject::take(const Napi::Value& value) {
  if (!value.IsObject() || !value.As<Napi::Object>().InstanceOf(value.Env().GetInstanceData<Constructors>()->frozen.Value()))
    throw Error(kTensorMismatch, "expected frozen layers");
  std::unique_ptr<FrozenLayers> taken = std::move(FrozenObject::Unwrap(value.As<Napi::Object>())->frozen_);
  if (!taken) throw Error(kEngineFailed, "the frozen layers were freed or given to another engine before");
  return taken;
}

std::map<std::string, FrozenLayers::Wanted> to_wanted_layers(const Napi::Value& value) {
  std::map<std::string, FrozenLayers::Wanted> wanted;
  if (!value.IsArray()) throw Error(kTensorMismatch, "layers to keep: expected an array");
  const Napi::Array given = value.As<Napi::Array>();
  for (std::uint32_t i = 0; i < given.Length(); ++i) {
    const Napi::Object one = Napi::Value(given.Get(i)).As<Napi::Object>();
    wanted[to_text(one.Get("layer"), "layer")].expanded = to_bool(one.Get("expanded"), "expanded");
  }
  return wanted;
}

}  // namespace pipelora::addon
