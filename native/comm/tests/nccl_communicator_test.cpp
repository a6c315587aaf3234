#include "comm/nccl_communicator.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <future>

using namespace pipelora::comm;

namespace {

const NcclLibrary& library() {
  static const NcclOpened opened = open_nccl(NCCL_HOST);
  REQUIRE_MESSAGE(opened.library != nullptr, opened.reason);
  return *opened.library;
}

NcclUniqueId fresh_id() {
  NcclUniqueId id;
  REQUIRE(library().get_unique_id(&id) == 0);
  return id;
}

/// A rank, and what it says.
struct Member {
  std::promise<std::string> failed;
  std::future<std::string> failure = failed.get_future();
  std::shared_ptr<LinkMemory> memory = std::make_shared<LinkMemory>(host_link_device());
  std::unique_ptr<NcclCommunicator> communicator;

  Member(const NcclUniqueId& id, int rank, int ranks, int timeout_ms = 10000) {
    communicator = std::make_unique<NcclCommunicator>(library(), memory,
                                                      CommunicatorOptions{id, rank, ranks, std::chrono::milliseconds(timeout_ms)},
                                                      [this](const std::string& reason) { failed.set_value(reason); });
  }
  std::future<std::string> exchange(std::vector<Transfer> group) {
    auto done = std::make_shared<std::promise<std::string>>();
    communicator->exchange(std::move(group), nullptr, [done](const std::string& reason) { done->set_value(reason); });
    return done->get_future();
  }
  std::shared_ptr<LinkBlock> block(std::size_t bytes, unsigned char value) {
    auto made = memory->take(bytes);
    std::memset(made->data(), value, bytes);
    return made;
  }
};

std::string soon(std::future<std::string>& text) {
  REQUIRE(text.wait_for(std::chrono::seconds(10)) == std::future_status::ready);
  return text.get();
}

bool all(const LinkBlock& block, std::size_t from, std::size_t bytes, unsigned char value) {
  const auto* data = static_cast<const unsigned char*>(block.data());
  for (std::size_t i = from; i < from + bytes; ++i)
    if (data[i] != value) return false;
  return true;
}

class Later final : public pipelora::Fence {
 public:
  bool passed() const override { return passed_; }
  std::atomic<bool> passed_ = false;
};

}  // namespace

TEST_CASE("one rank: what it sends itself in a group comes back") {
  Member only(fresh_id(), 0, 1);
  const auto from = only.block(5000, 7), to = only.block(5000, 0);
  auto done = only.exchange({{true, 0, from, 0, 5000}, {false, 0, to, 0, 5000}});
  CHECK(soon(done) == "");
  CHECK(all(*to, 0, 5000, 7));
}

TEST_CASE("messages larger than a socket's buffers, both ways at once, and in order") {
  const NcclUniqueId id = fresh_id();
  Member a(id, 0, 2), b(id, 1, 2);
  constexpr std::size_t kBytes = 5 << 20;
  const auto out_a = a.block(kBytes, 1), in_a = a.block(kBytes, 0), out_b = b.block(kBytes, 2), in_b = b.block(kBytes, 0);
  auto first_a = a.exchange({{true, 1, out_a, 0, kBytes}, {false, 1, in_a, 0, kBytes}});
  auto first_b = b.exchange({{true, 0, out_b, 0, kBytes}, {false, 0, in_b, 0, kBytes}});
  CHECK(soon(first_a) == "");
  CHECK(soon(first_b) == "");
  CHECK(all(*in_a, 0, kBytes, 2));
  CHECK(all(*in_b, 0, kBytes, 1));

  std::vector<std::future<std::string>> waiting;
  std::vector<std::shared_ptr<LinkBlock>> came;
  for (unsigned char i = 1; i <= 20; ++i) {
    waiting.push_back(a.exchange({{true, 1, a.block(100, i), 0, 100}}));
    came.push_back(b.block(100, 0));
    waiting.push_back(b.exchange({{false, 0, came.back(), 0, 100}}));
  }
  for (auto& each : waiting) CHECK(soon(each) == "");
  for (unsigned char i = 1; i <= 20; ++i) CHECK(all(*came[i - 1U], 0, 100, i));
}

TEST_CASE("parts of blocks among three ranks") {
  const NcclUniqueId id = fresh_id();
  std::vector<std::unique_ptr<Member>> ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.push_back(std::make_unique<Member>(id, rank, 3));
  std::vector<std::shared_ptr<LinkBlock>> in;
  std::vector<std::future<std::string>> done;
  for (int rank = 0; rank < 3; ++rank) {
    Member& member = *ranks[static_cast<std::size_t>(rank)];
    const auto out = member.block(300, static_cast<unsigned char>(10 + rank));
    in.push_back(member.block(300, 0));
    std::vector<Transfer> group;
    for (int peer = 0; peer < 3; ++peer) {
      group.push_back({true, peer, out, static_cast<std::size_t>(100 * peer), 100});
      group.push_back({false, peer, in.back(), static_cast<std::size_t>(100 * peer), 100});
    }
    done.push_back(member.exchange(std::move(group)));
  }
  for (auto& each : done) CHECK(soon(each) == "");
  for (const auto& block : in)
    for (unsigned char peer = 0; peer < 3; ++peer) CHECK(all(*block, 100U * peer, 100, static_cast<unsigned char>(10 + peer)));
}

TEST_CASE("a group waits for the device's work on its blocks") {
  Member only(fresh_id(), 0, 1);
  const auto from = only.block(10, 1), to = only.block(10, 0);
  const auto fence = std::make_shared<Later>();
  from->used_until(fence);
  std::atomic<bool> ready = false;
  std::promise<std::string> done;
  only.communicator->exchange({{true, 0, from, 0, 10}, {false, 0, to, 0, 10}}, [&] { ready = true; },
                              [&](const std::string& reason) { done.set_value(reason); });
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  CHECK(!ready);
  std::memset(from->data(), 9, 10);
  fence->passed_ = true;
  auto ended = done.get_future();
  CHECK(soon(ended) == "");
  CHECK(ready);
  CHECK(all(*to, 0, 10, 9));
}

TEST_CASE("a block that was given back is kept until the device is through with it") {
  Member only(fresh_id(), 0, 1);
  const auto fence = std::make_shared<Later>();
  auto block = only.block(64, 1);
  block->used_until(fence);
  block.reset();
  only.memory->sweep();
  CHECK(fence.use_count() == 2);
  fence->passed_ = true;
  only.memory->sweep();
  CHECK(fence.use_count() == 1);
}

TEST_CASE("a rank that never comes fails the opening within the deadline") {
  const auto began = std::chrono::steady_clock::now();
  Member lonely(fresh_id(), 0, 2, 300);
  auto queued = lonely.exchange({{true, 1, lonely.block(4, 0), 0, 4}});
  CHECK(soon(lonely.failure) == "not every rank of it came within 0.3 s");
  CHECK(soon(queued) == "not every rank of it came within 0.3 s");
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(3));
  auto later = lonely.exchange({});
  CHECK(soon(later) == "not every rank of it came within 0.3 s");
}

TEST_CASE("a peer that takes nothing fails a message within the deadline") {
  const NcclUniqueId id = fresh_id();
  Member a(id, 0, 2, 400), b(id, 1, 2, 400);
  auto sent = a.exchange({{true, 1, a.block(8 << 20, 1), 0, 8 << 20}});
  CHECK(soon(sent) == "no progress for 0.4 s");
  // Its abort is the other rank's failure.
  CHECK(soon(b.failure).find("rank 0 is gone") != std::string::npos);
}

TEST_CASE("a peer's process that is killed fails what waits for it, and what does not") {
  const NcclUniqueId id = fresh_id();
  int tell[2];
  REQUIRE(pipe(tell) == 0);
  const pid_t child = fork();
  if (child == 0) {
    Member other(id, 1, 2);
    const auto in = other.memory->take(16);
    auto got = other.exchange({{false, 0, in, 0, 16}});
    got.wait();
    [[maybe_unused]] const ssize_t told = write(tell[1], "x", 1);
    pause();
    _exit(0);
  }
  Member here(id, 0, 2);
  auto sent = here.exchange({{true, 1, here.block(16, 1), 0, 16}});
  CHECK(soon(sent) == "");
  char byte;
  REQUIRE(read(tell[0], &byte, 1) == 1);
  auto waiting = here.exchange({{false, 1, here.block(16, 0), 0, 16}});
  CHECK(waiting.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  kill(child, SIGKILL);
  const auto began = std::chrono::steady_clock::now();
  CHECK(soon(waiting).find("rank 1 is gone") != std::string::npos);
  CHECK(soon(here.failure).find("remote process exited") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(1));
  waitpid(child, nullptr, 0);
  close(tell[0]);
  close(tell[1]);
}

TEST_CASE("closing ends what is under way at once") {
  const NcclUniqueId id = fresh_id();
  Member a(id, 0, 2), b(id, 1, 2);
  auto waiting = a.exchange({{false, 1, a.block(16, 0), 0, 16}});
  CHECK(waiting.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout);
  const auto began = std::chrono::steady_clock::now();
  a.communicator->close();
  CHECK(soon(waiting) == "it was closed");
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(1));
  CHECK(a.failure.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
}

TEST_CASE("what NCCL refuses is said in its words") {
  NcclUniqueId bad{};
  Member nobody(bad, 0, 1);
  CHECK(soon(nobody.failure).find("ncclCommInitRankConfig: invalid argument") != std::string::npos);
  Member wrong(fresh_id(), 3, 2);
  CHECK(soon(wrong.failure).find("ncclCommInitRankConfig: invalid argument") != std::string::npos);
  Member only(fresh_id(), 0, 1);
  auto nowhere = only.exchange({{true, 5, only.block(4, 0), 0, 4}});
  CHECK(soon(nowhere).find("ncclSend: invalid argument") != std::string::npos);
}

TEST_CASE("sizes that differ at the two ends are an error, not a wait") {
  const NcclUniqueId id = fresh_id();
  Member a(id, 0, 2), b(id, 1, 2);
  auto sent = a.exchange({{true, 1, a.block(8, 1), 0, 8}});
  auto came = b.exchange({{false, 0, b.block(4, 1), 0, 4}});
  CHECK(soon(came).find("sends 8 bytes, 4 are expected") != std::string::npos);
}
