// What kinds of adapters beside LoRA on linears take. Every sum has one order: over rows, or over ranks, from the first on.
#include <algorithm>
#include <cmath>

#include "ops/cpu/cpu_ops.h"

namespace pipelora {

namespace {

constexpr std::int64_t kColumns = 256;
constexpr std::int64_t kRows = 32;
constexpr std::int64_t kOuterRows = 256;

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

const char* row_of(const Tensor& t, std::int64_t row) {
  return static_cast<const char*>(t.data) + static_cast<std::size_t>(row * t.stride) * dtype_bytes(t.dtype);
}

}  // namespace

const float* CpuOps::as_floats(const Tensor& t, std::int64_t row, float* storage) const {
  if (t.dtype == DType::f32) return reinterpret_cast<const float*>(row_of(t, row));
  kernels_.convert_row(row_of(t, row), t.dtype, storage, DType::f32, 1.0f, t.cols);
  return storage;
}

void CpuOps::sum_rows(const RowSums& call) {
  const std::vector<std::int32_t>&order = call.order->host, &starts = call.starts->host, &ids = call.ids->host;
  pool_.run(static_cast<std::int64_t>(ids.size()), [&](std::int64_t task, int thread) {
    const auto at = static_cast<std::size_t>(task);
    float* storage = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(call.from.cols));
    auto* to = const_cast<float*>(reinterpret_cast<const float*>(row_of(call.to, ids[at])));
    for (std::int32_t i = starts[at]; i < starts[at + 1]; ++i)
      kernels_.add_scaled(as_floats(call.from, order[static_cast<std::size_t>(i)], storage), call.factor, to, call.from.cols);
  });
}

void CpuOps::low_rank_forward(const LowRank& call) {
  pool_.run(call.y.rows, [&](std::int64_t t, int thread) {
    float* sum = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(call.y.cols));
    char* y = const_cast<char*>(row_of(call.y, t));
    kernels_.convert_row(y, call.y.dtype, sum, DType::f32, 1.0f, call.y.cols);
    const auto* inner = reinterpret_cast<const float*>(row_of(call.inner, t));
    for (std::int64_t r = 0; r < call.bt.rows; ++r)
      kernels_.add_scaled(reinterpret_cast<const float*>(row_of(call.bt, r)), call.scale * inner[r], sum, call.y.cols);
    kernels_.convert_row(sum, DType::f32, y, call.y.dtype, 1.0f, call.y.cols);
  });
}

void CpuOps::low_rank_backward(const LowRankBackward& call) {
  pool_.run(pieces(call.dy.rows, kRows), [&](std::int64_t task, int) {
    const std::int64_t begin = task * kRows, n = std::min(kRows, call.dy.rows - begin);
    kernels_.skinny_dot(call.dy.row_range(begin, n), call.bt, call.scale, nullptr, 0, call.inner_grad.row_range(begin, n));
  });
  pool_.run(pieces(call.dy.cols, kColumns), [&](std::int64_t task, int) {
    const std::int64_t first = task * kColumns, count = std::min(kColumns, call.dy.cols - first);
    for (std::int64_t begin = 0; begin < call.dy.rows; begin += kOuterRows) {
      const std::int64_t n = std::min(kOuterRows, call.dy.rows - begin);
      kernels_.skinny_outer(call.inner.row_range(begin, n), call.dy.row_range(begin, n).columns(first, count), call.scale, nullptr, 0,
                            call.grad_bt.columns(first, count));
    }
  });
}

// A task takes some outputs and all tokens, in order.
void CpuOps::weight_grad(const WeightGrad& call) {
  pool_.run(pieces(call.grad.rows, kRows), [&](std::int64_t task, int thread) {
    const std::int64_t first = task * kRows, count = std::min(kRows, call.grad.rows - first);
    float* storage = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(kOuterRows * count));
    for (std::int64_t begin = 0; begin < call.x.rows; begin += kOuterRows) {
      const std::int64_t n = std::min(kOuterRows, call.x.rows - begin);
      const Tensor gradient(storage, DType::f32, n, count);
      for (std::int64_t t = 0; t < n; ++t)
        kernels_.convert_row(row_of(call.dy.columns(first, count), begin + t), call.dy.dtype, storage + t * count, DType::f32, 1.0f, count);
      kernels_.skinny_outer(gradient, call.x.row_range(begin, n), call.factor, nullptr, 0, call.grad.row_range(first, count));
    }
  });
}

void CpuOps::column_sums(const Tensor& dy, float factor, const Tensor& grad) {
  pool_.run(pieces(dy.cols, kColumns), [&](std::int64_t task, int thread) {
    const std::int64_t first = task * kColumns, count = std::min(kColumns, dy.cols - first);
    float* storage = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(count));
    for (std::int64_t t = 0; t < dy.rows; ++t) kernels_.add_scaled(as_floats(dy.columns(first, count), t, storage), factor, grad.as<float>() + first, count);
  });
}

void CpuOps::add_column_squares(const Tensor& y, const Tensor& squares) {
  pool_.run(pieces(y.cols, kColumns), [&](std::int64_t task, int) {
    const std::int64_t first = task * kColumns, count = std::min(kColumns, y.cols - first);
    float* to = squares.as<float>() + first;
    for (std::int64_t t = 0; t < y.rows; ++t) {
      const auto* row = reinterpret_cast<const float*>(row_of(y, t)) + first;
      for (std::int64_t c = 0; c < count; ++c) to[c] += row[c] * row[c];
    }
  });
}

void CpuOps::dora_norms(const DoraNorms& call) {
  const std::int64_t r = call.bt.rows, n = call.bt.cols;
  std::vector<double> gram(static_cast<std::size_t>(r * r));
  pool_.run(r, [&](std::int64_t i, int) {
    if (call.gram) {
      const auto* known = reinterpret_cast<const float*>(row_of(call.gram, i));
      std::copy(known, known + r, gram.begin() + i * r);
      return;
    }
    const auto* a = reinterpret_cast<const float*>(row_of(call.a, i));
    for (std::int64_t j = 0; j < r; ++j) {
      const auto* b = reinterpret_cast<const float*>(row_of(call.a, j));
      double sum = 0;
      for (std::int64_t k = 0; k < call.a.cols; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
      gram[static_cast<std::size_t>(i * r + j)] = sum;
    }
  });
  const auto at = [](const Tensor& t, std::int64_t row, std::int64_t column) {
    return static_cast<double>(reinterpret_cast<const float*>(row_of(t, row))[column]);
  };
  pool_.run(pieces(n, kRows), [&](std::int64_t task, int) {
    for (std::int64_t c = task * kRows; c < std::min(n, (task + 1) * kRows); ++c) {
      double cross = 0, own = 0;
      for (std::int64_t i = 0; i < r; ++i) {
        cross += at(call.product, i, c) * at(call.bt, i, c);
        double row = 0;
        for (std::int64_t j = 0; j < r; ++j) row += gram[static_cast<std::size_t>(i * r + j)] * at(call.bt, j, c);
        own += at(call.bt, i, c) * row;
      }
      const double scale = static_cast<double>(call.scale);
      const double square = at(call.squares, 0, c) + 2 * scale * cross + scale * scale * own;
      const auto norm = static_cast<float>(std::sqrt(std::max(0.0, square)));
      call.norms.as<float>()[c] = norm;
      call.gains.as<float>()[c] = call.magnitude.as<float>()[c] / norm;
    }
  });
}

void CpuOps::column_gains(const ColumnGains& call) {
  const float *gains = call.gains.as<float>(), *offsets = call.offsets.as<float>();
  const std::int64_t n = call.z.cols;
  const float less = call.change ? 1.0f : 0.0f, back = call.change ? 0.0f : 1.0f;
  pool_.run(call.z.rows, [&](std::int64_t t, int thread) {
    Scratch& scratch = threads_[static_cast<std::size_t>(thread)]->scratch;
    const float* z = as_floats(call.z, t, scratch.floats(1, static_cast<std::size_t>(n)));
    float* y = scratch.floats(2, static_cast<std::size_t>(n));
    for (std::int64_t c = 0; c < n; ++c) y[c] = (gains[c] - less) * (z[c] - offsets[c]) + back * offsets[c];
    if (call.residual) {
      const float* residual = as_floats(call.residual, t, scratch.floats(1, static_cast<std::size_t>(n)));
      for (std::int64_t c = 0; c < n; ++c) y[c] += residual[c];
    }
    kernels_.convert_row(y, DType::f32, const_cast<char*>(row_of(call.y, t)), call.y.dtype, 1.0f, n);
  });
}

void CpuOps::column_gains_backward(const ColumnGainsBackward& call) {
  const std::int64_t n = call.z.cols;
  const float less = call.change ? 1.0f : 0.0f;
  pool_.run(pieces(n, kColumns), [&](std::int64_t task, int thread) {
    const std::int64_t first = task * kColumns, count = std::min(kColumns, n - first);
    Scratch& scratch = threads_[static_cast<std::size_t>(thread)]->scratch;
    const float *gains = call.gains.as<float>() + first, *offsets = call.offsets.as<float>() + first, *norms = call.norms.as<float>() + first;
    // Slot 3 keeps the panel of a quantised weight from product to product.
    float *sums = scratch.floats(0, static_cast<std::size_t>(2 * count)), *out = sums + count;
    std::fill(sums, sums + count, 0.0f);
    for (std::int64_t t = 0; t < call.dy.rows; ++t) {
      const float* dy = as_floats(call.dy.columns(first, count), t, scratch.floats(1, static_cast<std::size_t>(count)));
      const float* z = as_floats(call.z.columns(first, count), t, scratch.floats(2, static_cast<std::size_t>(count)));
      for (std::int64_t c = 0; c < count; ++c) {
        sums[c] += dy[c] * (z[c] - offsets[c]);
        out[c] = (gains[c] - less) * dy[c];
      }
      kernels_.convert_row(out, DType::f32, const_cast<char*>(row_of(call.dz.columns(first, count), t)), call.dz.dtype, 1.0f, count);
    }
    for (std::int64_t c = 0; c < count; ++c) call.grad.as<float>()[first + c] += call.factor * sums[c] / norms[c];
  });
}

}  // namespace pipelora
