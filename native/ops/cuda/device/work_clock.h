// How long a stream's device worked, by its own clock.
#pragma once

#include <cuda_runtime.h>

#include <deque>
#include <vector>

namespace pipelora::cuda {

/// Sums the times of stretches of work on one stream. Errors are left to the work itself: a stretch that can't be timed counts as none.
class WorkClock {
 public:
  WorkClock() = default;
  ~WorkClock() {
    for (const auto* stretches : {&under_way_, &free_})
      for (const Stretch& stretch : *stretches)
        for (cudaEvent_t event : {stretch.begin, stretch.end}) cudaEventDestroy(event);
  }
  WorkClock(const WorkClock&) = delete;
  WorkClock& operator=(const WorkClock&) = delete;

  void begin(cudaStream_t stream) {
    stream_ = stream;
    if (free_.empty()) {
      Stretch made;
      if (cudaEventCreate(&made.begin) != cudaSuccess || cudaEventCreate(&made.end) != cudaSuccess) return;
      free_.push_back(made);
    }
    current_ = free_.back();
    free_.pop_back();
    cudaEventRecord(current_.begin, stream_);
  }
  void end() {
    if (current_.begin == nullptr) return;
    cudaEventRecord(current_.end, stream_);
    under_way_.push_back(current_);
    current_ = {};
  }

  /// Of the stretches that are over.
  double seconds() {
    for (; !under_way_.empty() && cudaEventQuery(under_way_.front().end) != cudaErrorNotReady; under_way_.pop_front()) {
      float milliseconds = 0;
      if (cudaEventElapsedTime(&milliseconds, under_way_.front().begin, under_way_.front().end) == cudaSuccess) seconds_ += milliseconds * 1e-3;
      free_.push_back(under_way_.front());
    }
    return seconds_;
  }

 private:
  struct Stretch {
    cudaEvent_t begin = nullptr, end = nullptr;
  };
  cudaStream_t stream_ = nullptr;
  Stretch current_;
  std::deque<Stretch> under_way_, free_;
  double seconds_ = 0;
};

}  // namespace pipelora::cuda
