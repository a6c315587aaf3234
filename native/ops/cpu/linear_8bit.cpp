// LLM.int8() (Dettmers et al. 2022): forward in integers but for the outlier columns, which are decided over the whole
// micro-batch; the input gradient from expanded rows.
#include <algorithm>
#include <cstring>

#include "ops/cpu/quantised_weight.h"
#include "quant/state.h"

namespace pipelora {

namespace {

constexpr std::int64_t kTokensATask = 16;
constexpr std::int64_t kColumnsATask = 1024;

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

quant::Activation activation(const Tensor& x) { return {x.data, float_format(x.dtype), x.rows, x.cols, x.stride}; }

class Weight8Bit final : public QuantisedWeight {
 public:
  Weight8Bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in, const HoldSpec& hold)
      : QuantisedWeight(context, ops, out, in, hold.keep_expanded),
        hold_(hold),
        codes_(ops.allocate("an 8-bit weight", static_cast<std::size_t>(out * in), false)),
        scales_(ops.allocate("scales of an 8-bit weight", static_cast<std::size_t>(out) * sizeof(float), false)) {}

  void load(std::int64_t first, const HostTensor& rows) override {
    const std::int64_t bad =
        quant::quantise_weight8(rows.data, float_format(rows.dtype), float_format(hold_.dtype), rows.rows, rows.cols,
                                codes() + first * in_, scales() + first, context_.pool.threads());
    if (bad >= 0) not_finite(bad, in_, DType::f16);
    changed(first, rows.rows);
  }

  void load(std::int64_t first, quant::State8&& rows) override {
    std::memcpy(codes() + first * in_, rows.q.data(), rows.q.bytes());
    std::memcpy(scales() + first, rows.scb.data(), rows.scb.bytes());
    changed(first, rows.out);
  }

  std::size_t bytes() const override { return codes_->bytes() + scales_->bytes() + kept_bytes(); }

  HeldInput prepare(const Tensor& x) const override {
    HeldInput input;
    input.x = x;
    input.codes = context_.arena->workspace("an input in 8 bits", DType::i8, x.rows, in_);
    input.absmax = context_.arena->workspace("scales of an input in 8 bits", DType::f32, 1, x.rows);
    if (hold_.threshold > 0) {
      input.outlier_columns = context_.arena->workspace("outlier columns", DType::i32, 1, in_);
      const Buffer found = context_.arena->workspace("marks of outlier columns", DType::u8, 1, in_);
      auto* marks = found.tensor().as<std::uint8_t>();
      context_.pool.run(pieces(in_, kColumnsATask), [&](std::int64_t task, int) {
        const std::int64_t first = task * kColumnsATask;
        quant::mark_outlier_columns(activation(x.columns(first, std::min(kColumnsATask, in_ - first))), hold_.threshold,
                                    marks + first);
      });
      input.outliers = quant::list_outlier_columns(marks, in_, input.outlier_columns.tensor().as<std::int32_t>());
    }
    context_.pool.run(pieces(x.rows, kTokensATask), [&](std::int64_t task, int) {
      const std::int64_t first = task * kTokensATask;
      quant::quantise_activation(activation(x.row_range(first, std::min(kTokensATask, x.rows - first))), hold_.threshold,
                                 input.outlier_columns.tensor().as<std::int32_t>(), input.outliers,
                                 input.codes.tensor().as<std::int8_t>() + first * in_,
                                 input.absmax.tensor().as<float>() + first);
    });
    return input;
  }

  bool adds_bias() const override { return true; }

  void forward(const HeldInput& input, std::int64_t row, std::int64_t col, const float* bias, const Tensor& product,
               CpuThread&) const override {
    const quant::Int8Input x{activation(input.x), input.codes.tensor().as<std::int8_t>(), input.absmax.tensor().as<float>(),
                             input.outlier_columns.tensor().as<std::int32_t>(), input.outliers};
    quant::int8_tile(x, view(), bias, row, row + product.rows, col, col + product.cols, product.as<float>(), product.stride);
  }

  void forward_bare(const Tensor& x, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const override {
    multiply(x.row_range(row, product.rows), col, product, thread);
  }

 private:
  std::int8_t* codes() const { return static_cast<std::int8_t*>(codes_->data()); }
  float* scales() const { return static_cast<float*>(scales_->data()); }
  quant::Weight8 view() const { return {codes(), scales(), out_, in_}; }

  void expand(std::int64_t row, std::int64_t col, const Tensor& to) const override {
    quant::dequantise_tile(view(), row, row + to.rows, col, col + to.cols, to.data, float_format(to.dtype), to.stride);
  }

  const HoldSpec hold_;
  std::unique_ptr<DeviceMemory> codes_, scales_;
};

}  // namespace

std::unique_ptr<HeldWeight> hold_8bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in,
                                      const HoldSpec& hold) {
  return std::make_unique<Weight8Bit>(context, ops, out, in, hold);
}

}  // namespace pipelora
