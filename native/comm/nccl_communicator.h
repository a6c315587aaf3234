// A NCCL communicator that never hangs: one thread of its own opens it, gives it work and looks after it, and aborts it when
// its deadline passes, NCCL reports an error, or it is closed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/link_device.h"
#include "comm/nccl_library.h"

namespace pipelora::comm {

/// One message of a group: `bytes` bytes from `offset` of a block, to or from a peer (this rank itself too).
struct Transfer {
  bool sends = false;
  int peer = 0;
  std::shared_ptr<LinkBlock> block;
  std::size_t offset = 0, bytes = 0;
};

struct CommunicatorOptions {
  NcclUniqueId id{};
  int rank = 0, ranks = 1;
  /// For opening, and for each group from when NCCL got it.
  std::chrono::milliseconds timeout{};
};

class NcclCommunicator {
 public:
  /// Returns at once and opens in the background, so the ranks of one process can be made in any order. `failed(reason)` is called once, from the
  /// communicator's thread, when it can't be used any more; not after close().
  NcclCommunicator(const NcclLibrary& library, std::shared_ptr<LinkMemory> memory, const CommunicatorOptions& options,
                   std::function<void(const std::string&)> failed);
  ~NcclCommunicator() { close(); }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Queues messages that move together. All ranks give matching groups in the same order. From the thread: `ready` when the
  /// device is through with what was queued for the blocks, just before NCCL gets the group; `done` when all has moved, with
  /// the reason if it failed. Groups are worked on in order, several at a time.
  void exchange(std::vector<Transfer> group, std::function<void()> ready, std::function<void(const std::string&)> done);

  /// Aborts running transfers and ends the thread. `done` of each queued group is called with a reason. To be called from any other thread.
  void close();

  const std::shared_ptr<LinkMemory>& memory() const { return memory_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Job {
    std::vector<Transfer> group;
    std::function<void()> ready;
    std::function<void(const std::string&)> done;
  };
  struct Flying {
    Job job;
    std::shared_ptr<const Fence> fence;
    Clock::time_point deadline;
  };

  void run();
  void open();
  void work();
  bool post_next();
  bool land_next();
  /// Waits while NCCL says that it is in progress. Throws Failure.
  void settle(int status, const char* call, Clock::time_point deadline);
  void check(int status, const char* call) const;
  void check_asynchronous(const char* call) const;
  std::string timeout_text() const;
  bool stopping();

  const NcclLibrary& library_;
  const std::shared_ptr<LinkMemory> memory_;
  const CommunicatorOptions options_;
  const std::function<void(const std::string&)> failed_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> queue_;
  bool stop_ = false;
  std::string ended_;  // why nothing is taken any more

  // The thread's own.
  NcclComm comm_ = nullptr;
  std::deque<Flying> flying_;
  std::thread thread_;
};

}  // namespace pipelora::comm
