#include "comm/nccl_communicator.h"

#include <algorithm>
#include <stdexcept>

namespace pipelora::comm {

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

/// Groups that NCCL has at a time: the next is there when one ends.
constexpr std::size_t kMostFlying = 4;
/// How often an idle communicator is asked whether its peers are well.
constexpr milliseconds kIdleCheck{100};
/// How long a communicator is asked without a pause whether it is through, and how long the pauses are then.
constexpr microseconds kEager{200}, kPause{20}, kLongPause{200};
constexpr milliseconds kLongWait{20};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// It was closed.
struct Stopped {};

constexpr const char* kClosed = "it was closed";

}  // namespace

NcclCommunicator::NcclCommunicator(const NcclLibrary& library, std::shared_ptr<LinkMemory> memory,
                                   const CommunicatorOptions& options, std::function<void(const std::string&)> failed)
    : library_(library), memory_(std::move(memory)), options_(options), failed_(std::move(failed)) {
  thread_ = std::thread([this] { run(); });
}

void NcclCommunicator::exchange(std::vector<Transfer> group, std::function<void()> ready,
                                std::function<void(const std::string&)> done) {
  std::string reason;
  {
    const std::lock_guard lock(mutex_);
    reason = ended_;
    if (reason.empty()) queue_.push_back({std::move(group), std::move(ready), std::move(done)});
  }
  if (!reason.empty()) return done(reason);
  wake_.notify_one();
}

void NcclCommunicator::close() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    if (ended_.empty()) ended_ = kClosed;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool NcclCommunicator::stopping() {
  const std::lock_guard lock(mutex_);
  return stop_;
}

void NcclCommunicator::run() {
  std::string reason;
  try {
    memory_->device().use();
    open();
    work();
  } catch (const Stopped&) {
  } catch (const std::exception& error) {
    reason = error.what();
  }
  // Kernels that wait for a peer end with it.
  if (comm_ != nullptr) library_.comm_abort(comm_);
  comm_ = nullptr;
  std::deque<Job> left;
  {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) ended_ = reason;
    left.swap(queue_);
  }
  if (!reason.empty()) failed_(reason);
  const std::string text = reason.empty() ? kClosed : reason;
  for (Flying& flying : flying_) flying.job.done(text);
  flying_.clear();
  for (Job& job : left) job.done(text);
  memory_->sweep();
}

void NcclCommunicator::open() {
  NcclConfig config;
  const auto deadline = Clock::now() + options_.timeout;
  const int status = library_.comm_init_rank_config(&comm_, options_.ranks, options_.id, options_.rank, &config);
  // A communicator that does not block and failed to start may be null.
  if (comm_ == nullptr) {
    check(status, "ncclCommInitRankConfig");
    throw Failure("ncclCommInitRankConfig made no communicator");
  }
  settle(status, "ncclCommInitRankConfig", deadline);
}

void NcclCommunicator::work() {
  auto quiet_since = Clock::now(), checked = quiet_since;
  for (;;) {
    const bool progress = post_next() || land_next();
    const auto now = Clock::now();
    if (progress) {
      quiet_since = now;
      continue;
    }
    if (now - checked >= kIdleCheck || (!flying_.empty() && now - checked >= milliseconds(1))) {
      checked = now;
      check_asynchronous("a peer's message");
      memory_->sweep();
    }
    if (!flying_.empty() && now >= flying_.front().deadline) throw Failure(timeout_text());
    std::unique_lock lock(mutex_);
    if (stop_) throw Stopped();
    if (flying_.empty() && queue_.empty()) {
      wake_.wait_for(lock, kIdleCheck, [this] { return stop_ || !queue_.empty(); });
      quiet_since = Clock::now();
    } else if (now - quiet_since > kEager) {
      wake_.wait_for(lock, now - quiet_since > kLongWait ? kLongPause : kPause, [this] { return stop_; });
    }
  }
}

/// Gives NCCL the first group of the queue, if the device is through with what its blocks wait for.
bool NcclCommunicator::post_next() {
  if (flying_.size() >= kMostFlying) return false;
  Job job;
  {
    const std::lock_guard lock(mutex_);
    if (queue_.empty()) return false;
    const auto& group = queue_.front().group;
    if (!std::all_of(group.begin(), group.end(), [](const Transfer& transfer) { return transfer.block->idle(); })) return false;
    job = std::move(queue_.front());
    queue_.pop_front();
  }
  const auto deadline = Clock::now() + options_.timeout;
  if (job.ready) job.ready();
  // From here on it counts as under way, also if it fails.
  flying_.push_back({std::move(job), nullptr, deadline});
  Flying& flying = flying_.back();
  check(library_.group_start(), "ncclGroupStart");
  int status = kNcclSuccess;
  const char* call = "ncclGroupEnd";
  for (const Transfer& transfer : flying.job.group) {
    char* data = static_cast<char*>(transfer.block->data()) + transfer.offset;
    void* stream = memory_->device().stream();
    call = transfer.sends ? "ncclSend" : "ncclRecv";
    status = transfer.sends ? library_.send(data, transfer.bytes, kNcclInt8, transfer.peer, comm_, stream)
                            : library_.recv(data, transfer.bytes, kNcclInt8, transfer.peer, comm_, stream);
    if (status != kNcclSuccess && status != kNcclInProgress) break;
  }
  // A group that was begun must be ended.
  const int ended = library_.group_end();
  check(status, call);
  settle(ended, "ncclGroupEnd", deadline);
  flying.fence = memory_->device().mark();
  return true;
}

/// Reports the oldest group that is under way, if all of it has moved.
bool NcclCommunicator::land_next() {
  if (flying_.empty() || (flying_.front().fence != nullptr && !flying_.front().fence->passed())) return false;
  // An aborted kernel ends too.
  check_asynchronous("a group");
  Flying landed = std::move(flying_.front());
  flying_.pop_front();
  landed.job.done("");
  return true;
}

void NcclCommunicator::settle(int status, const char* call, Clock::time_point deadline) {
  check(status, call);
  const auto began = Clock::now();
  for (;;) {
    int state = kNcclSuccess;
    check(library_.comm_get_async_error(comm_, &state), "ncclCommGetAsyncError");
    check(state, call);
    if (state == kNcclSuccess) return;
    const auto now = Clock::now();
    if (now >= deadline) throw Failure(timeout_text());
    if (stopping()) throw Stopped();
    if (now - began > kEager) std::this_thread::sleep_for(now - began > kLongWait ? kLongPause : kPause);
  }
}

void NcclCommunicator::check(int status, const char* call) const {
  if (status == kNcclSuccess || status == kNcclInProgress) return;
  std::string text = std::string(call) + ": " + library_.get_error_string(status);
  const char* more = library_.get_last_error == nullptr ? nullptr : library_.get_last_error(comm_);
  if (more != nullptr && *more != '\0') text += std::string(" (") + more + ")";
  throw Failure(text);
}

void NcclCommunicator::check_asynchronous(const char* call) const {
  int state = kNcclSuccess;
  check(library_.comm_get_async_error(comm_, &state), "ncclCommGetAsyncError");
  check(state, call);
}

std::string NcclCommunicator::timeout_text() const {
  std::string seconds = std::to_string(static_cast<double>(options_.timeout.count()) / 1000);
  seconds.erase(seconds.find_last_not_of('0') + 1);
  if (seconds.back() == '.') seconds.pop_back();
  return flying_.empty() ? "not every rank of it came within " + seconds + " s" : "no progress for " + seconds + " s";
}

}  // namespace pipelora::comm
