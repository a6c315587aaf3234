#include "ops/cuda/base/linear_weight.h"

#include <algorithm>
#include <bit>

#include "ops/cuda/device/check.h"
#include "ops/cuda/base/int8.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "ops/cuda/lora/lora.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

FewScratch LinearContext::few_scratch() {
  const std::size_t bytes = static_cast<std::size_t>(few_scratch_floats()) * sizeof(float);
  if (!few_memory_) {
    few_memory_ = device.allocate("sums of a product of few tokens", bytes + kMostFewTiles * sizeof(std::uint32_t));
    check(cudaMemsetAsync(static_cast<char*>(few_memory_->data()) + bytes, 0, kMostFewTiles * sizeof(std::uint32_t), device.stream()), "counters of a product");
  }
  auto* sums = static_cast<float*>(few_memory_->data());
  return {sums, reinterpret_cast<std::uint32_t*>(reinterpret_cast<char*>(sums) + bytes)};
}

CudaLinear::CudaLinear(LinearContext& context, std::int64_t in_, std::vector<std::int64_t> rows, bool has_bias)
    : context_(context) {
  in = in_;
  part_rows = std::move(rows);
  for (const std::int64_t n : part_rows) {
    parts_.emplace_back();
    parts_.back().first = out;
    parts_.back().rows = n;
    out += n;
  }
  if (has_bias) {
    bias_ = context_.device.allocate("a bias", static_cast<std::size_t>(out) * dtype_bytes(context_.compute));
    check(cudaMemsetAsync(bias_->data(), 0, bias_->bytes(), context_.device.stream()), "a bias");
  }
}

CudaLinear::~CudaLinear() { context_.pool.forget(this); }

void CudaLinear::expect_lora(std::int64_t inner_cols) {
  const std::int64_t wanted = std::max(tail_, tail_columns(inner_cols));
  // Rows lie as far apart as there was room for when the weight was loaded.
  if (started_ && wanted > tail_) throw Error(kEngineFailed, "a loaded weight has room for " + std::to_string(tail_) + " columns of LoRA's, not for " + std::to_string(wanted));
  tail_ = wanted;
}

void CudaLinear::expect_matrices(std::int64_t count) {
  if (count == matrices_) return;
  const auto parts = static_cast<std::int64_t>(parts_.size());
  if (started_ || count < 1 || parts % count != 0)
    throw Error(kEngineFailed, "a weight of " + std::to_string(parts) + " parts can't be " + std::to_string(count) + " matrices" + (started_ ? " once it is loaded" : ""));
  matrices_ = count;
}

std::size_t CudaLinear::bytes() const {
  std::size_t total = 0;
  for (const auto* memory : {&memory_, &scales_, &bias_, &kept_, &kept_back_, &fp8_scales_, &equal_parts_})
    if (*memory) total += (*memory)->bytes();
  for (const Part& part : parts_)
    if (part.scale_memory) total += part.scale_memory->bytes();
  return total;
}

/// Memory for the weight as the first part's specification says; the others must say the same.
void CudaLinear::start(const HoldSpec& hold) {
  if (started_) {
    if (!(hold == spec_)) throw Error(kQuantizationInvalid, "the parts of one weight must be held the same way");
    return;
  }
  spec_ = hold;
  started_ = true;
  Device& device = context_.device;
  switch (hold.quantisation) {
    case Quantisation::none:
      memory_ = device.allocate("a weight", static_cast<std::size_t>(rows_padded() * stride()) * dtype_bytes(hold.dtype));
      check(cudaMemsetAsync(memory_->data(), 0, memory_->bytes(), device.stream()), "a weight");
      break;
    case Quantisation::nf4:
    case Quantisation::fp4:
    case Quantisation::mxfp4: {
      if (hold.block_size < 32 || hold.block_size > 4096 || !std::has_single_bit(static_cast<std::uint64_t>(hold.block_size)))
        throw Error(kQuantizationInvalid, "4-bit block size: expected a power of two from 32 to 4096, got " + std::to_string(hold.block_size));
      std::int64_t bytes = 0;
      for (const Part& part : parts_) bytes += (part.rows * in / 2 + 1 + 15) / 16 * 16;
      memory_ = device.allocate("a 4-bit weight", static_cast<std::size_t>(bytes));
      break;
    }
    case Quantisation::int8:
      memory_ = device.allocate("an 8-bit weight", static_cast<std::size_t>(int8_rows(out) * codes().stride));
      check(cudaMemsetAsync(memory_->data(), 0, memory_->bytes(), device.stream()), "an 8-bit weight");
      scales_ = device.allocate("scales of an 8-bit weight", static_cast<std::size_t>(out) * sizeof(float));
      break;
  }
  if (is_fp8()) {
    fp8_scales_ = device.allocate("scales of a weight in e4m3", static_cast<std::size_t>(out + matrices_ * in) * sizeof(float));
    check(cudaMemsetAsync(fp8_scales_->data(), 0, fp8_scales_->bytes(), device.stream()), "scales of a weight in e4m3");
  }
  if (held_as_computed()) return;
  // In e4m3 both ways are no more bytes than 16 bits, which then need not be held.
  if (hold.keep_expanded || (is_fp8() && hold.quantisation == Quantisation::none)) {
    allocate_kept();
  } else {
    slot(true);
    slot(false);
  }
}

void CudaLinear::allocate_kept() {
  Device& device = context_.device;
  kept_ = device.allocate("an expanded weight", expanded_bytes(true));
  check(cudaMemsetAsync(kept_->data(), 0, kept_->bytes(), device.stream()), "an expanded weight");
  if (is_fp8()) kept_back_ = device.allocate("a weight's transpose in e4m3", expanded_bytes(false));
}

void CudaLinear::expand_kept() {
  cudaStream_t stream = context_.device.stream();
  expand(kept_->data(), true, stream);
  if (kept_back_) expand(kept_back_->data(), false, stream);
}

void CudaLinear::keep_expanded(bool keep) {
  // Unquantised weights hold one form alone.
  if (!started_ || spec_.quantisation == Quantisation::none || keep == spec_.keep_expanded) return;
  spec_.keep_expanded = keep;
  context_.pool.forget(this);
  if (keep) {
    allocate_kept();
    expand_kept();
    return;
  }
  // Products under way read them.
  context_.device.finish();
  kept_.reset();
  kept_back_.reset();
  slot(true);
  slot(false);
}

bool CudaLinear::is_fp8() const { return spec_.fp8 && suits_e4m3(context_.compute, in, part_rows); }

const float* CudaLinear::fp8_scales(bool forward) const { return static_cast<const float*>(fp8_scales_->data()) + (forward ? 0 : out); }

Tensor CudaLinear::matrix_in(void* data, bool forward) const {
  if (!is_fp8()) return Tensor(data, context_.compute, out, in, stride());
  return forward ? Tensor(data, DType::f8, out, in, in) : Tensor(data, DType::f8, matrices_ * in, matrix_rows(), matrix_rows());
}

std::size_t CudaLinear::expanded_bytes(bool forward) const {
  const Tensor matrix = matrix_in(nullptr, forward);
  return static_cast<std::size_t>((is_fp8() ? matrix.rows : rows_padded()) * matrix.stride) * dtype_bytes(matrix.dtype);
}

ExpandedPool::Slot& CudaLinear::slot(bool forward) const {
  const Tensor matrix = matrix_in(nullptr, forward);
  return context_.pool.slot(is_fp8() ? matrix.rows : rows_padded(), matrix.stride, matrix.dtype);
}

HeldRows CudaLinear::held_rows(const Part& part) const {
  HeldRows rows{.first = part.first, .rows = part.rows, .in = in, .matrix_rows = matrix_rows()};
  switch (spec_.quantisation) {
    case Quantisation::none: rows.plain = Tensor(memory_->data(), spec_.dtype, out, in, stride()).row_range(part.first, part.rows); break;
    case Quantisation::nf4:
    case Quantisation::fp4:
    case Quantisation::mxfp4: rows.four_bit = part.packed; break;
    case Quantisation::int8:
      rows.codes = codes().row_range(part.first, part.rows);
      rows.scales = scales();
      break;
  }
  return rows;
}

template <class Body>
void CudaLinear::each_held(Body&& body) const {
  if (!many_equal_parts_) {
    for (const Part& part : parts_) body(held_rows(part));
    return;
  }
  HeldRows all = held_rows(parts_.front());
  all.count = static_cast<std::int64_t>(parts_.size());
  if (equal_parts_) all.places = static_cast<const Packed4*>(equal_parts_->data());
  body(all);
}

void CudaLinear::all_loaded() {
  cudaStream_t stream = context_.device.stream();
  list_equal_parts();
  if (is_fp8()) {
    auto* scales = static_cast<float*>(fp8_scales_->data());
    check(cudaMemsetAsync(scales, 0, fp8_scales_->bytes(), stream), "scales of a weight in e4m3");
    each_held([&](const HeldRows& rows) { fp8_absmax(rows, context_.compute, context_.tables, scales, scales + out, stream); });
    cuda::fp8_scales(scales, out + matrices_ * in, stream);
  }
  if (!kept_) return;
  expand_kept();
  if (kept_back_ && spec_.quantisation == Quantisation::none) memory_.reset();
}

void CudaLinear::list_equal_parts() {
  constexpr std::size_t kFew = 4;  // are expanded one by one as fast
  equal_parts_.reset();
  const auto equal = [&](const Part& part) { return part.rows == parts_.front().rows; };
  many_equal_parts_ = parts_.size() > kFew && std::all_of(parts_.begin(), parts_.end(), equal);
  if (!many_equal_parts_ || parts_.front().packed.packed == nullptr) return;
  std::vector<Packed4> table;
  for (const Part& part : parts_) table.push_back(part.packed);
  const std::size_t bytes = table.size() * sizeof(Packed4);
  equal_parts_ = context_.device.allocate("where a weight's parts are", bytes);
  context_.device.upload(equal_parts_->data(), bytes, table.data(), bytes, 1);
}

Tensor CudaLinear::codes() const { return Tensor(memory_ ? memory_->data() : nullptr, DType::i8, out, in, (in + 15) / 16 * 16); }

void CudaLinear::expand(void* data, bool forward, cudaStream_t stream) const {
  const Tensor to = matrix_in(data, forward);
  if (is_fp8()) {
    each_held([&](const HeldRows& rows) { fp8_expand(rows, context_.compute, context_.tables, fp8_scales(forward), !forward, to, stream); });
    return;
  }
  switch (spec_.quantisation) {
    case Quantisation::none: copy(Tensor(memory_->data(), spec_.dtype, out, in, stride()), to, stream); break;
    case Quantisation::nf4:
    case Quantisation::fp4:
    case Quantisation::mxfp4:
      if (equal_parts_)
        dequantise4_all(static_cast<const Packed4*>(equal_parts_->data()), static_cast<std::int64_t>(parts_.size()), parts_.front().packed, context_.tables, to, stream);
      else
        for (const Part& part : parts_) dequantise4(part.packed, context_.tables, to.row_range(part.first, part.rows), stream);
      break;
    case Quantisation::int8: dequantise8(codes(), scales(), to, stream); break;
  }
}

Tensor CudaLinear::expanded(bool forward) const {
  if (held_as_computed()) return matrix_in(memory_->data(), forward);
  if (kept_) return matrix_in((is_fp8() && !forward ? kept_back_ : kept_)->data(), forward);
  ExpandedPool::Slot& found = slot(forward);
  context_.pool.use({this, forward}, found);
  return matrix_in(found.memory->data(), forward);
}

void CudaLinear::done(bool forward) const {
  if (takes_turns()) context_.pool.release(slot(forward));
}

CudaLinear::Rows CudaLinear::rows_of(const WeightParts& parts) const {
  if (parts.count == 0) return {0, out};
  const Part &first = parts_[parts.first], &last = parts_[parts.first + parts.count - 1];
  return {first.first, last.first + last.rows - first.first};
}

bool CudaLinear::forward_few(const LinearForward& call) const {
  const bool four_bit = spec_.quantisation == Quantisation::nf4 || spec_.quantisation == Quantisation::fp4;
  if (!four_bit || is_fp8() || call.x.rows > kFewTokens || call.y.dtype != call.x.dtype) return false;
  FewTokens few{call.x, call.residual, call.inner, call.y, {}, {}};
  const std::int64_t before = rows_of(call.parts).first;
  const auto begin = parts_.begin() + static_cast<std::ptrdiff_t>(call.parts.first);
  for (const Part& part : std::span(begin, call.parts.count == 0 ? parts_.end() : begin + static_cast<std::ptrdiff_t>(call.parts.count))) {
    FewPart& one = few.parts.emplace_back();
    one.weight = part.packed;
    one.first = part.first - before;
    if (bias_) one.bias = static_cast<const char*>(bias_->data()) + static_cast<std::size_t>(part.first) * dtype_bytes(context_.compute);
    for (const LoraView& pair : call.lora.pairs) {
      // A pair is one part's, or of several together.
      const std::int64_t first = one.first - pair.first_column;
      if (first < 0 || first + part.rows > pair.bt.cols) continue;
      one.first_inner = pair.first_inner;
      one.bt = pair.bt.columns(first, part.rows);
      one.scale = pair.scale;
    }
  }
  const FewKernel kernel = few_kernel(few, context_.gpu);
  if (kernel == FewKernel::expanded) return false;
  if (kernel == FewKernel::bulk) few.scratch = context_.few_scratch();
  return product_of_few(few, kernel, context_.tables, context_.gpu, context_.device.stream());
}

}  // namespace pipelora::cuda
