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
class ExpandedPool {
 public:
  struct Slot {
    std::unique_ptr<Memory> memory;
    const CudaLinear* holds = nullptr;
  };
  /// The slot of this shape, allocated on first use. `rows` x `stride` elements.
  Slot& slot(Device& device, std::int64_t rows, std::int64_t stride, DType dtype);
  void forget(const CudaLinear* weight);

 private:
  std::map<std::tuple<std::int64_t, std::int64_t, DType>, Slot> slots_;
};

/// What weights share.
struct LinearContext {
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

  /// The weight [out, in] in the compute dtype, with room for tail() columns behind each row and tail() rows below.
  Tensor expanded() const;
  std::int64_t tail() const { return tail_; }
  /// [out] in the compute dtype, or null.
  const void* bias() const { return bias_ ? bias_->data() : nullptr; }

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
  std::int64_t stride() const { return (in + tail_ + 7) / 8 * 8; }
  void start(const HoldSpec& hold);
  void loaded(Part& part);
  /// Where the part's codes and scales go; with double quantisation the plain scales need a place of their own.
  std::uint8_t* place_four_bit(Part& part);
  void load_plain(const Part& part, const HostTensor& rows);
  void load_four_bit(Part& part, const HostTensor& rows);
  void load_int8(const Part& part, const HostTensor& rows);
  void expand(const Tensor& to) const;
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
