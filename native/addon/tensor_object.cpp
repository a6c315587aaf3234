#include "addon/tensor_object.h"

#include "addon/convert.h"
#include "addon/engine_object.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {
struct Parts {
  std::shared_ptr<EngineThread> owner;
  std::shared_ptr<TensorHandle> handle;
};
}  // namespace

Napi::Function TensorObject::define(Napi::Env env) {
  return DefineClass(env, "DeviceTensor", {InstanceMethod<&TensorObject::free>("free")});
}

Napi::Value TensorObject::wrap(Napi::Env env, std::shared_ptr<EngineThread> owner, std::shared_ptr<TensorHandle> handle) {
  if (!handle) return env.Null();
  Parts parts{std::move(owner), std::move(handle)};
  return env.GetInstanceData<Constructors>()->tensor.New({Napi::External<Parts>::New(env, &parts)});
}

TensorObject::TensorObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TensorObject>(info) {
  if (info.Length() != 1 || !info[0].IsExternal())
    throw Napi::TypeError::New(info.Env(), "device tensors are made by an engine's methods");
  Parts& parts = *info[0].As<Napi::External<Parts>>().Data();
  owner_ = std::move(parts.owner);
  handle_ = std::move(parts.handle);
  const Napi::Env env = info.Env();
  const auto bytes = static_cast<double>(static_cast<std::size_t>(handle_->rows * handle_->cols) * dtype_bytes(handle_->dtype));
  Napi::Array shape = Napi::Array::New(env, 2);
  shape.Set(0u, Napi::Number::New(env, static_cast<double>(handle_->rows)));
  shape.Set(1u, Napi::Number::New(env, static_cast<double>(handle_->cols)));
  Napi::Object self = info.This().As<Napi::Object>();
  self.Set("shape", shape);
  self.Set("dtype", Napi::String::New(env, dtype_name(handle_->dtype)));
  self.Set("bytes", Napi::Number::New(env, bytes));
}

Napi::Value TensorObject::free(const Napi::CallbackInfo& info) {
  handle_.reset();
  return info.Env().Undefined();
}

std::shared_ptr<TensorHandle> TensorObject::unwrap(const Napi::Value& value, const EngineThread& owner, bool consume) {
  const bool is_tensor =
      value.IsObject() && value.As<Napi::Object>().InstanceOf(value.Env().GetInstanceData<Constructors>()->tensor.Value());
  if (!is_tensor) throw Error(kTensorMismatch, "expected a device tensor");
  TensorObject* object = TensorObject::Unwrap(value.As<Napi::Object>());
  if (!object->handle_) throw Error(kTensorMismatch, "the device tensor was freed or given to another call before");
  if (object->owner_.get() != &owner) throw Error(kTensorMismatch, "the device tensor belongs to another engine");
  return consume ? std::move(object->handle_) : object->handle_;
}

}  // namespace pipelora::addon
