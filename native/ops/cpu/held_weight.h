// What a frozen weight is held as: plain, in 4 bits or in 8. CpuOps cuts a product into tiles; this makes one tile of it.
//
// A quantised weight is never expanded as a whole. A tile expands the panel it needs, at most kPanelCols x kPanelDepth
// elements, into its thread's scratch, and multiplies it at once. The next tile of that thread uses the panel again if it is the same.
// A panel's borders depend on the shape alone, and a weight kept expanded goes through the same products, so both give the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/cpu/gemm.h"
#include "ops/cpu/kernels/kernels.h"
#include "pipelora/core/arena.h"
#include "pipelora/ops/ops.h"
#include "pipelora/core/parallel.h"

namespace pipelora {

/// Columns of a product's tile, and how much of the inner dimension is expanded at a time.
inline constexpr std::int64_t kPanelCols = 384;
inline constexpr std::int64_t kPanelDepth = 4096;

/// One thread's tools. The panel lies in scratch slot 3.
struct CpuThread {
  Gemm gemm;
  Scratch scratch;
  std::vector<std::uint8_t> masks;
  std::vector<LowRankTerm> terms;

  struct Panel {
    std::uint64_t version = 0;  // of a loaded weight; never given twice
    std::int64_t row = 0, col = 0, rows = 0, cols = 0;
    bool operator==(const Panel&) const = default;
  };
  Panel panel;
};

/// What all weights of an Ops share.
struct CpuContext {
  DType compute;
  ThreadPool& pool;
  Arena* const& arena;
};

/// The input of one product, as the weight wants it.
struct HeldInput {
  Tensor x;  // [T, in]
  // 8 bits: x's codes, its rows' scales, its outlier columns.
  Buffer codes, absmax, outlier_columns;
  std::int64_t outliers = 0;
};

class HeldWeight {
 public:
  virtual ~HeldWeight() = default;
  /// Rows [first, first + rows.rows) of the weight; throws PL_QUANTIZATION_INVALID for one that can't be quantised.
  virtual void load(std::int64_t first, const HostTensor& rows) = 0;
  /// Rows that are quantised already, the way this weight is held.
  virtual void load(std::int64_t first, quant::State4&& rows);
  virtual void load(std::int64_t first, quant::State8&& rows);
  virtual std::size_t bytes() const = 0;
  /// LinearWeight::keep_expanded().
  virtual void keep_expanded(bool keep) { static_cast<void>(keep); }

  /// Once a product, before its tiles. Not from a task.
  virtual HeldInput prepare(const Tensor& x) const {
    HeldInput input;
    input.x = x;
    return input;
  }
  /// Whether forward adds the bias itself, before a rounding of its own.
  virtual bool adds_bias() const { return false; }
  /// product [x rows, cols] f32 = x[row:row + product.rows] W[col:col + product.cols]ᵀ. bias: [out], or null.
  virtual void forward(const HeldInput& input, std::int64_t row, std::int64_t col, const float* bias, const Tensor& product,
                       CpuThread& thread) const = 0;
  /// LinearForward::bare.
  virtual void forward_bare(const Tensor& x, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const {
    HeldInput input;
    input.x = x;
    forward(input, row, col, nullptr, product, thread);
  }
  /// product [dy rows, cols] f32 = dy W[row:row + dy.cols, col:col + product.cols].
  virtual void input_grad(const Tensor& dy, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const = 0;
};

/// In the compute dtype, [out, in].
std::unique_ptr<HeldWeight> hold_plain(class CpuOps& ops, std::int64_t out, std::int64_t in, const HoldSpec& hold);
/// NF4 and FP4 (quant/weight4.h).
std::unique_ptr<HeldWeight> hold_4bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in,
                                      const HoldSpec& hold);
/// LLM.int8() (quant/int8.h).
std::unique_ptr<HeldWeight> hold_8bit(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in,
                                      const HoldSpec& hold);

}  // namespace pipelora
