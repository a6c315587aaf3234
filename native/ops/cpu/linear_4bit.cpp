// NF4 and FP4 weights (QLoRA, Dettmers et al. 2023): forward and input gradient both from the same expanded values.
#include <algorithm>
#include <map>

#include "ops/cpu/quantised_weight.h"
#include "pipelora/core/error.h"
#include "pipelora/ops/packed.h"
#include "quant/state.h"

namespace pipelora {

namespace {

class Weight4Bit final : public QuantisedWeight {
 public:
  Weight4Bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in, const HoldSpec& hold)
      : QuantisedWeight(context, ops, out, in, hold.keep_expanded), hold_(hold) {
    if (!quant::is_block_size(hold.block_size))
      throw Error(kQuantizationInvalid, "4-bit block size: expected a power of two from 32 to 4096, got " +
                                            std::to_string(hold.block_size));
  }

  void load(std::int64_t first, const HostTensor& rows) override {
    if (hold_.quantisation == Quantisation::mxfp4) throw Error(kQuantizationInvalid, "nothing is quantised to MXFP4: expected packed rows");
    quant::State4 state;
    const std::int64_t bad =
        quant::quantise(rows.data, float_format(rows.dtype), float_format(hold_.dtype), rows.rows, rows.cols,
                        {four_bit_of(hold_.quantisation), hold_.block_size, hold_.double_quant}, context_.pool.threads(), state);
    if (bad >= 0) not_finite(bad, in_, hold_.dtype);
    load(first, std::move(state));
  }

  void load(std::int64_t first, quant::State4&& rows) override {
    const std::int64_t count = rows.out;
    parts_.insert_or_assign(first, std::move(rows));
    changed(first, count);
  }

  std::size_t bytes() const override {
    std::size_t total = kept_bytes();
    for (const auto& [first, state] : parts_) total += state.bytes();
    return total;
  }

  void forward(const HeldInput& input, std::int64_t row, std::int64_t col, const float*, const Tensor& product,
               CpuThread& thread) const override {
    multiply(input.x.row_range(row, product.rows), col, product, thread);
  }

 private:
  void expand(std::int64_t row, std::int64_t col, const Tensor& to) const override {
    for (const auto& [first, state] : parts_) {
      const std::int64_t begin = std::max(row, first), end = std::min(row + to.rows, first + state.out);
      if (begin >= end) continue;
      quant::dequantise_tile(state.view(), begin - first, end - first, col, col + to.cols,
                             to.row_range(begin - row, end - begin).data, float_format(to.dtype), to.stride);
    }
  }

  const HoldSpec hold_;
  std::map<std::int64_t, quant::State4> parts_;  // by first row: each checkpoint tensor has blocks and scales of its own
};

}  // namespace

std::unique_ptr<HeldWeight> hold_4bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in,
                                      const HoldSpec& hold) {
  return std::make_unique<Weight4Bit>(context, ops, out, in, hold);
}

}  // namespace pipelora
