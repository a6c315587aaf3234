// The frozen weights of a layer: made for its first adapter, and found by every other one, which asks for the same in the same order.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora {

/// The weights of one product; several where experts have theirs.
struct BaseProduct {
  std::vector<std::unique_ptr<LinearWeight>> weights;
  /// Whether its checkpoint's tensors have their places.
  bool slotted = false;
  /// Some adapter trains the bias. The adapter whose bias the weight has now (null: the base's own), and the base's own meanwhile.
  bool bias_learns = false;
  const void* bias_of = nullptr;
  std::unique_ptr<DeviceMemory> own_bias;
};

/// The embedding's frozen table; empty where every adapter trains its own.
struct BaseTable {
  std::unique_ptr<DeviceMemory> memory;
  Tensor weight;
  bool slotted = false;
};

class BaseWeights {
 public:
  explicit BaseWeights(Ops& ops) : ops_(ops) {}

  /// `inner_cols`: of LoRA's vectors that come with the product. Throws PL_TENSOR_MISMATCH where an adapter asks for another shape than
  /// the first did.
  BaseProduct& product(std::int64_t in, const std::vector<std::int64_t>& rows, bool bias, std::int64_t inner_cols, std::size_t count = 1);
  void* memory(const char* what, std::size_t bytes);
  BaseTable& table() { return table_; }

  /// Before the next adapter asks.
  void rewind() { next_product_ = next_memory_ = 0; }
  /// After the last adapter has ended: the weights are as they were loaded, for the adapters of another layer.
  void give_up_adapters();
  /// LinearWeight::keep_expanded() of every product.
  void keep_expanded(bool keep);
  /// On the device.
  std::size_t bytes() const;

 private:
  Ops& ops_;
  std::vector<std::unique_ptr<BaseProduct>> products_;
  std::vector<std::unique_ptr<DeviceMemory>> memories_;
  BaseTable table_;
  std::size_t next_product_ = 0, next_memory_ = 0;
};

}  // namespace pipelora
