// Weights as a checkpoint has them to what CudaLinear holds: rows in pieces through a workspace, quantised on the way.
#include <algorithm>
#include <bit>

#include "ops/cuda/base/int8.h"
#include "ops/cuda/base/linear_weight.h"
#include "ops/cuda/device/check.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "pipelora/core/error.h"
#include "pipelora/ops/packed.h"
#include "quant/state.h"

namespace pipelora::cuda {

namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{16} << 20;

/// Calls body(chunk on the device, first element, elements) over the rows of a checkpoint tensor, a chunk at a time.
/// Chunks start at multiples of `multiple` elements.
template <class Body>
void in_chunks(LinearContext& context, const HostTensor& rows, std::int64_t multiple, Body&& body) {
  const std::int64_t total = rows.rows * rows.cols, size = static_cast<std::int64_t>(dtype_bytes(rows.dtype));
  const std::int64_t chunk = std::min(total, std::max<std::int64_t>(multiple, kChunkBytes / size / multiple * multiple));
  const Buffer staged = context.arena->workspace("rows of a checkpoint", rows.dtype, 1, chunk);
  for (std::int64_t first = 0; first < total; first += chunk) {
    const std::int64_t count = std::min(chunk, total - first);
    const std::size_t bytes = static_cast<std::size_t>(count * size);
    context.device.upload(staged.tensor().data, bytes, static_cast<const char*>(rows.data) + first * size, bytes, 1);
    body(staged.tensor().data, first, count);
  }
}

[[noreturn]] void not_finite(std::int64_t element, std::int64_t in) {
  throw Error(kQuantizationInvalid, "row " + std::to_string(element / in) + ", column " + std::to_string(element % in) +
                                        " is NaN or infinite: it can't be quantised");
}

}  // namespace

void CudaLinear::load(std::size_t index, const HostTensor& rows, const HoldSpec& hold) {
  start(hold);
  Part& part = parts_[index];
  switch (hold.quantisation) {
    case Quantisation::none: load_plain(part, rows); break;
    case Quantisation::nf4:
    case Quantisation::fp4: load_four_bit(part, rows); break;
    case Quantisation::mxfp4: throw Error(kQuantizationInvalid, "nothing is quantised to MXFP4: expected packed rows");
    case Quantisation::int8: load_int8(part, rows); break;
  }
  loaded(part);
}

void CudaLinear::load(std::size_t index, quant::State4&& rows, const HoldSpec& hold) {
  start(hold);
  Part& part = parts_[index];
  std::uint8_t* packed = place_four_bit(part);
  Device& device = context_.device;
  const auto put = [&](const void* to, const auto& array) { device.upload(const_cast<void*>(to), array.bytes(), array.data(), array.bytes(), 1); };
  put(packed, rows.packed);
  if (hold.double_quant) {
    put(part.packed.codes, rows.absmax_codes);
    put(part.packed.nested, rows.nested_absmax);
    device.upload(const_cast<float*>(part.packed.offset), sizeof(float), &rows.nested_offset, sizeof(float), 1);
  } else {
    put(part.packed.absmax, rows.absmax);
  }
  loaded(part);
}

void CudaLinear::load(std::size_t index, quant::State8&& rows, const HoldSpec& hold) {
  start(hold);
  Part& part = parts_[index];
  const Tensor target = codes().row_range(part.first, part.rows);
  check(cudaMemsetAsync(target.data, 0, static_cast<std::size_t>(part.rows * target.stride), context_.device.stream()), "an 8-bit weight");
  context_.device.upload(target.data, static_cast<std::size_t>(target.stride), rows.q.data(), static_cast<std::size_t>(in),
                         static_cast<std::size_t>(part.rows));
  context_.device.upload(static_cast<float*>(scales_->data()) + part.first, rows.scb.bytes(), rows.scb.data(), rows.scb.bytes(), 1);
  loaded(part);
}

void CudaLinear::loaded(Part& part) {
  part.loaded = true;
  context_.pool.forget(this);
  if (std::all_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.loaded; })) all_loaded();
}

void CudaLinear::load_plain(const Part& part, const HostTensor& rows) {
  if (!memory_) throw Error(kEngineFailed, "a weight whose products are in e4m3 was loaded again: it holds no other form");
  const Tensor target = Tensor(memory_->data(), spec_.dtype, out, in, stride()).row_range(part.first, part.rows);
  if (rows.dtype == spec_.dtype) {
    const std::size_t size = dtype_bytes(rows.dtype);
    context_.device.upload(target.data, static_cast<std::size_t>(target.stride) * size, rows.data,
                           static_cast<std::size_t>(in) * size, static_cast<std::size_t>(part.rows));
    return;
  }
  in_chunks(context_, rows, in, [&](void* chunk, std::int64_t first, std::int64_t count) {
    copy(Tensor(chunk, rows.dtype, count / in, in), target.row_range(first / in, count / in), context_.device.stream());
  });
}

std::uint8_t* CudaLinear::place_four_bit(Part& part) {
  const std::int64_t blocks = (part.rows * in + spec_.block_size - 1) / spec_.block_size, nested = (blocks + 255) / 256;
  std::int64_t offset = 0;
  for (const Part& other : parts_) {
    if (&other == &part) break;
    offset += (other.rows * in / 2 + 1 + 15) / 16 * 16;
  }
  auto* packed = static_cast<std::uint8_t*>(memory_->data()) + offset;
  Packed4& w = part.packed;
  w = Packed4{};
  w.packed = packed;
  w.rows = part.rows;
  w.in = in;
  w.block_shift = std::countr_zero(static_cast<std::uint64_t>(spec_.block_size));
  w.type = four_bit_of(spec_.quantisation);
  w.via = spec_.dtype;
  // With double quantisation: the scales' scales, their mean (four numbers keep what follows aligned), the 8-bit scales, which
  // are read four at a time.
  const std::int64_t bytes = spec_.double_quant ? (nested + 4) * 4 + (blocks + 3) / 4 * 4 : blocks * 4;
  part.scale_memory = context_.device.allocate("scales of a 4-bit weight", static_cast<std::size_t>(bytes));
  const auto* scales = static_cast<const float*>(part.scale_memory->data());
  if (spec_.double_quant) {
    w.nested = scales;
    w.offset = scales + nested;
    w.codes = reinterpret_cast<const std::uint8_t*>(scales + nested + 4);
  } else {
    w.absmax = scales;
  }
  return packed;
}

void CudaLinear::load_four_bit(Part& part, const HostTensor& rows) {
  Device& device = context_.device;
  cudaStream_t stream = device.stream();
  std::uint8_t* packed = place_four_bit(part);
  const Packed4& w = part.packed;
  const std::int64_t blocks = (part.rows * in + spec_.block_size - 1) / spec_.block_size;
  Buffer plain;
  auto* absmax = const_cast<float*>(w.absmax);
  if (spec_.double_quant) {
    plain = context_.arena->workspace("scales before their quantisation", DType::f32, 1, blocks);
    absmax = plain.tensor().as<float>();
  }
  const Buffer bad_buffer = context_.arena->workspace("first value that is not finite", DType::i64, 1, 1);
  auto* bad = bad_buffer.tensor().as<unsigned long long>();
  check(cudaMemsetAsync(bad, 0xFF, sizeof *bad, stream), "quantising a weight");

  in_chunks(context_, rows, 4096, [&](void* chunk, std::int64_t first, std::int64_t elements) {
    quantise4(chunk, rows.dtype, spec_.dtype, elements, w.block_shift, w.type, packed + first / 2, absmax + (first >> w.block_shift),
              first, bad, stream);
  });
  if (spec_.double_quant) {
    const Buffer partial = context_.arena->workspace("sums of scales", DType::f64, 1, 1024);
    quantise_absmax(absmax, blocks, context_.tables, partial.tensor().as<double>(), const_cast<float*>(w.offset),
                    const_cast<std::uint8_t*>(w.codes), const_cast<float*>(w.nested), stream);
  }
  unsigned long long first_bad = 0;
  device.download(bad, sizeof first_bad, &first_bad, sizeof first_bad, 1);
  if (first_bad != ~0ull) not_finite(static_cast<std::int64_t>(first_bad), in);
}

void CudaLinear::load_int8(const Part& part, const HostTensor& rows) {
  Device& device = context_.device;
  cudaStream_t stream = device.stream();
  const Buffer bad_buffer = context_.arena->workspace("first value that is not finite", DType::i64, 1, 1);
  auto* bad = bad_buffer.tensor().as<unsigned long long>();
  check(cudaMemsetAsync(bad, 0xFF, sizeof *bad, stream), "quantising a weight");
  in_chunks(context_, rows, in, [&](void* chunk, std::int64_t first, std::int64_t elements) {
    const Tensor target = codes().row_range(part.first + first / in, elements / in);
    quantise_weight8(Tensor(chunk, rows.dtype, elements / in, in), spec_.dtype, target,
                     static_cast<float*>(scales_->data()) + part.first + first / in, first, bad, stream);
  });
  unsigned long long first_bad = 0;
  device.download(bad, sizeof first_bad, &first_bad, sizeof first_bad, 1);
  if (first_bad != ~0ull) not_finite(static_cast<std::int64_t>(first_bad), in);
}

void CudaLinear::load_bias(std::size_t index, const HostTensor& values) {
  const Part& part = parts_[index];
  const Tensor target = Tensor(bias_->data(), context_.compute, 1, out).columns(part.first, part.rows);
  in_chunks(context_, values, 1, [&](void* chunk, std::int64_t first, std::int64_t count) {
    copy(Tensor(chunk, values.dtype, 1, count), target.columns(first, count), context_.device.stream());
  });
}

void CudaLinear::refresh(std::int64_t first, const Tensor& values) {
  if (spec_.quantisation != Quantisation::none || !memory_) throw Error(kEngineFailed, "a weight that is trained is held in few bits");
  copy(values, Tensor(memory_->data(), spec_.dtype, out, in, stride()).row_range(first, values.rows), context_.device.stream());
  context_.pool.forget(this);
  all_loaded();
}

void CudaLinear::refresh_bias(std::int64_t first, const Tensor& values) {
  copy(values, bias_values().columns(first, values.cols), context_.device.stream());
}

}  // namespace pipelora::cuda
