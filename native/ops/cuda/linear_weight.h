// Frozen weights on the GPU: held in 16 or 32 bits or quantised; expanded to the compute dtype before a product.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "ops/cuda/device.h"
#include "ops/cuda/quant.h"
#include "pipelora/ops.h"

namespace pipelora::cuda {

class CudaLinear;

/// Memory for weights expanded to the compute dtype, one matrix a shape: the blocks of a model take turns.
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
    const CudaLinear* holds = nullptr;
    bool pending = false;  // filled ahead, and not waited for yet
    cudaEvent_t filled = nullptr, used = nullptr;
  };
  /// The slot of this shape, allocated on first use. `rows` x `stride` elements.
  Slot& slot(std::int64_t rows, std::int64_t stride, DType dtype);
  /// The slot with `weight` in it, in the order of the device's stream. Expands what is expected next.
  void use(const CudaLinear& weight, Slot& slot, bool forward);
  /// After the product that read the slot.
  void release(Slot& slot);
  void forget(const CudaLinear* weight);

 private:
  struct Step {
    const CudaLinear* weight = nullptr;
    bool forward = true;
    bool operator==(const Step&) const = default;
  };
  void fill(const CudaLinear& weight, Slot& slot, cudaStream_t stream);
  /// Expands what is expected after the last step into slots that no step until then needs; `busy`: the slot in use, or null.
  void look_ahead(const Slot* busy);

  Device& device_;
  cudaStream_t ahead_ = nullptr;
  std::map<std::tuple<std::int64_t, std::int64_t, DType>, Slot> slots_;
  void remember(const Step& step);

  std::vector<Step> past_;
  std::size_t place_ = 0;  // in the past, of what the last step repeats; 0: of nothing
};

/// What weights share.
struct LinearContext {
  LinearContext(Device& device_, DType compute_) : device(device_), compute(compute_), pool(device_) {}
  Device& device;
  DType compute;
  Arena* arena = nullptr;
  ExpandedPool pool;
  std::unique_ptr<Memory> table_memory;
  QuantTables tables;
};

class CudaLinear final : public LinearWeight {
 public:
  CudaLinear(LinearContext& context, std::int64_t in, std::vector<std::int64_t> part_rows, bool bias);
  ~CudaLinear() override;

  void expect_lora(std::int64_t inner_cols) override;
  void load(std::size_t part, const HostTensor& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State4&& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State8&& rows, const HoldSpec& hold) override;
  void load_bias(std::size_t part, const HostTensor& values) override;
  std::size_t bytes() const override;

  /// The weight [out, in] in the compute dtype, with room for tail() columns behind each row and tail() rows below, for a
  /// product that is enqueued before done() is called. `forward`: or the input gradient's.
  Tensor expanded(bool forward) const;
  void done() const;
  std::int64_t tail() const { return tail_; }
  /// [out] in the compute dtype, or null.
  const void* bias() const { return bias_ ? bias_->data() : nullptr; }

  /// Whether other weights may be expanded while a product with this one runs.
  bool takes_turns() const { return !held_as_computed() && !kept_; }
  /// y of a few tokens straight from the 4-bit codes; false, and nothing done, where that does not suit.
  bool forward_few(const LinearForward& call) const;
  bool is_int8() const { return spec_.quantisation == Quantisation::int8; }
  float threshold() const { return spec_.threshold; }
  /// int8: [out, in] rows of codes, and [out] scales.
  Tensor codes() const;
  const float* scales() const { return scales_ ? static_cast<const float*>(scales_->data()) : nullptr; }

 private:
  struct Part {
    std::int64_t first = 0, rows = 0;
    bool loaded = false;
    std::unique_ptr<Memory> scale_memory;  // 4 bits: scales of this part
    Packed4 packed;
  };
  std::int64_t rows_padded() const { return out + tail_; }
  /// Rows begin on lines of 128 bytes.
  std::int64_t stride() const { return (in + tail_ + 63) / 64 * 64; }
  void start(const HoldSpec& hold);
  void loaded(Part& part);
  /// Where the part's codes and scales go; with double quantisation the plain scales need a place of their own.
  std::uint8_t* place_four_bit(Part& part);
  void load_plain(const Part& part, const HostTensor& rows);
  void load_four_bit(Part& part, const HostTensor& rows);
  void load_int8(const Part& part, const HostTensor& rows);
  friend class ExpandedPool;
  bool held_as_computed() const { return spec_.quantisation == Quantisation::none && spec_.dtype == context_.compute; }
  void expand(const Tensor& to, cudaStream_t stream) const;
  Tensor matrix_in(void* data) const { return Tensor(data, context_.compute, out, in, stride()); }
  ExpandedPool::Slot& slot() const;

  LinearContext& context_;
  HoldSpec spec_;
  bool started_ = false;
  std::int64_t tail_ = 0;
  std::vector<Part> parts_;
  std::unique_ptr<Memory> memory_;  // the weight as held
  std::unique_ptr<Memory> scales_;  // int8
  std::unique_ptr<Memory> bias_;
  std::unique_ptr<Memory> kept_;  // expanded for good
  mutable bool kept_filled_ = false;
};

}  // namespace pipelora::cuda
