// Frozen weights on the GPU: held in 16 or 32 bits or quantised; expanded to the compute dtype, or to e4m3, before a product.
#pragma once

#include <memory>
#include <vector>

#include "ops/cuda/device/check.h"
#include "ops/cuda/device/device.h"
#include "ops/cuda/base/expanded_pool.h"
#include "ops/cuda/base/fp8.h"
#include "ops/cuda/base/quant.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

/// Rows that the codes of an 8-bit weight have: cuBLASLt's integer products take outputs four at a time. Those behind the last are zero.
constexpr std::int64_t int8_rows(std::int64_t out) { return (out + 3) / 4 * 4; }

/// What weights share.
struct LinearContext {
  LinearContext(Device& device_, DType compute_) : device(device_), compute(compute_), gpu(gpu_kind()), pool(device_) {}
  Device& device;
  DType compute;
  GpuKind gpu;
  Arena* arena = nullptr;
  ExpandedPool pool;
  std::unique_ptr<Memory> table_memory;
  QuantTables tables;
  /// Allocated with the first product that takes it.
  FewScratch few_scratch();

 private:
  std::unique_ptr<Memory> few_memory_;
};

class CudaLinear final : public LinearWeight {
 public:
  CudaLinear(LinearContext& context, std::int64_t in, std::vector<std::int64_t> part_rows, bool bias);
  ~CudaLinear() override;

  void expect_lora(std::int64_t inner_cols) override;
  void expect_matrices(std::int64_t count) override;
  void load(std::size_t part, const HostTensor& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State4&& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State8&& rows, const HoldSpec& hold) override;
  void load_bias(std::size_t part, const HostTensor& values) override;
  void refresh(std::int64_t first, const Tensor& values) override;
  void refresh_bias(std::int64_t first, const Tensor& values) override;
  void keep_expanded(bool keep) override;
  Tensor bias_values() const override { return bias_ ? Tensor(bias_->data(), context_.compute, 1, out) : Tensor(); }
  std::size_t bytes() const override;

  /// The weight [out, in] in the compute dtype, with room for tail() columns behind each row and tail() rows below, for a
  /// product that is enqueued before done() is called. `forward`: or the input gradient's.
  /// In e4m3: [out, in] for the forward pass; for the other each matrix transposed, [matrices * in, matrix_rows()]; without room.
  Tensor expanded(bool forward) const;
  void done(bool forward) const;
  std::int64_t tail() const { return tail_; }
  std::int64_t matrix_rows() const { return out / matrices_; }
  /// [out] in the compute dtype, or null.
  const void* bias() const { return bias_ ? bias_->data() : nullptr; }

  /// Whether other weights may be expanded while a product with this one runs.
  bool takes_turns() const { return !held_as_computed() && !kept_; }
  /// y of a few tokens straight from the 4-bit codes; false, and nothing done, where that does not suit.
  bool forward_few(const LinearForward& call) const;
  bool is_quantised() const { return spec_.quantisation != Quantisation::none; }
  bool is_int8() const { return spec_.quantisation == Quantisation::int8 && !is_fp8(); }
  /// Products multiply e4m3 numbers: asked for, and the shape and dtypes suit.
  bool is_fp8() const;
  /// Whether LoRA's columns join the product, behind those of x and of the weight.
  bool takes_lora() const { return !is_int8() && !is_fp8(); }
  /// fp8: what the row of expanded(forward) of each output is multiplied by; back, of each matrix's inputs.
  const float* fp8_scales(bool forward) const;
  float threshold() const { return spec_.threshold; }
  /// int8: [out, in] rows of codes, and [out] scales.
  Tensor codes() const;
  const float* scales() const { return scales_ ? static_cast<const float*>(scales_->data()) : nullptr; }

  /// The rows of `parts`: the first, and how many.
  struct Rows {
    std::int64_t first = 0, count = 0;
  };
  Rows rows_of(const WeightParts& parts) const;

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
  /// Memory for what products read of the weight; expand_kept() fills it.
  void allocate_kept();
  void expand_kept();
  void loaded(Part& part);
  /// Where the part's codes and scales go; with double quantisation the plain scales need a place of their own.
  std::uint8_t* place_four_bit(Part& part);
  void load_plain(const Part& part, const HostTensor& rows);
  void load_four_bit(Part& part, const HostTensor& rows);
  void load_int8(const Part& part, const HostTensor& rows);
  friend class ExpandedPool;
  bool held_as_computed() const { return spec_.quantisation == Quantisation::none && spec_.dtype == context_.compute && !is_fp8(); }
  /// What tells the contents of a slot apart.
  Expansion content(bool forward) const { return {this, forward || !is_fp8()}; }
  void expand(void* to, bool forward, cudaStream_t stream) const;
  HeldRows held_rows(const Part& part) const;
  /// body(HeldRows) of every part, or of all at once where they are many of one shape.
  template <class Body>
  void each_held(Body&& body) const;
  /// What products read, as it lies in memory of its own or a slot's.
  Tensor matrix_in(void* data, bool forward) const;
  std::size_t expanded_bytes(bool forward) const;
  ExpandedPool::Slot& slot(bool forward) const;
  void all_loaded();
  /// Whether the parts are many of one shape, which one kernel expands; in 4 bits, where each is.
  void list_equal_parts();

  LinearContext& context_;
  HoldSpec spec_;
  bool started_ = false;
  std::int64_t tail_ = 0;
  std::int64_t matrices_ = 1;
  std::vector<Part> parts_;
  bool many_equal_parts_ = false;
  std::unique_ptr<Memory> memory_;  // the weight as held
  std::unique_ptr<Memory> scales_;  // int8
  std::unique_ptr<Memory> bias_;
  std::unique_ptr<Memory> kept_;       // expanded for good
  std::unique_ptr<Memory> kept_back_;  // fp8: the transpose
  std::unique_ptr<Memory> fp8_scales_; // [out], then [matrices * in]
  std::unique_ptr<Memory> equal_parts_;  // Packed4 of each part, or null
};

/// What a product sees of a weight: all its rows, or those of neighbouring parts.
class HeldView {
 public:
  HeldView(const LinearWeight& weight, const WeightParts& parts)
      : weight_(static_cast<const CudaLinear&>(weight)), rows_(weight_.rows_of(parts)), whole_(parts.count == 0) {}

  const CudaLinear& weight() const { return weight_; }
  std::int64_t in() const { return weight_.in; }
  std::int64_t out() const { return rows_.count; }
  /// As CudaLinear's; done() is called of the weight.
  Tensor expanded(bool forward) const {
    const Tensor all = weight_.expanded(forward);
    if (forward || !weight_.is_fp8()) return all.row_range(rows_.first, rows_.count);
    return all.row_range(matrix() * in(), in()).columns(rows_.first % weight_.matrix_rows(), rows_.count);
  }
  void done(bool forward) const { weight_.done(forward); }
  /// Rows below the view's own that may be written: none where other parts follow.
  std::int64_t room_below() const { return whole_ ? weight_.tail() : 0; }
  const void* bias(DType compute) const {
    const auto* all = static_cast<const char*>(weight_.bias());
    return all == nullptr ? nullptr : all + static_cast<std::size_t>(rows_.first) * dtype_bytes(compute);
  }
  const float* fp8_scales(bool forward) const { return weight_.fp8_scales(forward) + (forward ? rows_.first : matrix() * in()); }
  Tensor codes() const { return weight_.codes().row_range(rows_.first, rows_.count); }
  const float* scales() const { return weight_.scales() + rows_.first; }

 private:
  std::int64_t matrix() const { return rows_.first / weight_.matrix_rows(); }

  const CudaLinear& weight_;
  CudaLinear::Rows rows_;
  bool whole_;
};

}  // namespace pipelora::cuda
