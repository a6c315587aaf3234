#include "ops/cpu/quantised_weight.h"

#include <algorithm>
#include <atomic>

#include "pipelora/core/error.h"

namespace pipelora {

namespace {
constexpr std::int64_t kRowsATask = 64;
}

quant::Float float_format(DType dtype) {
  switch (dtype) {
    case DType::f32: return quant::Float::f32;
    case DType::bf16: return quant::Float::bf16;
    case DType::f16: return quant::Float::f16;
    default: throw Error(kTensorMismatch, std::string("expected float32, bfloat16 or float16, got ") + dtype_name(dtype));
  }
}

void not_finite(std::int64_t element, std::int64_t in, DType dtype) {
  throw Error(kQuantizationInvalid, "row " + std::to_string(element / in) + ", column " + std::to_string(element % in) +
                                        " is NaN or infinite in " + dtype_name(dtype) + ": it can't be quantised");
}

QuantisedWeight::QuantisedWeight(const CpuContext& context, Ops& ops, std::int64_t out, std::int64_t in, bool keep_expanded)
    : context_(context), out_(out), in_(in), ops_(ops) {
  if (keep_expanded) make_room();
}

void QuantisedWeight::make_room() {
  kept_ = ops_.allocate("an expanded weight", static_cast<std::size_t>(out_ * in_) * dtype_bytes(context_.compute), false);
}

void QuantisedWeight::keep_expanded(bool keep) {
  if (keep == (kept_ != nullptr)) return;
  kept_.reset();
  if (!keep) return;
  make_room();
  changed(0, out_);
}

void QuantisedWeight::changed(std::int64_t first, std::int64_t rows) {
  static std::atomic<std::uint64_t> versions{0};
  version_ = ++versions;
  if (!kept_) return;
  const Tensor matrix(kept_->data(), context_.compute, out_, in_);
  context_.pool.run((rows + kRowsATask - 1) / kRowsATask, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kRowsATask;
    expand(first + begin, 0, matrix.row_range(first + begin, std::min(kRowsATask, rows - begin)));
  });
}

Tensor QuantisedWeight::panel(std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols,
                              CpuThread& thread) const {
  if (kept_) return Tensor(kept_->data(), context_.compute, out_, in_).row_range(row, rows).columns(col, cols);
  const std::size_t bytes = static_cast<std::size_t>(rows * cols) * dtype_bytes(context_.compute);
  const Tensor target(thread.scratch.floats(3, (bytes + sizeof(float) - 1) / sizeof(float)), context_.compute, rows, cols);
  const CpuThread::Panel wanted{version_, row, col, rows, cols};
  if (thread.panel != wanted) {
    expand(row, col, target);
    thread.panel = wanted;
  }
  return target;
}

void QuantisedWeight::multiply(const Tensor& x, std::int64_t col, const Tensor& product, CpuThread& thread) const {
  for (std::int64_t depth = 0; depth < in_; depth += kPanelDepth) {
    const std::int64_t n = std::min(kPanelDepth, in_ - depth);
    thread.gemm.multiply(x.columns(depth, n), panel(col, product.cols, depth, n, thread), true, product, depth > 0);
  }
}

void QuantisedWeight::input_grad(const Tensor& dy, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const {
  for (std::int64_t depth = 0; depth < dy.cols; depth += kPanelDepth) {
    const std::int64_t n = std::min(kPanelDepth, dy.cols - depth);
    thread.gemm.multiply(dy.columns(depth, n), panel(row + depth, n, col, product.cols, thread), false, product, depth > 0);
  }
}

}  // namespace pipelora
