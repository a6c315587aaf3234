// Work for one thread, in order, from any.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>

namespace pipelora::addon {

class WorkQueue {
 public:
  using Work = std::function<void()>;

  /// False once it is closed: the work will not run, and what it holds is dropped here, by the caller.
  bool push(Work work) {
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      queue_.push_back(std::move(work));
    }
    wake_.notify_one();
    return true;
  }
  /// Waits for the next; nothing once it is closed and empty.
  std::optional<Work> pop() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return std::nullopt;
    std::optional<Work> work(std::move(queue_.front()));
    queue_.pop_front();
    return work;
  }
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    wake_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;
  bool closed_ = false;
};

}  // namespace pipelora::addon
