#include "ops/cuda/device/offload.h"

#include <utility>

#include "ops/cuda/device/check.h"
#include "pipelora/core/arena_offload.h"

namespace pipelora::cuda {

namespace {

cudaEvent_t event() {
  cudaEvent_t made = nullptr;
  check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming), "cudaEventCreate");
  return made;
}

/// What is queued on `later` from now on runs behind all that is queued on `first`. `mark` is recorded for it.
void order(cudaStream_t first, cudaEvent_t mark, cudaStream_t later) {
  check(cudaEventRecord(mark, first), "cudaEventRecord");
  check(cudaStreamWaitEvent(later, mark, 0), "waiting for a copy");
}

}  // namespace

// Memory changes hands in the order of the device's stream: it waits for the copies out before their source is used again, and
// for the copies back before their pieces of the host's memory are; both kinds of copy wait for what it had queued before them.
class OffloadedTensors final : public ArenaOffload {
 public:
  OffloadedTensors(HostRoom& room, std::vector<Buffer> given, Arena& arena)
      : ArenaOffload(std::move(given), arena), room_(room), mark_(event()), copied_(event()) {
    order(room_.device_.stream(), mark_, room_.out_);
    for (const Buffer& buffer : tensors()) {
      const Tensor& tensor = buffer;
      if (!tensor) {
        copies_.emplace_back();
        continue;
      }
      copies_.push_back(room_.room_.tensor("offloaded activations", tensor.dtype, tensor.rows, tensor.cols));
      check(cudaMemcpyAsync(copies_.back().tensor().data, tensor.data, tensor.bytes(), cudaMemcpyDeviceToHost, room_.out_), "offloading a tensor");
    }
    check(cudaEventRecord(copied_, room_.out_), "cudaEventRecord");
  }

  ~OffloadedTensors() override {
    if (!copies_.empty()) cudaStreamWaitEvent(room_.device_.stream(), copied_, 0);
    cudaEventDestroy(mark_);
    cudaEventDestroy(copied_);
  }

 private:
  void left() override { check(cudaStreamWaitEvent(room_.device_.stream(), copied_, 0), "waiting for a copy"); }

  void bring_back() override {
    // Behind the copies out too: the device's stream has waited for those.
    order(room_.device_.stream(), mark_, room_.back_);
    for (std::size_t i = 0; i < copies_.size(); ++i) {
      const Tensor &to = tensors()[i], &from = copies_[i];
      if (!to) continue;
      check(cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyHostToDevice, room_.back_), "fetching a tensor");
    }
    check(cudaEventRecord(copied_, room_.back_), "cudaEventRecord");
  }

  void arrived() override {
    check(cudaStreamWaitEvent(room_.device_.stream(), copied_, 0), "waiting for a copy");
    copies_.clear();
  }

  HostRoom& room_;
  std::vector<Buffer> copies_;  // on the host
  cudaEvent_t mark_, copied_;
};

HostRoom::HostRoom(Device& device, std::size_t bytes)
    : device_(device), memory_(device.index(), "offloaded activations (--activation-offload off does without)", bytes), room_(memory_.data(), bytes) {
  device.stream();
  for (cudaStream_t* stream : {&out_, &back_}) check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "cudaStreamCreate");
}

HostRoom::~HostRoom() {
  for (cudaStream_t stream : {out_, back_}) {
    if (stream == nullptr) continue;
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
}

std::unique_ptr<Offloaded> HostRoom::offload(std::vector<Buffer> tensors, Arena& arena) {
  return std::make_unique<OffloadedTensors>(*this, std::move(tensors), arena);
}

}  // namespace pipelora::cuda
