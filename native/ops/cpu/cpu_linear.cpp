// Products with frozen weights, and LoRA around them.
//
// Every product is cut into a grid that depends on its shape alone; a tile is one single-threaded product, then bias,
// residual and LoRA's term are added while it is still in the cache.
#include <algorithm>

#include "ops/cpu/cpu_ops.h"
#include "pipelora/core/error.h"

namespace pipelora {

namespace {

constexpr std::int64_t kSkinnyRows = 32;
constexpr std::int64_t kSkinnyCols = 256;
constexpr std::int64_t kOuterRows = 256;

std::int64_t tile_rows(std::int64_t tokens) { return tokens >= 1024 ? 512 : 256; }
std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }
std::int64_t mask_stride(std::int64_t cols) { return (cols + 15) / 16 * 2; }

float kept_factor(const LoraView& pair, const LoraSet& lora) {
  return lora.dropout != nullptr && pair.dropout > 0 ? 1.0f / (1.0f - pair.dropout) : 1.0f;
}

struct Tile {
  std::int64_t row, rows, col, cols;
};

class Grid {
 public:
  Grid(std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols), height_(tile_rows(rows)) {}
  std::int64_t count() const { return pieces(rows_, height_) * pieces(cols_, kPanelCols); }
  /// Tiles that share weights follow each other.
  Tile tile(std::int64_t i) const {
    const std::int64_t down = pieces(rows_, height_);
    const std::int64_t row = i % down * height_, col = i / down * kPanelCols;
    return {row, std::min(height_, rows_ - row), col, std::min(kPanelCols, cols_ - col)};
  }

 private:
  std::int64_t rows_, cols_, height_;
};

}  // namespace

namespace {

/// oneDNN's products reach the same rate from a plain matrix in both directions as from packed copies at these tile sizes,
/// so one copy serves forward and input gradient.
class PlainWeight final : public HeldWeight {
 public:
  PlainWeight(CpuOps& ops, std::int64_t out, std::int64_t in, const HoldSpec& hold)
      : ops_(ops),
        dtype_(hold.dtype),
        memory_(ops.allocate("a linear weight", static_cast<std::size_t>(out * in) * dtype_bytes(ops.compute_dtype()), false)),
        matrix_(memory_->data(), ops.compute_dtype(), out, in) {}

  void load(std::int64_t first, const HostTensor& rows) override {
    ops_.load_matrix(rows, dtype_, matrix_.row_range(first, rows.rows));
  }
  std::size_t bytes() const override { return memory_->bytes(); }
  void forward(const HeldInput& input, std::int64_t row, std::int64_t col, const float*, const Tensor& product,
               CpuThread& thread) const override {
    thread.gemm.multiply(input.x.row_range(row, product.rows), matrix_.row_range(col, product.cols), true, product);
  }
  void input_grad(const Tensor& dy, std::int64_t row, std::int64_t col, const Tensor& product, CpuThread& thread) const override {
    thread.gemm.multiply(dy, matrix_.row_range(row, dy.cols).columns(col, product.cols), false, product);
  }

 private:
  CpuOps& ops_;
  DType dtype_;
  std::unique_ptr<DeviceMemory> memory_;
  Tensor matrix_;  // [out, in]
};

}  // namespace

void HeldWeight::load(std::int64_t, quant::State4&&) { throw Error(kEngineFailed, "a weight that is not held in 4 bits got 4-bit rows"); }
void HeldWeight::load(std::int64_t, quant::State8&&) { throw Error(kEngineFailed, "a weight that is not held in 8 bits got 8-bit rows"); }

std::unique_ptr<HeldWeight> hold_plain(CpuOps& ops, std::int64_t out, std::int64_t in, const HoldSpec& hold) {
  return std::make_unique<PlainWeight>(ops, out, in, hold);
}

CpuLinearWeight::CpuLinearWeight(CpuOps& ops, std::int64_t in_, std::vector<std::int64_t> rows, bool has_bias) : ops_(ops) {
  in = in_;
  part_rows = std::move(rows);
  for (const std::int64_t n : part_rows) out += n;
  if (has_bias) {
    bias_memory_ = ops.allocate("a bias", static_cast<std::size_t>(out) * sizeof(float), true);
    bias = static_cast<const float*>(bias_memory_->data());
  }
}

std::int64_t CpuLinearWeight::first_row(std::size_t part) const {
  std::int64_t first = 0;
  for (std::size_t i = 0; i < part; ++i) first += part_rows[i];
  return first;
}

CpuLinearWeight::Rows CpuLinearWeight::rows_of(const WeightParts& parts) const {
  if (parts.count == 0) return {0, out};
  const std::int64_t first = first_row(parts.first);
  return {first, first_row(parts.first + parts.count) - first};
}

HeldWeight& CpuLinearWeight::held_as(const HoldSpec& hold) {
  if (held_ && hold != hold_) throw Error(kTensorMismatch, "the parts of one weight must be held the same way");
  if (hold.fp8) throw Error(kTensorMismatch, "products of e4m3 numbers: expected a GPU, got a CPU");
  if (!held_) {
    const CpuContext context{ops_.compute_, ops_.pool_, ops_.arena_};
    switch (hold.quantisation) {
      case Quantisation::none: held_ = hold_plain(ops_, out, in, hold); break;
      case Quantisation::nf4:
      case Quantisation::fp4:
      case Quantisation::mxfp4: held_ = hold_4bit(context, ops_, out, in, hold); break;
      case Quantisation::int8: held_ = hold_8bit(context, ops_, out, in, hold); break;
    }
    hold_ = hold;
  }
  return *held_;
}

void CpuLinearWeight::load(std::size_t part, const HostTensor& rows, const HoldSpec& hold) {
  held_as(hold).load(first_row(part), rows);
}
void CpuLinearWeight::load(std::size_t part, quant::State4&& rows, const HoldSpec& hold) {
  held_as(hold).load(first_row(part), std::move(rows));
}
void CpuLinearWeight::load(std::size_t part, quant::State8&& rows, const HoldSpec& hold) {
  held_as(hold).load(first_row(part), std::move(rows));
}

void CpuLinearWeight::load_bias(std::size_t part, const HostTensor& values) {
  ops_.load_matrix(values, DType::f32, Tensor(bias_memory_->data(), DType::f32, 1, out).columns(first_row(part), part_rows[part]));
}

void CpuLinearWeight::refresh(std::int64_t first, const Tensor& values) {
  held_->load(first, HostTensor{values.data, values.dtype, values.rows, values.cols});
}

void CpuLinearWeight::refresh_bias(std::int64_t first, const Tensor& values) { ops_.copy(values, bias_values().columns(first, values.cols)); }

void CpuLinearWeight::keep_expanded(bool keep) {
  if (!held_ || hold_.quantisation == Quantisation::none) return;
  held_->keep_expanded(keep);
  hold_.keep_expanded = keep;
}

Tensor CpuLinearWeight::bias_values() const { return bias_memory_ ? Tensor(bias_memory_->data(), DType::f32, 1, out) : Tensor(); }

std::size_t CpuLinearWeight::bytes() const { return (held_ ? held_->bytes() : 0) + (bias_memory_ ? bias_memory_->bytes() : 0); }

std::unique_ptr<LinearWeight> CpuOps::create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) {
  return std::make_unique<CpuLinearWeight>(*this, in, std::move(part_rows), bias);
}

const std::uint8_t* CpuOps::mask(const LoraView& pair, const LoraSet& lora, const Sequences* sequences, std::int64_t in,
                                 std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t count,
                                 std::uint8_t* storage) {
  if (lora.dropout == nullptr || pair.dropout <= 0) return nullptr;
  const MaskRows rows{*lora.dropout, pair.module_id, dropout_threshold(pair.dropout), in, sequences->row.host.data(),
                      sequences->position.host.data()};
  kernels_.dropout_mask(rows, begin, end, first, count, storage, mask_stride(count));
  return storage;
}

void CpuOps::linear_forward(const LinearForward& call) {
  const auto& weight = static_cast<const CpuLinearWeight&>(*call.weight);
  const std::int64_t tokens = call.x.rows, in = weight.in;
  const auto& pairs = call.lora.pairs;

  if (!pairs.empty() && !call.inner_known) {
    pool_.run(pieces(tokens, kSkinnyRows), [&](std::int64_t task, int thread) {
      const std::int64_t begin = task * kSkinnyRows, n = std::min(kSkinnyRows, tokens - begin);
      auto& masks = threads_[static_cast<std::size_t>(thread)]->masks;
      masks.resize(static_cast<std::size_t>(kSkinnyRows * mask_stride(in)));
      for (const LoraView& pair : pairs) {
        const std::uint8_t* bits = mask(pair, call.lora, call.sequences, in, begin, begin + n, 0, in, masks.data());
        kernels_.skinny_dot(call.x.row_range(begin, n), pair.a, kept_factor(pair, call.lora), bits, mask_stride(in),
                            call.inner.row_range(begin, n).columns(pair.first_inner, pair.a.rows));
      }
    });
  }
  if (!call.y) return;

  const HeldWeight& held = weight.held();
  const HeldInput input = call.bare ? HeldInput() : held.prepare(call.x);
  const CpuLinearWeight::Rows rows = weight.rows_of(call.parts);
  const float* bias = call.bare || held.adds_bias() || weight.bias == nullptr ? nullptr : weight.bias + rows.first;
  const Grid grid(tokens, rows.count);
  pool_.run(grid.count(), [&](std::int64_t task, int thread) {
    const Tile tile = grid.tile(task);
    CpuThread& own = *threads_[static_cast<std::size_t>(thread)];
    const Tensor y = call.y.row_range(tile.row, tile.rows).columns(tile.col, tile.cols);
    // oneDNN gets a dense output. For one with gaps between rows it takes a kernel by the number of rows, so a sequence's bits would depend on its neighbours.
    const Tensor product = y.dtype == DType::f32 && y.stride == y.cols
                               ? y
                               : Tensor(own.scratch.floats(2, static_cast<std::size_t>(tile.rows * tile.cols)), DType::f32,
                                        tile.rows, tile.cols);
    if (call.bare)
      held.forward_bare(call.x, tile.row, rows.first + tile.col, product, own);
    else
      held.forward(input, tile.row, rows.first + tile.col, weight.bias, product, own);

    own.terms.clear();
    for (const LoraView& pair : pairs) {
      const std::int64_t begin = std::max(pair.first_column, tile.col);
      const std::int64_t end = std::min(pair.first_column + pair.bt.cols, tile.col + tile.cols);
      if (begin >= end) continue;
      own.terms.push_back({call.inner.row_range(tile.row, tile.rows).columns(pair.first_inner, pair.a.rows),
                           pair.bt.columns(begin - pair.first_column, end - begin), begin - tile.col, pair.scale, nullptr, 0});
    }
    FinishTile finish{product, y, Tensor(), bias == nullptr ? nullptr : bias + tile.col, own.terms};
    if (call.residual) finish.residual = call.residual.row_range(tile.row, tile.rows).columns(tile.col, tile.cols);
    kernels_.finish_tile(finish);
  });
}

void CpuOps::linear_input_grad(const LinearInputGrad& call) {
  const auto& weight = static_cast<const CpuLinearWeight&>(*call.weight);
  const std::int64_t tokens = call.dy.rows, in = weight.in;
  const auto& pairs = call.lora.pairs;

  if (!pairs.empty()) {
    pool_.run(pieces(tokens, kSkinnyRows), [&](std::int64_t task, int) {
      const std::int64_t begin = task * kSkinnyRows, n = std::min(kSkinnyRows, tokens - begin);
      for (const LoraView& pair : pairs)
        kernels_.skinny_dot(call.dy.row_range(begin, n).columns(pair.first_column, pair.bt.cols), pair.bt, pair.scale,
                            nullptr, 0, call.inner_grad.row_range(begin, n).columns(pair.first_inner, pair.a.rows));
    });
    lora_b_grad(call);
  }
  if (!call.dx) return;

  const std::int64_t first_row = weight.rows_of(call.parts).first;
  const Grid grid(tokens, in);
  pool_.run(grid.count(), [&](std::int64_t task, int thread) {
    const Tile tile = grid.tile(task);
    CpuThread& own = *threads_[static_cast<std::size_t>(thread)];
    const Tensor dx = call.dx.row_range(tile.row, tile.rows).columns(tile.col, tile.cols);
    const Tensor product = dx.dtype == DType::f32
                               ? dx
                               : Tensor(own.scratch.floats(2, static_cast<std::size_t>(tile.rows * tile.cols)), DType::f32,
                                        tile.rows, tile.cols);
    weight.held().input_grad(call.dy.row_range(tile.row, tile.rows), first_row, tile.col, product, own);

    own.terms.clear();
    const std::int64_t stride = mask_stride(tile.cols);
    own.masks.resize(std::max<std::size_t>(own.masks.size(), pairs.size() * static_cast<std::size_t>(tile.rows * stride)));
    std::uint8_t* storage = own.masks.data();
    for (const LoraView& pair : pairs) {
      const std::uint8_t* bits = mask(pair, call.lora, call.sequences, in, tile.row, tile.row + tile.rows, tile.col,
                                      tile.cols, storage);
      storage += tile.rows * stride;
      own.terms.push_back({call.inner_grad.row_range(tile.row, tile.rows).columns(pair.first_inner, pair.a.rows),
                           pair.a.columns(tile.col, tile.cols), 0, kept_factor(pair, call.lora), bits, stride});
    }
    kernels_.finish_tile({product, dx, Tensor(), nullptr, own.terms});
  });
}

// A task takes a slab of columns and all tokens, in order.
void CpuOps::lora_b_grad(const LinearInputGrad& call) {
  struct Slab {
    const LoraView* pair;
    std::int64_t first, count;
  };
  std::vector<Slab> slabs;
  for (const LoraView& pair : call.lora.pairs)
    for (std::int64_t c = 0; c < pair.bt.cols; c += kSkinnyCols) slabs.push_back({&pair, c, std::min(kSkinnyCols, pair.bt.cols - c)});
  pool_.run(static_cast<std::int64_t>(slabs.size()), [&](std::int64_t task, int) {
    const auto [pair, first, count] = slabs[static_cast<std::size_t>(task)];
    for (std::int64_t begin = 0; begin < call.dy.rows; begin += kOuterRows) {
      const std::int64_t n = std::min(kOuterRows, call.dy.rows - begin);
      kernels_.skinny_outer(call.inner.row_range(begin, n).columns(pair->first_inner, pair->a.rows),
                            call.dy.row_range(begin, n).columns(pair->first_column + first, count), pair->scale, nullptr, 0,
                            pair->grad_bt.columns(first, count));
    }
  });
}

// Columns of x serve the A of every pair while they are in the cache.
void CpuOps::lora_a_grad(const LoraAGrad& call) {
  const std::int64_t tokens = call.x.rows, in = call.x.cols;
  pool_.run(pieces(in, kSkinnyCols), [&](std::int64_t task, int thread) {
    const std::int64_t first = task * kSkinnyCols, count = std::min(kSkinnyCols, in - first);
    auto& masks = threads_[static_cast<std::size_t>(thread)]->masks;
    const std::int64_t stride = mask_stride(count);
    masks.resize(std::max<std::size_t>(masks.size(), static_cast<std::size_t>(kOuterRows * stride)));
    for (std::int64_t begin = 0; begin < tokens; begin += kOuterRows) {
      const std::int64_t n = std::min(kOuterRows, tokens - begin);
      for (const LoraView& pair : call.lora.pairs) {
        const std::uint8_t* bits = mask(pair, call.lora, call.sequences, in, begin, begin + n, first, count, masks.data());
        kernels_.skinny_outer(call.inner_grad.row_range(begin, n).columns(pair.first_inner, pair.a.rows),
                              call.x.row_range(begin, n).columns(first, count), kept_factor(pair, call.lora), bits, stride,
                              pair.grad_a.columns(first, count));
      }
    }
  });
}

void CpuOps::lora_drop(const LoraDrop& call) { drop_rows(call, false); }
void CpuOps::lora_drop_backward(const LoraDrop& call) { drop_rows(call, true); }

void CpuOps::drop_rows(const LoraDrop& call, bool adds) {
  const std::int64_t tokens = call.x.rows, in = call.x.cols, stride = mask_stride(in);
  const LoraView& pair = call.lora.pairs.front();
  const float factor = kept_factor(pair, call.lora);
  pool_.run(pieces(tokens, kSkinnyRows), [&](std::int64_t task, int thread) {
    CpuThread& own = *threads_[static_cast<std::size_t>(thread)];
    const std::int64_t begin = task * kSkinnyRows, n = std::min(kSkinnyRows, tokens - begin);
    own.masks.resize(std::max<std::size_t>(own.masks.size(), static_cast<std::size_t>(kSkinnyRows * stride)));
    const std::uint8_t* bits = mask(pair, call.lora, call.sequences, in, begin, begin + n, 0, in, own.masks.data());
    float* values = own.scratch.floats(0, static_cast<std::size_t>(in));
    for (std::int64_t t = 0; t < n; ++t) {
      const auto kept = [&](std::int64_t c) { return bits == nullptr || (bits[t * stride + c / 8] >> (c % 8) & 1) != 0; };
      const float* x = as_floats(call.x.row_range(begin + t, 1), 0, own.scratch.floats(1, static_cast<std::size_t>(in)));
      const Tensor to = call.to.row_range(begin + t, 1);
      const float* before = adds ? as_floats(to, 0, own.scratch.floats(2, static_cast<std::size_t>(in))) : nullptr;
      for (std::int64_t c = 0; c < in; ++c) {
        const float value = kept(c) ? x[c] * factor : 0.0f;
        values[c] = adds ? before[c] + value : value;
      }
      kernels_.convert_row(values, DType::f32, to.data, to.dtype, 1.0f, in);
    }
  });
}

}  // namespace pipelora
