#include "addon/thread/tensor_store.h"

#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {
[[noreturn]] void throw_gone() { throw Error(kTensorMismatch, "the device tensor was freed or given to another call before"); }
}  // namespace

TensorHandle::~TensorHandle() { store_->drop(id_); }

std::shared_ptr<TensorHandle> TensorStore::hold(Buffer buffer) {
  if (!buffer) return nullptr;
  const Tensor tensor = buffer.tensor();
  const std::uint64_t id = next_++;
  held_.emplace(id, std::move(buffer));
  return std::make_shared<TensorHandle>(shared_from_this(), id, tensor);
}

const Buffer& TensorStore::at(const TensorHandle& handle) const {
  const auto found = held_.find(handle.id_);
  if (found == held_.end()) throw_gone();
  return found->second;
}

Buffer TensorStore::take(const TensorHandle& handle) {
  const auto found = held_.find(handle.id_);
  if (found == held_.end()) throw_gone();
  Buffer buffer = std::move(found->second);
  held_.erase(found);
  return buffer;
}

void TensorStore::drop(std::uint64_t id) {
  if (std::this_thread::get_id() == thread_.load()) {
    held_.erase(id);
    return;
  }
  // Refused once the engine closes: close() drops what is left, on its thread.
  queue_->push([store = shared_from_this(), id] { store->held_.erase(id); });
}

}  // namespace pipelora::addon
