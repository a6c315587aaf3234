// How the methods of EngineObject queue their work: for the files that define them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "addon/convert.h"
#include "addon/engine_object.h"
#include "addon/tensor_object.h"
#include "pipelora/core/error.h"

namespace pipelora::addon {

/// One queued call. Made and ended on JavaScript's thread, worked on the engine's.
struct EngineObject::Job {
  explicit Job(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise::Deferred deferred;
  std::exception_ptr failure;
  std::function<Napi::Value(Napi::Env)> answer;
};

inline Napi::Value reject(Napi::Env env, std::exception_ptr failure) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Reject(to_js_error(env, failure).Value());
  return deferred.Promise();
}

template <class Work, class Answer>
Napi::Value EngineObject::queue(Napi::Env env, Work work, Answer answer) {
  using Result = std::invoke_result_t<Work&, Engine&>;
  auto* job = new Job(env);
  const Napi::Promise promise = job->deferred.Promise();
  auto result = std::make_shared<std::optional<Result>>();
  job->answer = [answer = std::move(answer), result](Napi::Env now) mutable { return answer(now, std::move(**result)); };
  started(env);
  // Held by shared_ptr: std::function wants something that can be copied.
  auto body = std::make_shared<Work>(std::move(work));
  const bool accepted = thread_->post([this, thread = thread_.get(), job, result, body] {
    try {
      result->emplace((*body)(thread->engine()));
    } catch (...) {
      job->failure = std::current_exception();
    }
    settle(job);
  });
  if (!accepted) {
    const std::unique_ptr<Job> own(job);
    own->deferred.Reject(to_js_error(env, std::make_exception_ptr(Error(kEngineFailed, "the engine is closed"))).Value());
    finished(env);
  }
  return promise;
}

template <class Work>
Napi::Value EngineObject::queue_void(Napi::Env env, Work work) {
  return queue(
      env,
      [work = std::move(work)](Engine& engine) mutable {
        work(engine);
        return true;
      },
      [](Napi::Env now, bool) { return now.Undefined(); });
}

template <class Work>
Napi::Value EngineObject::queue_tensor(Napi::Env env, Work work) {
  return queue(
      env, [thread = thread_.get(), work = std::move(work)](Engine& engine) mutable { return thread->tensors().hold(work(engine)); },
      [thread = thread_](Napi::Env now, std::shared_ptr<TensorHandle> handle) { return TensorObject::wrap(now, thread, std::move(handle)); });
}

template <class Make>
Napi::Value EngineObject::promised(const Napi::CallbackInfo& info, Make make) {
  try {
    return make();
  } catch (...) {
    return reject(info.Env(), std::current_exception());
  }
}

}  // namespace pipelora::addon
