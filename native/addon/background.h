// Work of free functions: off the event loop, answered by a promise.
#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "addon/convert.h"

namespace pipelora::addon {

/// Runs `work` on a thread of libuv's pool; the arrays kept stay alive until it is done. The promise resolves with what
/// `answer` makes then (undefined without).
class Background final : public Napi::AsyncWorker {
 public:
  Background(Napi::Env env, std::function<void()> work, std::function<Napi::Value(Napi::Env)> answer = nullptr)
      : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), work_(std::move(work)), answer_(std::move(answer)) {}
  void keep(const Napi::Value& value) { kept_.push_back(Napi::Persistent(value.As<Napi::Object>())); }
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    try {
      work_();
    } catch (...) {
      failure_ = std::current_exception();
    }
  }
  void OnOK() override {
    if (failure_)
      deferred_.Reject(to_js_error(Env(), failure_).Value());
    else
      deferred_.Resolve(answer_ ? answer_(Env()) : Env().Undefined());
  }

 private:
  Napi::Promise::Deferred deferred_;
  std::function<void()> work_;
  std::function<Napi::Value(Napi::Env)> answer_;
  std::exception_ptr failure_;
  std::vector<Napi::ObjectReference> kept_;
};

/// Runs `make` and turns what it throws into a rejected promise.
template <class Make>
Napi::Value promised(const Napi::CallbackInfo& info, Make make) {
  try {
    return make();
  } catch (...) {
    const auto deferred = Napi::Promise::Deferred::New(info.Env());
    deferred.Reject(to_js_error(info.Env(), std::current_exception()).Value());
    return deferred.Promise();
  }
}

}  // namespace pipelora::addon
