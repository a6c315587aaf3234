// Products with a weight that is expanded a panel at a time: what 4 and 8 bits share.
#pragma once

#include <string>

#include "ops/cpu/held_weight.h"
#include "quant/float_format.h"

namespace pipelora {

quant::Float float_format(DType dtype);

/// Throws PL_QUANTIZATION_INVALID for the element at a flat index of rows [.., in].
[[noreturn]] void not_finite(std::int64_t element, std::int64_t in, DType dtype);

class QuantisedWeight : public HeldWeight {
 public:
  void input_grad(const Tensor& dy, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const override;
  void keep_expanded(bool keep) override;

 protected:
  QuantisedWeight(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in, bool keep_expanded);

  /// W[row:row + to.rows, col:col + to.cols] -> to, in the compute dtype. One thread.
  virtual void expand(std::int64_t row, std::int64_t col, const Tensor& to) const = 0;
  /// After a change of rows [first, first + rows).
  void changed(std::int64_t first, std::int64_t rows);
  /// product = x W[col:col + product.cols]ᵀ through panels.
  void multiply(const Tensor& x, std::int64_t col, const Tensor& product, CpuThread& thread) const;
  std::size_t kept_bytes() const { return kept_ ? kept_->bytes() : 0; }

  const CpuContext context_;
  const std::int64_t out_, in_;

 private:
  void make_room();
  Tensor panel(std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, CpuThread& thread) const;

  Ops& ops_;
  std::unique_ptr<DeviceMemory> kept_;
  std::uint64_t version_ = 0;
};

}  // namespace pipelora
