#include "addon/thread/engine_thread.h"

#include "pipelora/core/error.h"

namespace pipelora::addon {

EngineThread::EngineThread(std::function<std::unique_ptr<Engine>()> make) {
  thread_ = std::thread([this, make = std::move(make)] { run(make); });
}

EngineThread::~EngineThread() { join(); }

void EngineThread::join() {
  close([] {});
  if (thread_.joinable()) thread_.join();
}

Engine& EngineThread::engine() const {
  if (failure_) std::rethrow_exception(failure_);
  return *engine_;
}

FrozenLayers EngineThread::release() {
  if (failure_) std::rethrow_exception(failure_);
  tensors_->close();
  const std::unique_ptr<Engine> ended = std::move(engine_);
  failure_ = std::make_exception_ptr(Error(kEngineFailed, "the engine is closed"));
  return ended->release();
}

EngineMemory EngineThread::memory() const {
  const std::lock_guard lock(mutex_);
  return memory_;
}

double EngineThread::busy_seconds() const {
  const std::lock_guard lock(mutex_);
  return worked_seconds_ ? *worked_seconds_ : std::chrono::duration<double>(busy_).count();
}

void EngineThread::close(std::function<void()> closed) {
  bool now = false;
  {
    const std::lock_guard lock(mutex_);
    if (ended_)
      now = true;
    else
      on_closed_.push_back(closed);
  }
  queue_->close();
  if (now) closed();
}

void EngineThread::note(std::chrono::steady_clock::time_point began) {
  if (!engine_) return;
  const EngineMemory memory = engine_->memory();
  const std::optional<double> worked = engine_->ops().worked_seconds();
  const std::lock_guard lock(mutex_);
  memory_ = memory;
  worked_seconds_ = worked;
  busy_ += std::chrono::steady_clock::now() - began;
}

void EngineThread::run(const std::function<std::unique_ptr<Engine>()>& make) {
  tensors_->open();
  try {
    engine_ = make();
    note(std::chrono::steady_clock::now());
  } catch (...) {
    failure_ = std::current_exception();
  }
  while (std::optional<WorkQueue::Work> work = queue_->pop()) {
    const auto began = std::chrono::steady_clock::now();
    (*work)();
    work.reset();  // what it held is dropped before the job counts as done
    note(began);
  }
  tensors_->close();
  engine_.reset();
  std::vector<std::function<void()>> waiting;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    waiting.swap(on_closed_);
  }
  for (const auto& closed : waiting) closed();
}

}  // namespace pipelora::addon
