// The thread that owns an engine: makes it, works on it, ends it. Everybody else queues.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "addon/thread/tensor_store.h"
#include "addon/thread/work_queue.h"
#include "pipelora/model/engine.h"

namespace pipelora::addon {

class EngineThread {
 public:
  /// `make` is called on the thread, before everything queued.
  explicit EngineThread(std::function<std::unique_ptr<Engine>()> make);
  /// Not on the thread itself.
  ~EngineThread();

  /// Runs `work` on the thread after everything queued before. False once closing has begun: it will not run.
  bool post(std::function<void()> work) { return queue_->push(std::move(work)); }
  /// As of the last finished job.
  EngineMemory memory() const;
  /// Seconds of work so far, as of the last finished job: by a device's own clock what it computed, else what jobs took.
  double busy_seconds() const;

  /// On the thread: the engine. Throws what making it threw.
  Engine& engine() const;
  /// On the thread: the engine ends, what it leaves (Engine::release()) is given back, and engine() throws from now on.
  FrozenLayers release();
  /// On the thread: the tensors that JavaScript holds.
  TensorStore& tensors() const { return *tensors_; }

  /// What is queued still runs, then `closed` on the thread, which ends. Idempotent: later calls only queue `closed`.
  void close(std::function<void()> closed);
  /// Closes and waits for the thread's end.
  void join();

 private:
  void run(const std::function<std::unique_ptr<Engine>()>& make);
  void note(std::chrono::steady_clock::time_point began);

  const std::shared_ptr<WorkQueue> queue_ = std::make_shared<WorkQueue>();
  const std::shared_ptr<TensorStore> tensors_ = std::make_shared<TensorStore>(queue_);

  mutable std::mutex mutex_;
  std::vector<std::function<void()>> on_closed_;
  bool ended_ = false;
  EngineMemory memory_;
  std::chrono::steady_clock::duration busy_{};
  std::optional<double> worked_seconds_;

  // Of the thread alone.
  std::unique_ptr<Engine> engine_;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace pipelora::addon
