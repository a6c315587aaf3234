#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "comm/shared_link.h"

using namespace pipelora::comm;

namespace {

/// Collects what an end's thread says.
template <class T>
class Heard {
 public:
  void say(T what) {
    const std::lock_guard lock(mutex_);
    said_.push_back(std::move(what));
    changed_.notify_all();
  }
  T next() {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(10), [this] { return !said_.empty(); }));
    T what = std::move(said_.front());
    said_.pop_front();
    return what;
  }
  std::size_t count() {
    const std::lock_guard lock(mutex_);
    return said_.size();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> said_;
};

struct Pair {
  Heard<int> progress;
  Heard<std::string> sender_closed, receiver_closed;
  Heard<std::pair<std::size_t, std::size_t>> messages;
  std::unique_ptr<SharedSender> sender;
  std::unique_ptr<SharedReceiver> receiver;

  explicit Pair(std::size_t capacity = 1 << 20) {
    sender = std::make_unique<SharedSender>(
        capacity, [this] { progress.say(1); }, [this](const std::string& why) { sender_closed.say(why); });
    receiver = std::make_unique<SharedReceiver>(
        sender->address(), [this](std::size_t at, std::size_t bytes) { messages.say({at, bytes}); },
        [this](const std::string& why) { receiver_closed.say(why); });
  }
};

}  // namespace

TEST_CASE("shared memory: what is written at one end is read at the other, in order") {
  Pair pair;
  std::mt19937 random(7);
  std::deque<std::pair<std::size_t, std::vector<unsigned char>>> held;
  for (int i = 0; i < 5000; ++i) {
    std::vector<unsigned char> bytes(random() % 30000);
    for (auto& byte : bytes) byte = static_cast<unsigned char>(random());
    const auto at = pair.sender->reserve(bytes.size());
    REQUIRE(at);
    std::memcpy(pair.sender->memory()->data() + *at, bytes.data(), bytes.size());
    pair.sender->publish(*at);
    const auto [offset, size] = pair.messages.next();
    REQUIRE(offset == *at);
    REQUIRE(size >= bytes.size());
    held.emplace_back(offset, std::move(bytes));
    // Given back in any order, some late.
    while (held.size() > 20) {
      const auto which = held.begin() + static_cast<std::ptrdiff_t>(random() % held.size());
      REQUIRE(std::memcmp(pair.receiver->memory()->data() + which->first, which->second.data(), which->second.size()) == 0);
      pair.receiver->release(which->first);
      held.erase(which);
    }
  }
}

TEST_CASE("shared memory: a full link has no place until one is released, and says so") {
  Pair pair(64 << 10);
  const auto a = pair.sender->reserve(40 << 10), b = pair.sender->reserve(24 << 10);
  REQUIRE((a && b));
  CHECK(!pair.sender->reserve(1));
  pair.sender->publish(*a);
  pair.messages.next();
  pair.sender->wait_for_progress();
  CHECK(!pair.sender->reserve(1));
  pair.receiver->release(*a);
  pair.progress.next();
  pair.receiver->grant(5);
  CHECK(pair.sender->granted() == 5);
  CHECK(pair.sender->reserve(40 << 10) == a);
  pair.receiver->release(12345);  // nonsense is ignored
  CHECK(!pair.sender->reserve(1));
}

TEST_CASE("shared memory: the other end's close is noticed, after what it sent") {
  Pair pair;
  pair.sender->publish(*pair.sender->reserve(100));
  pair.sender.reset();
  CHECK(pair.messages.next().second >= 100);
  CHECK(pair.receiver_closed.next() == "the other end was closed");
}

TEST_CASE("shared memory: a process that is killed is noticed by the other, whichever end it had") {
  int pipes[2];
  REQUIRE(pipe(pipes) == 0);
  SUBCASE("the receiver") {
    Heard<std::string> closed;
    SharedSender sender(1 << 20, [] {}, [&](const std::string& why) { closed.say(why); });
    const SharedAddress address = sender.address();
    const pid_t child = fork();
    if (child == 0) {
      const SharedReceiver receiver(address, [](std::size_t, std::size_t) {}, [](const std::string&) {});
      static_cast<void>(!write(pipes[1], "x", 1));
      for (;;) pause();
    }
    char ready;
    REQUIRE(read(pipes[0], &ready, 1) == 1);
    kill(child, SIGKILL);
    CHECK(closed.next() == "process " + std::to_string(child) + " at the other end has ended");
    waitpid(child, nullptr, 0);
  }
  SUBCASE("the sender") {
    const pid_t child = fork();
    if (child == 0) {
      const SharedSender sender(1 << 20, [] {}, [](const std::string&) {});
      const SharedAddress address = sender.address();
      static_cast<void>(!write(pipes[1], &address, sizeof address));
      for (;;) pause();
    }
    SharedAddress address;
    REQUIRE(read(pipes[0], &address, sizeof address) == sizeof address);
    Heard<std::string> closed;
    const SharedReceiver receiver(address, [](std::size_t, std::size_t) {}, [&](const std::string& why) { closed.say(why); });
    kill(child, SIGKILL);
    CHECK(closed.next() == "process " + std::to_string(child) + " at the other end has ended");
    waitpid(child, nullptr, 0);
  }
  ::close(pipes[0]);
  ::close(pipes[1]);
}

TEST_CASE("shared memory: an address that is not this link's is refused") {
  Pair pair;
  SharedAddress address = pair.sender->address();
  const auto attach = [](const SharedAddress& to) {
    SharedReceiver(to, [](std::size_t, std::size_t) {}, [](const std::string&) {});
  };
  address.token ^= 1;
  CHECK_THROWS_AS(attach(address), LinkError);
  address.fd = open("/dev/null", O_RDONLY);
  CHECK_THROWS_AS(attach(address), LinkError);
  ::close(address.fd);
  CHECK_THROWS_AS(attach(address), LinkError);
}
