#pragma once

#include <napi.h>

#include <memory>
#include <mutex>
#include <utility>

namespace pipelora::addon {

/// The way back to JavaScript's thread. The environment may take the function away before its user is collected.
struct Settler {
  std::mutex mutex;
  Napi::ThreadSafeFunction function;
  bool alive = false;

  /// Around `callback`; keeps no process alive.
  static std::shared_ptr<Settler> make(Napi::Env env, const Napi::Function& callback, const char* name) {
    auto settler = std::make_shared<Settler>();
    settler->function = Napi::ThreadSafeFunction::New(env, callback, name, 0, 1, [settler](Napi::Env) {
      const std::lock_guard lock(settler->mutex);
      settler->alive = false;
    });
    settler->alive = true;
    settler->function.Unref(env);
    return settler;
  }
  /// Queues `call(env, callback)` on JavaScript's thread, unless the process is ending.
  template <class Call>
  void post(Call call) {
    const std::lock_guard lock(mutex);
    if (alive) function.NonBlockingCall(std::move(call));
  }
};

}  // namespace pipelora::addon
