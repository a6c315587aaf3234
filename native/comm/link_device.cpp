#include "comm/link_device.h"

#include <chrono>
#include <cstdlib>
#include <new>
#include <thread>

namespace pipelora::comm {

namespace {

constexpr std::size_t kAlignment = 256;
constexpr auto kPatience = std::chrono::seconds(5);

class HostDevice final : public LinkDevice {
 public:
  void use() override {}
  void* stream() const override { return nullptr; }
  std::shared_ptr<const Fence> mark() override { return nullptr; }
  void* allocate(std::size_t bytes) override {
    void* data = std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment);
    if (data == nullptr) throw std::bad_alloc();
    return data;
  }
  void release(void* data) override { std::free(data); }
  bool is_host() const override { return true; }
};

bool idle(const LinkBlock& block) {
  try {
    return block.idle();
  } catch (...) {
    return true;  // a device that failed uses nothing any more
  }
}

}  // namespace

std::unique_ptr<LinkDevice> host_link_device() { return std::make_unique<HostDevice>(); }

std::shared_ptr<LinkBlock> LinkMemory::take(std::size_t bytes) {
  sweep();
  auto block = std::make_unique<LinkBlock>(device_->allocate(bytes), bytes);
  return std::shared_ptr<LinkBlock>(block.release(), [memory = shared_from_this()](LinkBlock* held) { memory->give(held); });
}

void LinkMemory::give(LinkBlock* block) {
  const std::lock_guard lock(mutex_);
  given_back_.emplace_back(block);
}

void LinkMemory::sweep() noexcept {
  try {
    // Also asking whether it is through would open a context on the thread's own device, which may be another.
    device_->use();
  } catch (...) {
    return;  // a device that is lost: its memory is too
  }
  const std::lock_guard lock(mutex_);
  for (auto at = given_back_.begin(); at != given_back_.end();) {
    if (!idle(**at)) {
      ++at;
      continue;
    }
    device_->release((*at)->data());
    at = given_back_.erase(at);
  }
}

LinkMemory::~LinkMemory() {
  const auto until = std::chrono::steady_clock::now() + kPatience;
  for (sweep(); !given_back_.empty() && std::chrono::steady_clock::now() < until; sweep())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace pipelora::comm
