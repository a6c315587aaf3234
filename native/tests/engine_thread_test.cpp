// The engine's thread, its queue and the tensors that other threads hold: under ThreadSanitizer, with real jobs and a real arena.
#include <doctest/doctest.h>

#include <future>
#include <stdexcept>

#include "addon/thread/engine_thread.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/core/error.h"

using namespace pipelora;
using namespace pipelora::addon;

namespace {

constexpr std::size_t kArena = 1 << 20;

std::unique_ptr<Engine> small_engine() {
  Arch arch;
  arch.hidden = arch.head_dim = arch.ffn = arch.vocab = 8;
  arch.heads = arch.kv_heads = 1;
  arch.rotary = {rotary_rule(1, 8)};
  return std::make_unique<Engine>(make_cpu_ops(DType::f32, 1), arch, kArena);
}

using Handle = std::shared_ptr<TensorHandle>;

/// A tensor of `value`s, as write() queues it.
std::future<Handle> written(EngineThread& thread, float value) {
  const auto promise = std::make_shared<std::promise<Handle>>();
  auto result = promise->get_future();
  const bool accepted = thread.post([&thread, promise, value] {
    float values[64];
    for (float& one : values) one = value;
    const HostSpan piece{reinterpret_cast<std::uint8_t*>(values), sizeof values};
    promise->set_value(thread.tensors().hold(thread.engine().write({&piece, 1}, DType::f32, 1, 64)));
  });
  if (!accepted) promise->set_value(nullptr);
  return result;
}

std::size_t used(EngineThread& thread) {
  std::promise<std::size_t> bytes;
  REQUIRE(thread.post([&] { bytes.set_value(thread.engine().arena().used()); }));
  return bytes.get_future().get();
}

}  // namespace

TEST_CASE("an engine is made, worked and ended on its thread; what fails in making it, every job is told") {
  std::thread::id made, worked;
  {
    EngineThread thread([&] {
      made = std::this_thread::get_id();
      return small_engine();
    });
    thread.post([&] { worked = std::this_thread::get_id(); });
    CHECK(used(thread) == 0);
  }
  CHECK(made == worked);
  CHECK(made != std::this_thread::get_id());

  EngineThread failing([]() -> std::unique_ptr<Engine> { throw Error(kDeviceUnavailable, "no such device"); });
  for (int i = 0; i < 2; ++i) {
    std::promise<std::string> code;
    failing.post([&] {
      try {
        failing.engine();
        code.set_value("");
      } catch (const Error& error) {
        code.set_value(error.code());
      }
    });
    CHECK(code.get_future().get() == kDeviceUnavailable);
  }
  bool closed = false;
  failing.close([&] { closed = true; });
  failing.join();
  CHECK(closed);
}

TEST_CASE("tensors dropped by another thread go back to the arena, in the queue's order") {
  EngineThread thread(small_engine);
  std::vector<Handle> held;
  for (int i = 0; i < 100; ++i) held.push_back(written(thread, static_cast<float>(i)).get());
  CHECK(used(thread) >= 100 * 64 * sizeof(float));
  for (int i = 0; i < 100; i += 2) held[static_cast<std::size_t>(i)].reset();
  std::promise<float> value;
  thread.post([&, handle = std::move(held[51])] {
    value.set_value(static_cast<const float*>(thread.tensors().at(*handle).tensor().data)[63]);
  });
  CHECK(value.get_future().get() == 51.0f);
  held.clear();
  CHECK(used(thread) == 0);
}

TEST_CASE("a tensor that was taken is gone for others") {
  EngineThread thread(small_engine);
  const Handle handle = written(thread, 1).get();
  std::promise<std::string> code;
  thread.post([&] {
    const Buffer taken = thread.tensors().take(*handle);
    try {
      thread.tensors().at(*handle);
      code.set_value("");
    } catch (const Error& error) {
      code.set_value(error.code());
    }
  });
  CHECK(code.get_future().get() == kTensorMismatch);
  CHECK(used(thread) == 0);
}

TEST_CASE("tensors are dropped, jobs refused and figures asked for while the thread works and closes") {
  for (int round = 0; round < 40; ++round) {
    auto thread = std::make_unique<EngineThread>(small_engine);
    std::vector<Handle> held;
    for (int i = 0; i < 32; ++i) held.push_back(written(*thread, 1).get());
    // Jobs that allocate and free for as long as the others go on.
    std::atomic<bool> stop{false};
    for (int i = 0; i < 200; ++i)
      thread->post([&thread, &stop] {
        if (stop.load()) return;
        for (int k = 0; k < 8; ++k) thread->engine().arena().workspace("test", DType::f32, 4, 64);
      });
    std::vector<std::thread> others;
    for (int t = 0; t < 3; ++t)
      others.emplace_back([&, t] {
        for (std::size_t i = static_cast<std::size_t>(t); i < held.size(); i += 3) {
          // The job may be refused, with the tensor's last name in it.
          thread->post([handle = std::move(held[i])] {});
          thread->memory();
          thread->busy_seconds();
          if (i == 16) thread->close([] {});
        }
      });
    for (std::thread& other : others) other.join();
    stop = true;
    std::atomic<int> closed{0};
    thread->close([&] { ++closed; });
    thread->join();
    CHECK(closed == 1);
    CHECK_FALSE(thread->post([] {}));
    // A name that outlives its engine.
    thread.reset();
    held.clear();
  }
}
