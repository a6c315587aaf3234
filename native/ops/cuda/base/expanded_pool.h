// Places that weights take turns in, expanded to what products read.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "ops/cuda/device/device.h"

namespace pipelora::cuda {

class CudaLinear;

/// What a product reads of a weight: for the forward pass or the input gradient's, which differ for weights in e4m3 alone.
struct Expansion {
  const CudaLinear* weight = nullptr;
  bool forward = true;
  bool operator==(const Expansion&) const = default;
};

/// Memory for expanded weights, one matrix a shape: the blocks of a model take turns.
///
/// Expanding moves bytes, products compute: what is needed next is expanded on a second stream while the first one works.
/// What comes next is foreseen from the past: a model uses its weights in the same order every step.
class ExpandedPool {
 public:
  explicit ExpandedPool(Device& device);
  ~ExpandedPool();
  ExpandedPool(const ExpandedPool&) = delete;
  ExpandedPool& operator=(const ExpandedPool&) = delete;

  struct Slot {
    std::unique_ptr<Memory> memory;
    Expansion holds;
    bool pending = false;  // filled ahead, and not waited for yet
    cudaEvent_t filled = nullptr, used = nullptr;
  };
  /// The slot of this shape, allocated on first use. `rows` x `stride` elements.
  Slot& slot(std::int64_t rows, std::int64_t stride, DType dtype);
  /// Fills the slot, in the order of the device's stream. Expands what is expected next.
  void use(const Expansion& wanted, Slot& slot);
  /// After the product that read the slot.
  void release(Slot& slot);
  void forget(const CudaLinear* weight);

 private:
  void fill(const Expansion& wanted, Slot& slot, cudaStream_t stream);
  void remember(const Expansion& step);
  /// Expands what is expected after the last step into slots that no step until then needs; `busy`: the slot in use, or null.
  void look_ahead(const Slot* busy);

  Device& device_;
  cudaStream_t ahead_ = nullptr;
  std::map<std::tuple<std::int64_t, std::int64_t, DType>, Slot> slots_;
  std::vector<Expansion> past_;
  std::size_t place_ = 0;  // in the past, of what the last step repeats; 0: of nothing
};

}  // namespace pipelora::cuda
