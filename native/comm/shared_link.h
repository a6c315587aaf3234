// One direction of a pair of processes on one host: tensors lie in memory that both have mapped, their places travel
// through two small queues. The memory is a memfd, which has no name: whatever dies, nothing stays behind.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

namespace pipelora::comm {

class LinkError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// How the receiver finds the memory: /proc/PID/fd/FD, which must hold `token`.
struct SharedAddress {
  int pid = 0;
  int fd = -1;
  std::uint64_t token = 0;
};

/// The mapping. Lives as long as anybody holds it, views of JavaScript included.
class SharedMemory {
 public:
  /// `capacity` bytes for tensors; pages cost nothing before they are touched. Throws LinkError.
  static std::shared_ptr<SharedMemory> create(std::size_t capacity);
  static std::shared_ptr<SharedMemory> attach(const SharedAddress& address);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  struct Header;
  Header& header() const { return *header_; }
  unsigned char* data() const;
  std::size_t capacity() const { return capacity_; }
  int fd() const { return fd_; }

 private:
  SharedMemory(int fd, std::size_t bytes);

  int fd_;
  std::size_t bytes_, capacity_ = 0;
  Header* header_ = nullptr;
};

/// What both ends do: a thread that waits for the other end's bell, and looks after its life.
class SharedEnd {
 public:
  virtual ~SharedEnd() = default;
  const std::shared_ptr<SharedMemory>& memory() const { return memory_; }

 protected:
  /// `closed(reason)` is called once, from the thread, when the other end has closed or its process has ended.
  SharedEnd(std::shared_ptr<SharedMemory> memory, bool sends, std::function<void(const std::string&)> closed);
  void start();
  /// Ends the thread and tells the other end; by every subclass's destructor, before its members go.
  void stop();
  /// On the thread, whenever the bell has rung.
  virtual void rung() = 0;
  void ring_other();

  std::shared_ptr<SharedMemory> memory_;

 private:
  void run();
  bool other_is_gone(std::string& reason);

  const bool sends_;
  std::function<void(const std::string&)> closed_;
  std::atomic<bool> stopping_ = false;
  int other_pid_ = 0, other_pidfd_ = -1;
  std::thread thread_;
};

/// The end that sends: gives out places and takes back those released.
class SharedSender final : public SharedEnd {
 public:
  /// `progress` is called from a thread after wait_for_progress(), when something was or may have been released or granted.
  SharedSender(std::size_t capacity, std::function<void()> progress, std::function<void(const std::string&)> closed);
  ~SharedSender() override;

  SharedAddress address() const;
  /// Where `bytes` (a multiple of 64 is taken) may be written; nothing while there is no such place.
  std::optional<std::size_t> reserve(std::size_t bytes);
  /// Hands a reserved place, now written, to the receiver. Places arrive in this order.
  void publish(std::size_t offset);
  /// As the receiver last said.
  std::uint64_t granted() const;
  /// Asks for one call of `progress`; what is looked at after this call can't have been missed.
  void wait_for_progress();

 private:
  void rung() override;
  void take_back();

  std::function<void()> progress_;
  std::mutex mutex_;
  std::map<std::size_t, std::size_t> free_, taken_;  // offset -> bytes
};

/// The end that receives.
class SharedReceiver final : public SharedEnd {
 public:
  /// `message(offset, bytes)` is called from a thread for every place published, in order. Throws LinkError.
  SharedReceiver(const SharedAddress& address, std::function<void(std::size_t, std::size_t)> message,
                 std::function<void(const std::string&)> closed);
  ~SharedReceiver() override;

  /// Gives a place back; in any order, each once.
  void release(std::size_t offset);
  void grant(std::uint64_t bytes);

 private:
  void rung() override;
  void ring_if_waiting();

  std::function<void(std::size_t, std::size_t)> message_;
  std::mutex mutex_;
};

}  // namespace pipelora::comm
