#include "comm/shared_link.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <new>

namespace pipelora::comm {

namespace {

constexpr std::uint64_t kMagic = 0x31676e69726c7070;  // "pplring1"
/// Tensors under way at once; the queues can't overflow.
constexpr std::uint32_t kSlots = 1024;
constexpr std::size_t kAlign = 64;
constexpr long kLookMs = 200;  // between two looks at the other process's life

using Word = std::atomic<std::uint32_t>;
static_assert(Word::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free);

/// Written by one end, read by the other.
struct Queue {
  struct Entry {
    std::uint64_t offset, bytes;
  };
  alignas(64) Word pushed;
  alignas(64) Word popped;
  alignas(64) Entry entries[kSlots];

  bool push(Entry entry) {
    const std::uint32_t at = pushed.load(std::memory_order_relaxed);
    if (at - popped.load(std::memory_order_acquire) >= kSlots) return false;
    entries[at % kSlots] = entry;
    pushed.store(at + 1, std::memory_order_release);
    return true;
  }
  std::optional<Entry> pop() {
    const std::uint32_t at = popped.load(std::memory_order_relaxed);
    if (at == pushed.load(std::memory_order_acquire)) return std::nullopt;
    const Entry entry = entries[at % kSlots];
    popped.store(at + 1, std::memory_order_release);
    return entry;
  }
};

[[noreturn]] void fail(const std::string& what) { throw LinkError(what + ": " + std::strerror(errno)); }

void ring(Word& bell) {
  bell.fetch_add(1);
  syscall(SYS_futex, &bell, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

struct SharedMemory::Header {
  std::uint64_t magic, token, capacity;
  std::atomic<std::int32_t> pids[2];  // of the receiver, of the sender
  Word closed[2];
  alignas(64) Word bells[2];
  alignas(64) Word sender_waits;
  std::atomic<std::uint64_t> granted;
  Queue published, released;
};

namespace {
constexpr std::size_t kDataAt = (sizeof(SharedMemory::Header) + 4095) / 4096 * 4096;
}

SharedMemory::SharedMemory(int fd, std::size_t bytes) : fd_(fd), bytes_(bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    const int error = errno;
    ::close(fd);
    errno = error;
    fail("shared memory of " + std::to_string(bytes) + " bytes can't be mapped");
  }
  header_ = static_cast<Header*>(at);
}

SharedMemory::~SharedMemory() {
  munmap(header_, bytes_);
  ::close(fd_);
}

unsigned char* SharedMemory::data() const { return reinterpret_cast<unsigned char*>(header_) + kDataAt; }

std::shared_ptr<SharedMemory> SharedMemory::create(std::size_t capacity) {
  const std::size_t bytes = kDataAt + aligned(capacity);
  const int fd = memfd_create("pipelora link", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) fail("no shared memory");
  // Sealed: no end can cut it short under the other.
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    const int error = errno;
    ::close(fd);
    errno = error;
    fail("shared memory of " + std::to_string(bytes) + " bytes can't be made");
  }
  std::shared_ptr<SharedMemory> memory(new SharedMemory(fd, bytes));
  memory->capacity_ = aligned(capacity);
  Header& header = *new (memory->header_) Header();
  header.magic = kMagic;
  header.capacity = memory->capacity_;
  if (getrandom(&header.token, sizeof header.token, 0) != sizeof header.token) fail("no random numbers");
  header.pids[1] = getpid();
  return memory;
}

std::shared_ptr<SharedMemory> SharedMemory::attach(const SharedAddress& address) {
  const std::string path = "/proc/" + std::to_string(address.pid) + "/fd/" + std::to_string(address.fd);
  // Not blocking: the path may name something else by now.
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("the shared memory of process " + std::to_string(address.pid) + " can't be opened");
  struct stat state {};
  const bool sealed = (fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) != 0 && fcntl(fd, F_GET_SEALS) >= 0;
  if (!sealed || fstat(fd, &state) != 0 || static_cast<std::size_t>(state.st_size) <= kDataAt) {
    ::close(fd);
    throw LinkError(path + " is not a link's shared memory");
  }
  std::shared_ptr<SharedMemory> memory(new SharedMemory(fd, static_cast<std::size_t>(state.st_size)));
  const Header& header = memory->header();
  if (header.magic != kMagic || header.token != address.token || header.capacity != memory->bytes_ - kDataAt)
    throw LinkError(path + " is not this link's shared memory");
  memory->capacity_ = header.capacity;
  return memory;
}

SharedEnd::SharedEnd(std::shared_ptr<SharedMemory> memory, bool sends, std::function<void(const std::string&)> closed)
    : memory_(std::move(memory)), sends_(sends), closed_(std::move(closed)) {}

void SharedEnd::start() {
  thread_ = std::thread([this] { run(); });
}

void SharedEnd::stop() {
  auto& header = memory_->header();
  stopping_ = true;
  header.closed[sends_] = 1;
  ring_other();
  ring(header.bells[sends_]);
  if (thread_.joinable()) thread_.join();
  if (other_pidfd_ >= 0) ::close(other_pidfd_);
}

void SharedEnd::ring_other() { ring(memory_->header().bells[!sends_]); }

void SharedEnd::run() {
  Word& bell = memory_->header().bells[sends_];
  const timespec look{0, kLookMs * 1'000'000};
  while (!stopping_) {
    const std::uint32_t heard = bell;
    rung();
    std::string reason;
    if (other_is_gone(reason)) {
      rung();  // what it said last
      if (!stopping_) closed_(reason);
      return;
    }
    syscall(SYS_futex, &bell, FUTEX_WAIT, heard, &look, nullptr, 0);
  }
}

bool SharedEnd::other_is_gone(std::string& reason) {
  const auto& header = memory_->header();
  if (header.closed[!sends_]) {
    reason = "the other end was closed";
    return true;
  }
  if (other_pid_ == 0) {
    other_pid_ = header.pids[!sends_];
    if (other_pid_ == 0) return false;  // not attached yet
    other_pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, other_pid_, 0));
  }
  pollfd ended{other_pidfd_, POLLIN, 0};
  const bool gone = other_pidfd_ >= 0 ? poll(&ended, 1, 0) > 0 : kill(other_pid_, 0) != 0 && errno == ESRCH;
  if (gone) reason = "process " + std::to_string(other_pid_) + " at the other end has ended";
  return gone;
}

SharedSender::SharedSender(std::size_t capacity, std::function<void()> progress, std::function<void(const std::string&)> closed)
    : SharedEnd(SharedMemory::create(capacity), true, std::move(closed)), progress_(std::move(progress)) {
  free_.emplace(0, memory_->capacity());
  start();
}

SharedSender::~SharedSender() { stop(); }

SharedAddress SharedSender::address() const { return {getpid(), memory_->fd(), memory_->header().token}; }

std::optional<std::size_t> SharedSender::reserve(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  take_back();
  if (taken_.size() >= kSlots) return std::nullopt;
  const std::size_t needed = std::max(aligned(bytes), kAlign);
  // The lowest place that fits: memory that was touched is used again.
  for (auto at = free_.begin(); at != free_.end(); ++at) {
    const auto [offset, room] = *at;
    if (room < needed) continue;
    free_.erase(at);
    if (room > needed) free_.emplace(offset + needed, room - needed);
    taken_.emplace(offset, needed);
    return offset;
  }
  return std::nullopt;
}

void SharedSender::publish(std::size_t offset) {
  {
    const std::lock_guard lock(mutex_);
    const auto place = taken_.find(offset);
    if (place == taken_.end()) throw LinkError("a place was published that is not reserved");
    memory_->header().published.push({offset, place->second});
  }
  ring_other();
}

std::uint64_t SharedSender::granted() const { return memory_->header().granted; }

void SharedSender::wait_for_progress() {
  memory_->header().sender_waits = 1;
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void SharedSender::take_back() {
  while (const auto entry = memory_->header().released.pop()) {
    const auto place = taken_.find(entry->offset);
    if (place == taken_.end()) continue;  // nonsense from the other end
    std::size_t offset = place->first, bytes = place->second;
    taken_.erase(place);
    auto next = free_.lower_bound(offset);
    if (next != free_.end() && next->first == offset + bytes) {
      bytes += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        before->second += bytes;
        continue;
      }
    }
    free_.emplace(offset, bytes);
  }
}

void SharedSender::rung() {
  if (memory_->header().sender_waits.exchange(0) != 0) progress_();
}

SharedReceiver::SharedReceiver(const SharedAddress& address, std::function<void(std::size_t, std::size_t)> message,
                               std::function<void(const std::string&)> closed)
    : SharedEnd(SharedMemory::attach(address), false, std::move(closed)), message_(std::move(message)) {
  memory_->header().pids[0] = getpid();
  start();
}

SharedReceiver::~SharedReceiver() { stop(); }

void SharedReceiver::rung() {
  while (const auto entry = memory_->header().published.pop()) {
    // Never trust what the other end wrote with an access beyond the mapping.
    if (entry->bytes > memory_->capacity() || entry->offset > memory_->capacity() - entry->bytes) continue;
    message_(entry->offset, entry->bytes);
  }
}

void SharedReceiver::release(std::size_t offset) {
  {
    const std::lock_guard lock(mutex_);
    memory_->header().released.push({offset, 0});
  }
  ring_if_waiting();
}

void SharedReceiver::grant(std::uint64_t bytes) {
  memory_->header().granted = bytes;
  ring_if_waiting();
}

void SharedReceiver::ring_if_waiting() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (memory_->header().sender_waits) ring_other();
}

}  // namespace pipelora::comm
