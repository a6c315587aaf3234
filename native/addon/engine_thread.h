// The thread that owns an engine, and the queue before it. Tensors that JavaScript holds are handles whose memory is
// only touched on that thread.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "pipelora/engine.h"

namespace pipelora::addon {

/// Device memory held by JavaScript. `buffer` belongs to the engine's thread; the rest is fixed.
struct TensorHandle {
  Buffer buffer;
  DType dtype = DType::f32;
  std::int64_t rows = 0, cols = 0;
};

class EngineThread {
 public:
  explicit EngineThread(std::unique_ptr<Engine> engine);
  ~EngineThread();

  /// Runs `work` on the thread after everything queued before. False once closing has begun: it will not run.
  bool post(std::function<void(Engine&)> work);
  /// For set-up calls that answer at once: waits for the job in progress.
  template <class Work>
  auto exclusively(Work&& work) {
    const std::lock_guard lock(engine_mutex_);
    if (!engine_) throw_closed();
    return work(*engine_);
  }
  /// As of the last finished job.
  EngineMemory memory() const;
  /// Seconds of work so far, as of the last finished job: by a device's own clock what it computed, else what jobs took.
  double busy_seconds() const;

  /// On the engine's thread: makes a handle of a result; null for an empty buffer.
  std::shared_ptr<TensorHandle> hold(Buffer buffer);
  /// On the engine's thread: takes a handle's memory. Throws PL_TENSOR_MISMATCH if it was freed.
  Buffer take(TensorHandle& handle);

  /// What is queued still runs, then `closed` on the engine's thread, which ends. Idempotent: later calls only queue `closed`.
  void close(std::function<void()> closed);
  /// Closes and waits for the thread's end.
  void join();
  [[noreturn]] static void throw_closed();

 private:
  void run();

  mutable std::mutex queue_mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void(Engine&)>> queue_;
  std::vector<std::function<void()>> on_closed_;
  bool closing_ = false, ended_ = false;
  EngineMemory memory_;
  std::chrono::steady_clock::duration busy_{};
  std::optional<double> worked_seconds_;

  std::mutex engine_mutex_;
  std::unique_ptr<Engine> engine_;
  std::set<std::weak_ptr<TensorHandle>, std::owner_less<>> handles_;
  std::thread thread_;
};

}  // namespace pipelora::addon
