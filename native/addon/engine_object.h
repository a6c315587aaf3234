// The Engine of JavaScript: unwraps arguments, queues work, resolves promises.
#pragma once

#include <napi.h>

#include <memory>

#include "addon/thread/engine_thread.h"
#include "addon/settler.h"

namespace pipelora::addon {

/// Constructors kept per environment (a worker thread has its own).
struct Constructors {
  Napi::FunctionReference engine, tensor, place, frozen;
};

class EngineObject : public Napi::ObjectWrap<EngineObject> {
 public:
  static Napi::Function define(Napi::Env env);
  /// openEngine(options): a promise of an engine, made on its own thread.
  static Napi::Value open(const Napi::CallbackInfo& info);
  explicit EngineObject(const Napi::CallbackInfo& info);
  ~EngineObject() override;

 private:
  struct Job;
  /// `work(engine)` runs on the engine's thread and gives a result; `answer(env, result)` makes its JavaScript value.
  template <class Work, class Answer>
  Napi::Value queue(Napi::Env env, Work work, Answer answer);
  /// As queue(), for work without a result.
  template <class Work>
  Napi::Value queue_void(Napi::Env env, Work work);
  /// Resolves with the Buffer that `work` gives, as a DeviceTensor.
  template <class Work>
  Napi::Value queue_tensor(Napi::Env env, Work work);
  /// Runs `make` and turns what it throws into a rejected promise.
  template <class Make>
  Napi::Value promised(const Napi::CallbackInfo& info, Make make);
  /// From the engine's thread: runs `end` on JavaScript's.
  void settle(Job* job);
  void end(Napi::Env env, Job* job);
  void started(Napi::Env env);
  void finished(Napi::Env env);

  Napi::Value add_segment(const Napi::CallbackInfo& info);
  Napi::Value add_adapter(const Napi::CallbackInfo& info);
  Napi::Value load_weight(const Napi::CallbackInfo& info);
  Napi::Value load_packed(const Napi::CallbackInfo& info);
  Napi::Value load_values(const Napi::CallbackInfo& info);
  Napi::Value missing_weights(const Napi::CallbackInfo& info);
  Napi::Value set_matrix(const Napi::CallbackInfo& info);
  Napi::Value get_matrix(const Napi::CallbackInfo& info);
  Napi::Value matrix_names(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value backward(const Napi::CallbackInfo& info);
  Napi::Value discard(const Napi::CallbackInfo& info);
  Napi::Value first_values(const Napi::CallbackInfo& info);
  Napi::Value gradients(const Napi::CallbackInfo& info);
  Napi::Value set_gradients(const Napi::CallbackInfo& info);
  Napi::Value grad_squares(const Napi::CallbackInfo& info);
  Napi::Value watch_inputs(const Napi::CallbackInfo& info);
  Napi::Value take_inputs(const Napi::CallbackInfo& info);
  Napi::Value optimizer_step(const Napi::CallbackInfo& info);
  Napi::Value zero_grad(const Napi::CallbackInfo& info);
  Napi::Value create_cache(const Napi::CallbackInfo& info);
  Napi::Value free_cache(const Napi::CallbackInfo& info);
  Napi::Value infer(const Napi::CallbackInfo& info);
  Napi::Value sample(const Napi::CallbackInfo& info);
  Napi::Value read(const Napi::CallbackInfo& info);
  Napi::Value read_into(const Napi::CallbackInfo& info);
  Napi::Value write(const Napi::CallbackInfo& info);
  Napi::Value encode(const Napi::CallbackInfo& info);
  Napi::Value decode(const Napi::CallbackInfo& info);
  Napi::Value read_to(const Napi::CallbackInfo& info);
  Napi::Value copy(const Napi::CallbackInfo& info);
  Napi::Value write_from(const Napi::CallbackInfo& info);
  Napi::Value gradients_to(const Napi::CallbackInfo& info);
  Napi::Value set_gradients_from(const Napi::CallbackInfo& info);
  Napi::Value sum_parts(const Napi::CallbackInfo& info);
  Napi::Value gradient_count(const Napi::CallbackInfo& info);
  Napi::Value busy_seconds(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value device_use(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
  Napi::Value release(const Napi::CallbackInfo& info);

  std::shared_ptr<EngineThread> thread_;
  std::shared_ptr<Settler> settler_;
  int pending_ = 0;                  // promises not settled: they keep the process alive
};

}  // namespace pipelora::addon
