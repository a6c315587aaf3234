// The places that a checkpoint's tensors fill, by name.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "pipelora/ops/ops.h"
#include "pipelora/ops/packed.h"

namespace pipelora {

/// In what form a weight's products read it, beside how it is held (HoldSpec).
struct ProductForm {
  bool keep_expanded = false;  // of a block in the weight cache
  bool fp8 = false;
};

class WeightSlots {
 public:
  using Fill = std::function<void(const HostTensor&, const HoldSpec&)>;
  /// A matrix [rows, cols], or a vector [cols] (rows 0). Several places may have one name: a tensor fills them all.
  void add(const std::string& name, std::int64_t rows, std::int64_t cols, Fill fill);
  /// A tensor of any shape, filled as a matrix of its last extent.
  void add(const std::string& name, std::vector<std::int64_t> shape, Fill fill);
  /// Part `part` [rows, cols] of a product's weight.
  void add(const std::string& name, std::int64_t rows, std::int64_t cols, LinearWeight& weight, std::size_t part, ProductForm form);

  /// `data` is [shape] of the checkpoint. Throws PL_TENSOR_MISMATCH for an unknown name or another shape.
  void load(const std::string& name, const std::vector<std::int64_t>& shape, const HostTensor& data, const HoldSpec& hold);
  /// The same for a linear weight that is quantised already.
  void load(const std::string& name, PackedState&& state, const HoldSpec& hold);
  std::vector<std::string> missing() const;
  /// Slots added from now on are this layer's.
  void begin_layer(std::size_t layer) { layer_ = layer; }
  /// Whether all slots of a layer are filled, and: they are, by weights that were loaded before.
  bool whole(std::size_t layer) const;
  void take_over(std::size_t layer);
  /// Throws PL_TENSOR_MISMATCH if something is missing.
  void require_loaded() const;

 private:
  struct Slot {
    std::int64_t rows = 0, cols = 0;
    Fill fill;
    LinearWeight* weight = nullptr;  // of a product: its part of that number is what is filled
    std::size_t part = 0;
    ProductForm form = {};
    bool filled = false;
    std::size_t layer = 0;
    std::vector<std::int64_t> shape = {};  // in the checkpoint, where it is neither [rows, cols] nor [cols]

    HoldSpec hold(HoldSpec asked) const;
  };
  /// Calls body(slot) for each slot of that name after the check of its shape; errors name the tensor.
  template <class Body>
  void for_each(const std::string& name, const std::vector<std::int64_t>& shape, Body&& body);

  void add(const std::string& name, Slot slot);

  std::multimap<std::string, Slot> slots_;
  std::size_t layer_ = 0;
};

}  // namespace pipelora
