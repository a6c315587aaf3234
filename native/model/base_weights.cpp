#include "pipelora/model/base_weights.h"

#include "pipelora/core/error.h"

namespace pipelora {

BaseProduct& BaseWeights::product(std::int64_t in, const std::vector<std::int64_t>& rows, bool bias, std::int64_t inner_cols, std::size_t count) {
  if (next_product_ == products_.size()) {
    auto made = std::make_unique<BaseProduct>();
    for (std::size_t i = 0; i < count; ++i) made->weights.push_back(ops_.create_linear(in, rows, bias));
    products_.push_back(std::move(made));
  }
  BaseProduct& found = *products_[next_product_++];
  const LinearWeight& first = *found.weights.front();
  if (found.weights.size() != count || first.in != in || first.part_rows != rows)
    throw Error(kTensorMismatch, "an adapter's layers: expected products of the same shapes as the first adapter's");
  for (const auto& weight : found.weights) weight->expect_lora(inner_cols);
  return found;
}

void* BaseWeights::memory(const char* what, std::size_t bytes) {
  if (next_memory_ == memories_.size()) memories_.push_back(ops_.allocate(what, bytes, true));
  const DeviceMemory& found = *memories_[next_memory_++];
  if (found.bytes() < bytes) throw Error(kTensorMismatch, "an adapter's layers: expected weights of the same shapes as the first adapter's");
  return found.data();
}

void BaseWeights::give_up_adapters() {
  rewind();
  table_.slotted = false;
  for (const auto& product : products_) {
    if (product->own_bias) {
      const Tensor held = product->weights.front()->bias_values();
      ops_.copy(Tensor(product->own_bias->data(), held.dtype, held.rows, held.cols), held);
      ops_.finish();
    }
    product->own_bias.reset();
    product->bias_of = nullptr;
    product->bias_learns = product->slotted = false;
  }
}

void BaseWeights::keep_expanded(bool keep) {
  for (const auto& product : products_)
    for (const auto& weight : product->weights) weight->keep_expanded(keep);
}

std::size_t BaseWeights::bytes() const {
  std::size_t bytes = table_.memory && !table_.memory->on_host() ? table_.memory->bytes() : 0;
  for (const auto& memory : memories_) bytes += memory->bytes();
  for (const auto& product : products_) {
    for (const auto& weight : product->weights) bytes += weight->bytes();
    if (product->own_bias) bytes += product->own_bias->bytes();
  }
  return bytes;
}

}  // namespace pipelora
