#include "ops/cuda/base/expanded_pool.h"

#include <algorithm>
#include <array>

#include "ops/cuda/device/check.h"
#include "ops/cuda/base/linear_weight.h"

namespace pipelora::cuda {

ExpandedPool::ExpandedPool(Device& device) : device_(device) {
  device.stream();
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  check(cudaStreamCreateWithPriority(&ahead_, cudaStreamNonBlocking, least), "cudaStreamCreate");
}

ExpandedPool::~ExpandedPool() {
  cudaStreamSynchronize(ahead_);
  for (auto& [shape, slot] : slots_) {
    cudaEventDestroy(slot.filled);
    cudaEventDestroy(slot.used);
  }
  cudaStreamDestroy(ahead_);
}

ExpandedPool::Slot& ExpandedPool::slot(std::int64_t rows, std::int64_t stride, DType dtype) {
  Slot& found = slots_[{rows, stride, dtype}];
  if (!found.memory) {
    found.memory = device_.allocate("an expanded weight", static_cast<std::size_t>(rows * stride) * dtype_bytes(dtype));
    // What stands behind the weight's columns and LoRA's stays zero.
    check(cudaMemsetAsync(found.memory->data(), 0, found.memory->bytes(), device_.stream()), "an expanded weight");
    check(cudaEventCreateWithFlags(&found.filled, cudaEventDisableTiming), "cudaEventCreate");
    check(cudaEventCreateWithFlags(&found.used, cudaEventDisableTiming), "cudaEventCreate");
  }
  return found;
}

void ExpandedPool::fill(const Expansion& wanted, Slot& slot, cudaStream_t stream) {
  wanted.weight->expand(slot.memory->data(), wanted.forward, stream);
  slot.holds = wanted.weight->content(wanted.forward);
}

void ExpandedPool::use(const Expansion& wanted, Slot& slot) {
  cudaStream_t stream = device_.stream();
  if (slot.pending) {
    check(cudaStreamWaitEvent(stream, slot.filled, 0), "waiting for an expanded weight");
    slot.pending = false;
  }
  if (!(slot.holds == wanted.weight->content(wanted.forward))) fill(wanted, slot, stream);
  remember(wanted);
  look_ahead(&slot);
}

// The same weight comes up in several places of a step (forward, recomputed, backward): where the last step stands in the
// past is told by the steps before it.
void ExpandedPool::remember(const Expansion& step) {
  constexpr std::size_t kLongest = 1 << 14, kContext = 8;
  if (past_.size() >= kLongest) {
    past_.erase(past_.begin(), past_.begin() + kLongest / 2);
    place_ = place_ > kLongest / 2 ? place_ - kLongest / 2 : 0;
  }
  past_.push_back(step);
  const std::size_t last = past_.size() - 1;
  if (place_ > 0 && place_ + 1 < last && past_[place_ + 1] == step) {
    ++place_;
    return;
  }
  place_ = 0;
  std::size_t best = 0;
  for (std::size_t at = last; at-- > 1;) {
    if (!(past_[at] == step)) continue;
    std::size_t same = 1;
    while (same < kContext && same <= at && past_[at - same] == past_[last - same]) ++same;
    if (same <= best) continue;
    best = same;
    place_ = at;
    if (same == kContext) return;
  }
}

void ExpandedPool::look_ahead(const Slot* busy) {
  constexpr std::size_t kAhead = 8;
  if (place_ == 0) return;
  std::array<const Slot*, kAhead + 1> needed{busy};
  for (std::size_t i = 1; i <= kAhead && place_ + i < past_.size(); ++i) {
    const Expansion& wanted = past_[place_ + i];
    Slot& target = wanted.weight->slot(wanted.forward);
    const auto end = needed.begin() + static_cast<std::ptrdiff_t>(i);
    const bool free = std::find(needed.begin(), end, &target) == end;
    needed[i] = &target;
    if (target.holds == wanted.weight->content(wanted.forward) || !free || target.pending) continue;
    check(cudaStreamWaitEvent(ahead_, target.used, 0), "waiting for a product");
    fill(wanted, target, ahead_);
    check(cudaEventRecord(target.filled, ahead_), "cudaEventRecord");
    target.pending = true;
  }
}

void ExpandedPool::release(Slot& slot) {
  check(cudaEventRecord(slot.used, device_.stream()), "cudaEventRecord");
  look_ahead(nullptr);
}

void ExpandedPool::forget(const CudaLinear* weight) {
  for (auto& [shape, slot] : slots_) {
    if (slot.holds.weight != weight) continue;
    if (slot.pending) cudaStreamSynchronize(ahead_);
    slot.pending = false;
    slot.holds = {};
  }
  past_.clear();
  place_ = 0;
}

}  // namespace pipelora::cuda
