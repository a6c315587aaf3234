// NCCL's C interface over host memory: really moves bytes between processes of one host, over Unix sockets, so that all that
// uses NCCL is tested where there is no GPU. Groups, communicators that don't block, asynchronous errors when a peer dies and
// abort work as NCCL documents them; streams do not exist, so that what a group says is in progress until it has moved.
#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/nccl_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using pipelora::comm::NcclConfig;
using pipelora::comm::NcclUniqueId;

namespace {

constexpr int kSuccess = 0, kSystemError = 2, kInvalidArgument = 4, kInvalidUsage = 5, kRemoteError = 6, kInProgress = 7;
constexpr int kTickMs = 5;
constexpr int kElementBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

struct Message {
  bool sends;
  int peer;
  char* data;
  std::size_t bytes;
};

/// What stands before a message's bytes.
struct Head {
  std::uint64_t bytes;
};

struct Greeting {
  std::int32_t rank, ranks;
};

/// One direction's progress on a socket: the head, then the bytes.
struct Move {
  Message message;
  Head head{};
  std::size_t done = 0;
};

sockaddr_un address_of(const NcclUniqueId& id, int rank, socklen_t& length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // Abstract: it goes with its process.
  const std::string name = "pipelora-nccl-" + std::string(id.internal, 32) + "-" + std::to_string(rank);
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

}  // namespace

namespace pipelora::comm {

struct NcclCommHandle {
  NcclUniqueId id{};
  int rank = 0, ranks = 0;
  std::vector<int> sockets;  // by peer
  std::atomic<int> state = kInProgress;
  std::atomic<bool> stop = false;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::vector<Message>> groups;
  std::string last_error;
  std::thread thread;

  void fail(int code, std::string why) {
    {
      const std::lock_guard lock(mutex);
      last_error = std::move(why);
    }
    state = code;
  }

  void run() {
    if (!connect_all()) return;
    state = kSuccess;
    for (;;) {
      std::vector<Message> group;
      {
        std::unique_lock lock(mutex);
        while (!stop && groups.empty()) {
          changed.wait_for(lock, std::chrono::milliseconds(50));
          lock.unlock();
          if (!stop && state == kSuccess) look_after_peers();
          lock.lock();
        }
        if (stop) return;
        group = std::move(groups.front());
        groups.pop_front();
      }
      if (state > kSuccess && state != kInProgress) return;
      if (!move(group)) return;
      const std::lock_guard lock(mutex);
      if (groups.empty()) state = kSuccess;
    }
  }

  bool connect_all() {
    sockets.assign(static_cast<std::size_t>(ranks), -1);
    const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t length = 0;
    sockaddr_un here = address_of(id, rank, length);
    bool good = listener >= 0 && bind(listener, reinterpret_cast<sockaddr*>(&here), length) == 0 && listen(listener, ranks) == 0;
    if (!good) fail(kInvalidUsage, "rank " + std::to_string(rank) + " exists already, or can't listen");
    for (int peer = 0; good && peer < rank; ++peer) good = connect_to(peer);
    for (int peer = rank + 1; good && peer < ranks; ++peer) good = accept_one(listener);
    if (listener >= 0) ::close(listener);
    return good && !stop;
  }

  bool connect_to(int peer) {
    while (!stop) {
      const int to = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      socklen_t length = 0;
      sockaddr_un there = address_of(id, peer, length);
      if (connect(to, reinterpret_cast<sockaddr*>(&there), length) == 0) {
        sockets[static_cast<std::size_t>(peer)] = to;
        const Greeting greeting{rank, ranks};
        return write(to, &greeting, sizeof greeting) == sizeof greeting && make_non_blocking(to);
      }
      ::close(to);
      std::this_thread::sleep_for(std::chrono::milliseconds(kTickMs));
    }
    return false;
  }

  bool accept_one(int listener) {
    while (!stop) {
      pollfd waiting{listener, POLLIN, 0};
      if (poll(&waiting, 1, kTickMs) <= 0) continue;
      const int from = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      Greeting greeting{};
      if (from < 0 || recv(from, &greeting, sizeof greeting, MSG_WAITALL) != sizeof greeting || greeting.ranks != ranks ||
          greeting.rank <= rank || greeting.rank >= ranks || sockets[static_cast<std::size_t>(greeting.rank)] >= 0) {
        if (from >= 0) ::close(from);
        fail(kInvalidUsage, "a rank of another communicator came");
        return false;
      }
      sockets[static_cast<std::size_t>(greeting.rank)] = from;
      return make_non_blocking(from);
    }
    return false;
  }

  static bool make_non_blocking(int socket) { return fcntl(socket, F_SETFL, O_NONBLOCK) == 0; }

  /// All messages of a group at once; those of one pair and direction in order.
  bool move(const std::vector<Message>& group) {
    std::vector<std::deque<Move>> out(static_cast<std::size_t>(ranks)), in(static_cast<std::size_t>(ranks));
    for (const Message& message : group) {
      auto& list = (message.sends ? out : in)[static_cast<std::size_t>(message.peer)];
      list.push_back({message, {message.bytes}, 0});
      if (!message.sends) list.back().head = {};
    }
    auto &to_self = out[static_cast<std::size_t>(rank)], &from_self = in[static_cast<std::size_t>(rank)];
    for (; !to_self.empty() && !from_self.empty(); to_self.pop_front(), from_self.pop_front())
      std::memcpy(from_self.front().message.data, to_self.front().message.data, from_self.front().message.bytes);
    if (!to_self.empty() || !from_self.empty()) {
      fail(kInvalidUsage, "a message to this rank itself has no other side");
      return false;
    }
    for (;;) {
      std::vector<pollfd> waiting;
      for (int peer = 0; peer < ranks; ++peer) {
        const auto at = static_cast<std::size_t>(peer);
        const short events = static_cast<short>((out[at].empty() ? 0 : POLLOUT) | (in[at].empty() ? 0 : POLLIN));
        if (events != 0) waiting.push_back({sockets[at], events, 0});
      }
      if (waiting.empty()) return true;
      if (stop) return false;
      poll(waiting.data(), waiting.size(), kTickMs);
      for (int peer = 0; peer < ranks; ++peer) {
        const auto at = static_cast<std::size_t>(peer);
        if (!progress(peer, out[at], true) || !progress(peer, in[at], false)) return false;
      }
    }
  }

  bool progress(int peer, std::deque<Move>& moves, bool sends) {
    const int socket = sockets[static_cast<std::size_t>(peer)];
    while (!moves.empty()) {
      Move& now = moves.front();
      const std::size_t total = sizeof(Head) + now.message.bytes;
      if (now.done == total) {
        moves.pop_front();
        continue;
      }
      const bool head = now.done < sizeof(Head);
      char* at = head ? reinterpret_cast<char*>(&now.head) + now.done : now.message.data + (now.done - sizeof(Head));
      const std::size_t left = head ? sizeof(Head) - now.done : total - now.done;
      const ssize_t got = sends ? ::send(socket, at, left, MSG_NOSIGNAL) : ::recv(socket, at, left, 0);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
      if (got <= 0) {
        fail(kRemoteError, "rank " + std::to_string(peer) + " is gone");
        return false;
      }
      now.done += static_cast<std::size_t>(got);
      if (!sends && head && now.done == sizeof(Head) && now.head.bytes != now.message.bytes) {
        fail(kInvalidUsage, "rank " + std::to_string(peer) + " sends " + std::to_string(now.head.bytes) + " bytes, " +
                                std::to_string(now.message.bytes) + " are expected");
        return false;
      }
    }
    return true;
  }

  void look_after_peers() {
    for (int peer = 0; peer < ranks; ++peer) {
      const int socket = sockets[static_cast<std::size_t>(peer)];
      pollfd watched{socket, POLLRDHUP, 0};
      if (socket >= 0 && poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
        fail(kRemoteError, "rank " + std::to_string(peer) + " is gone");
    }
  }

  void end() {
    stop = true;
    changed.notify_all();
    if (thread.joinable()) thread.join();
    for (const int socket : sockets)
      if (socket >= 0) ::close(socket);
  }
};

}  // namespace pipelora::comm

using pipelora::comm::NcclComm;

namespace {

struct Group {
  int depth = 0;
  std::vector<std::pair<NcclComm, Message>> messages;
};
thread_local Group group;

int add(NcclComm comm, Message message, int datatype, std::size_t count) {
  if (comm == nullptr || datatype < 0 || datatype > 9) return kInvalidArgument;
  if (message.peer < 0 || message.peer >= comm->ranks) return kInvalidArgument;
  if (group.depth == 0) return kInvalidUsage;  // NCCL would take it; nothing here calls it so
  message.bytes = count * static_cast<std::size_t>(kElementBytes[datatype]);
  group.messages.emplace_back(comm, message);
  return kSuccess;
}

}  // namespace

EXPORT const char pipelora_nccl_host_memory = 1;

EXPORT int ncclGetVersion(int* version) {
  *version = 22800;
  return kSuccess;
}

EXPORT int ncclGetUniqueId(NcclUniqueId* id) {
  unsigned char random[16];
  if (getrandom(random, sizeof random, 0) != sizeof random) return kSystemError;
  std::memset(id->internal, 0, sizeof id->internal);
  for (int i = 0; i < 16; ++i) std::snprintf(id->internal + 2 * i, 3, "%02x", random[i]);
  return kSuccess;
}

EXPORT int ncclCommInitRankConfig(NcclComm* made, int ranks, NcclUniqueId id, int rank, NcclConfig* config) {
  *made = nullptr;
  if (config == nullptr || config->magic != 0xcafebeef || config->size < sizeof(NcclConfig) || config->blocking != 0)
    return kInvalidArgument;
  if (ranks < 1 || rank < 0 || rank >= ranks) return kInvalidArgument;
  for (int i = 0; i < 32; ++i)
    if (std::strchr("0123456789abcdef", id.internal[i]) == nullptr || id.internal[i] == '\0') return kInvalidArgument;
  auto* comm = new pipelora::comm::NcclCommHandle;
  comm->id = id;
  comm->rank = rank;
  comm->ranks = ranks;
  comm->thread = std::thread([comm] { comm->run(); });
  *made = comm;
  return kInProgress;
}

EXPORT int ncclCommGetAsyncError(NcclComm comm, int* state) {
  *state = comm->state;
  return kSuccess;
}

EXPORT int ncclCommAbort(NcclComm comm) {
  comm->end();
  delete comm;
  return kSuccess;
}

EXPORT int ncclGroupStart() {
  ++group.depth;
  return kSuccess;
}

EXPORT int ncclGroupEnd() {
  if (group.depth == 0) return kInvalidUsage;
  if (--group.depth > 0) return kSuccess;
  const auto messages = std::move(group.messages);
  group.messages.clear();
  std::vector<NcclComm> comms;
  for (const auto& [comm, message] : messages)
    if (std::find(comms.begin(), comms.end(), comm) == comms.end()) comms.push_back(comm);
  for (const NcclComm comm : comms) {
    std::vector<Message> own;
    for (const auto& [other, message] : messages)
      if (other == comm) own.push_back(message);
    const int state = comm->state;
    if (state != kSuccess && state != kInProgress) return state;
    {
      const std::lock_guard lock(comm->mutex);
      comm->state = kInProgress;
      comm->groups.push_back(std::move(own));
    }
    comm->changed.notify_all();
  }
  return messages.empty() ? kSuccess : kInProgress;
}

EXPORT int ncclSend(const void* data, std::size_t count, int datatype, int peer, NcclComm comm, void*) {
  return add(comm, {true, peer, static_cast<char*>(const_cast<void*>(data)), 0}, datatype, count);
}

EXPORT int ncclRecv(void* data, std::size_t count, int datatype, int peer, NcclComm comm, void*) {
  return add(comm, {false, peer, static_cast<char*>(data), 0}, datatype, count);
}

EXPORT const char* ncclGetErrorString(int code) {
  switch (code) {
    case kSuccess: return "no error";
    case kSystemError: return "unhandled system error";
    case kInvalidArgument: return "invalid argument";
    case kInvalidUsage: return "invalid usage";
    case kRemoteError: return "remote process exited or there was a network error";
    case kInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}

EXPORT const char* ncclGetLastError(NcclComm comm) {
  static thread_local std::string text;
  text.clear();
  if (comm != nullptr) {
    const std::lock_guard lock(comm->mutex);
    text = comm->last_error;
  }
  return text.c_str();
}
