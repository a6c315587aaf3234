// The device memory that JavaScript holds. The store owns it, on the engine's thread alone; a handle is a name for a piece of
// it that may be copied and dropped on any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>

#include "addon/thread/work_queue.h"
#include "pipelora/core/arena.h"

namespace pipelora::addon {

class TensorStore;

/// Shared ownership of a tensor. The last copy gives the memory back: at once on the engine's thread; from another thread, after the work queued so far.
class TensorHandle {
 public:
  TensorHandle(std::shared_ptr<TensorStore> store, std::uint64_t id, const Tensor& tensor)
      : dtype(tensor.dtype), rows(tensor.rows), cols(tensor.cols), store_(std::move(store)), id_(id) {}
  ~TensorHandle();
  TensorHandle(const TensorHandle&) = delete;
  TensorHandle& operator=(const TensorHandle&) = delete;

  const DType dtype;
  const std::int64_t rows, cols;

 private:
  friend class TensorStore;
  std::shared_ptr<TensorStore> store_;
  std::uint64_t id_;
};

class TensorStore : public std::enable_shared_from_this<TensorStore> {
 public:
  explicit TensorStore(std::shared_ptr<WorkQueue> queue) : queue_(std::move(queue)) {}

  /// These on the engine's thread, which calls open() first and close() last.
  void open() { thread_ = std::this_thread::get_id(); }
  /// A handle of a result; null for an empty buffer.
  std::shared_ptr<TensorHandle> hold(Buffer buffer);
  /// Throws PL_TENSOR_MISMATCH if it was freed or taken.
  const Buffer& at(const TensorHandle& handle) const;
  Buffer take(const TensorHandle& handle);
  void close() { held_.clear(); }

 private:
  friend class TensorHandle;
  /// On any thread.
  void drop(std::uint64_t id);

  std::shared_ptr<WorkQueue> queue_;
  std::atomic<std::thread::id> thread_{};
  std::map<std::uint64_t, Buffer> held_;
  std::uint64_t next_ = 0;
};

}  // namespace pipelora::addon
