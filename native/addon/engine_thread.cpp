#include "addon/engine_thread.h"

#include "pipelora/error.h"

namespace pipelora::addon {

EngineThread::EngineThread(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {
  memory_ = engine_->memory();
  thread_ = std::thread([this] { run(); });
}

EngineThread::~EngineThread() { join(); }

void EngineThread::join() {
  close([] {});
  if (thread_.joinable()) thread_.join();
}

void EngineThread::throw_closed() { throw Error(kEngineFailed, "the engine is closed"); }

bool EngineThread::post(std::function<void(Engine&)> work) {
  {
    const std::lock_guard lock(queue_mutex_);
    if (closing_) return false;
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
  return true;
}

EngineMemory EngineThread::memory() const {
  const std::lock_guard lock(queue_mutex_);
  return memory_;
}

double EngineThread::busy_seconds() const {
  const std::lock_guard lock(queue_mutex_);
  return worked_seconds_ ? *worked_seconds_ : std::chrono::duration<double>(busy_).count();
}

std::shared_ptr<TensorHandle> EngineThread::hold(Buffer buffer) {
  if (!buffer) return nullptr;
  auto handle = std::make_shared<TensorHandle>();
  handle->dtype = buffer.tensor().dtype;
  handle->rows = buffer.tensor().rows;
  handle->cols = buffer.tensor().cols;
  handle->buffer = std::move(buffer);
  std::erase_if(handles_, [](const auto& held) { return held.expired(); });
  handles_.insert(handle);
  return handle;
}

Buffer EngineThread::take(TensorHandle& handle) {
  if (!handle.buffer) throw Error(kTensorMismatch, "the tensor was freed or given to another call before");
  return std::move(handle.buffer);
}

void EngineThread::close(std::function<void()> closed) {
  bool now = false;
  {
    const std::lock_guard lock(queue_mutex_);
    closing_ = true;
    if (ended_)
      now = true;
    else
      on_closed_.push_back(closed);
  }
  if (now) closed();
  wake_.notify_one();
}

void EngineThread::run() {
  for (;;) {
    std::function<void(Engine&)> work;
    {
      std::unique_lock lock(queue_mutex_);
      wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
      if (queue_.empty()) break;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    EngineMemory memory;
    std::optional<double> worked;
    const auto began = std::chrono::steady_clock::now();
    {
      const std::lock_guard lock(engine_mutex_);
      work(*engine_);
      work = nullptr;
      memory = engine_->memory();
      worked = engine_->ops().worked_seconds();
    }
    const std::lock_guard lock(queue_mutex_);
    memory_ = memory;
    worked_seconds_ = worked;
    busy_ += std::chrono::steady_clock::now() - began;
  }
  {
    const std::lock_guard lock(engine_mutex_);
    for (const auto& held : handles_)
      if (const auto handle = held.lock()) handle->buffer.reset();
    handles_.clear();
    engine_.reset();
  }
  std::vector<std::function<void()>> waiting;
  {
    const std::lock_guard lock(queue_mutex_);
    ended_ = true;
    waiting.swap(on_closed_);
  }
  for (const auto& closed : waiting) closed();
}

}  // namespace pipelora::addon
