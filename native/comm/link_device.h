// What a communicator needs of the device whose memory it moves: a stream of its own and memory outside the engine's arena.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>

#include "pipelora/core/fence.h"

namespace pipelora::comm {

class LinkDevice {
 public:
  virtual ~LinkDevice() = default;
  /// Makes the device the calling thread's.
  virtual void use() = 0;
  /// What NCCL takes as the stream; null where memory is the host's.
  virtual void* stream() const = 0;
  /// Behind everything queued on the stream so far; null: nothing is pending.
  virtual std::shared_ptr<const Fence> mark() = 0;
  /// Usable by any stream at once; from any thread. Throws PL_OUT_OF_MEMORY.
  virtual void* allocate(std::size_t bytes) = 0;
  virtual void release(void* data) = 0;
  virtual bool is_host() const = 0;
};

/// The host's memory as a device, for a library that moves that.
std::unique_ptr<LinkDevice> host_link_device();

/// Device memory of a link. Whoever queues a use of it leaves the fence behind that use.
class LinkBlock {
 public:
  LinkBlock(void* data, std::size_t bytes) : data_(data), bytes_(bytes) {}
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  void used_until(std::shared_ptr<const Fence> fence) {
    const std::lock_guard lock(mutex_);
    fence_ = std::move(fence);
  }
  /// Whether the device is through with what was queued.
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return fence_ == nullptr || fence_->passed();
  }

 private:
  void* data_;
  std::size_t bytes_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Fence> fence_;
};

/// Gives out a device's blocks and takes them back when nobody holds them and the device is through with them.
class LinkMemory : public std::enable_shared_from_this<LinkMemory> {
 public:
  explicit LinkMemory(std::unique_ptr<LinkDevice> device) : device_(std::move(device)) {}
  /// Waits for what is still in use, a few seconds at most.
  ~LinkMemory();
  LinkMemory(const LinkMemory&) = delete;
  LinkMemory& operator=(const LinkMemory&) = delete;

  LinkDevice& device() { return *device_; }
  std::shared_ptr<LinkBlock> take(std::size_t bytes);
  /// Releases what has become idle.
  void sweep() noexcept;

 private:
  void give(LinkBlock* block);

  std::unique_ptr<LinkDevice> device_;
  std::mutex mutex_;
  std::list<std::unique_ptr<LinkBlock>> given_back_;
};

}  // namespace pipelora::comm
