// The ends of a shared memory link in JavaScript. Their memory is one ArrayBuffer; tensors are copied by whoever has a
// view of it, the engine's thread for one.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/settler.h"
#include "comm/shared_link.h"

namespace pipelora::addon {

/// new SharedSender(capacity, onProgress, onClosed)
class SharedSenderObject : public Napi::ObjectWrap<SharedSenderObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit SharedSenderObject(const Napi::CallbackInfo& info);
  ~SharedSenderObject() override;

 private:
  Napi::Value reserve(const Napi::CallbackInfo& info);
  Napi::Value publish(const Napi::CallbackInfo& info);
  Napi::Value granted(const Napi::CallbackInfo& info);
  Napi::Value wait_for_progress(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  std::shared_ptr<Settler> progress_, closed_;
  std::unique_ptr<comm::SharedSender> link_;
};

/// new SharedReceiver({pid, fd, token}, onMessage, onClosed)
class SharedReceiverObject : public Napi::ObjectWrap<SharedReceiverObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit SharedReceiverObject(const Napi::CallbackInfo& info);
  ~SharedReceiverObject() override;

 private:
  Napi::Value release(const Napi::CallbackInfo& info);
  Napi::Value grant(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  std::shared_ptr<Settler> message_, closed_;
  std::unique_ptr<comm::SharedReceiver> link_;
};

}  // namespace pipelora::addon
