#include "ops/cuda/cuda_ops.h"

#include <algorithm>

#include "ops/cuda/device/check.h"
#include "ops/cuda/device/event_fence.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "ops/cuda/lora/lora.h"
#include "ops/cuda/head/sampling.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

CudaOps::CudaOps(int device, DType compute) : device_(device), context_(device_, compute), gpu_(context_.gpu) {
  product_workspace_ = device_.allocate("the workspace of products", Products::kWorkspaceBytes);
  counters_ = device_.allocate("counters", (kLoraCounters + 1) * sizeof(std::uint32_t));
  check(cudaMemsetAsync(counters_->data(), 0, counters_->bytes(), device_.stream()), "counters");

  const auto& map = quant::dynamic_map();
  const auto& thresholds = quant::dynamic_thresholds();
  context_.table_memory = device_.allocate("tables of quantisation", (map.size() + thresholds.size()) * sizeof(float));
  float* table = static_cast<float*>(context_.table_memory->data());
  device_.upload(table, map.size() * sizeof(float), map.data(), map.size() * sizeof(float), 1);
  device_.upload(table + map.size(), thresholds.size() * sizeof(float), thresholds.data(), thresholds.size() * sizeof(float), 1);
  context_.tables = {table, table + map.size()};
  device_.finish();
}

CudaOps::~CudaOps() = default;

std::unique_ptr<DeviceMemory> CudaOps::allocate(const char* what, std::size_t bytes, bool zeroed) {
  auto memory = device_.allocate(what, bytes);
  if (zeroed && bytes > 0) check(cudaMemsetAsync(memory->data(), 0, bytes, device_.stream()), what);
  return memory;
}

std::unique_ptr<DeviceMemory> CudaOps::allocate_on_host(const char* what, std::size_t bytes) {
  return std::make_unique<HostMemory>(device_.index(), what, bytes);
}

void CudaOps::reserve_host(std::size_t bytes) {
  host_room_.reset();
  if (bytes > 0) host_room_ = std::make_unique<HostRoom>(device_, bytes);
}

std::unique_ptr<Offloaded> CudaOps::offload(std::vector<Buffer> tensors) {
  if (!host_room_) throw Error(kOutOfMemory, "activations can't be offloaded: no room in the host's memory was reserved");
  return host_room_->offload(std::move(tensors), *arena_);
}

void CudaOps::use_arena(Arena& arena) {
  arena_ = &arena;
  context_.arena = &arena;
}

void CudaOps::upload(const Tensor& to, const void* host) {
  const std::size_t size = dtype_bytes(to.dtype);
  const auto pitch = to.rows <= 1 ? to.cols : to.stride;
  device_.upload(to.data, static_cast<std::size_t>(pitch) * size, host, static_cast<std::size_t>(to.cols) * size,
                 static_cast<std::size_t>(to.rows));
}

void CudaOps::download(const Tensor& from, void* host) {
  const std::size_t size = dtype_bytes(from.dtype);
  const auto pitch = from.rows <= 1 ? from.cols : from.stride;
  device_.download(from.data, static_cast<std::size_t>(pitch) * size, host, static_cast<std::size_t>(from.cols) * size,
                   static_cast<std::size_t>(from.rows));
}

void CudaOps::upload(Indices& indices) {
  if (indices.size() == 0) {
    indices.device = Tensor();
    return;
  }
  if (!indices.storage) throw Error(kEngineFailed, "indices without room on the device: a kernel would take every row for itself");
  indices.device = indices.storage.tensor();
  upload(indices.device, indices.host.data());
}

void CudaOps::load(const HostTensor& from, const Tensor& to) {
  if (from.dtype == to.dtype) {
    upload(to, from.data);
    return;
  }
  const std::int64_t size = static_cast<std::int64_t>(dtype_bytes(from.dtype));
  const std::int64_t chunk = std::clamp<std::int64_t>((std::int64_t{16} << 20) / (from.cols * size), 1, from.rows);
  const Buffer staged = arena_->workspace("rows of a checkpoint", from.dtype, chunk, from.cols);
  for (std::int64_t first = 0; first < from.rows; first += chunk) {
    const std::int64_t rows = std::min(chunk, from.rows - first);
    const Tensor part = staged.tensor().row_range(0, rows);
    upload(part, static_cast<const char*>(from.data) + first * from.cols * size);
    copy(part, to.row_range(first, rows));
  }
}

std::shared_ptr<const Fence> CudaOps::mark() { return std::make_shared<EventFence>(device_.stream()); }

void CudaOps::copy(const Tensor& from, const Tensor& to) { cuda::copy(from, to, device_.stream()); }

void CudaOps::zero(const Tensor& tensor) {
  if (tensor.rows == 0 || tensor.cols == 0) return;
  const std::size_t size = dtype_bytes(tensor.dtype);
  if (tensor.dense()) {
    check(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), device_.stream()), "zero");
    return;
  }
  check(cudaMemset2DAsync(tensor.data, static_cast<std::size_t>(tensor.stride) * size, 0, static_cast<std::size_t>(tensor.cols) * size,
                          static_cast<std::size_t>(tensor.rows), device_.stream()),
        "zero");
}

void CudaOps::add_scaled(const Tensor& from, float factor, const Tensor& to) { cuda::add_scaled(from, factor, to, device_.stream()); }

void CudaOps::gather_rows(const Tensor& from, const Indices& rows, const Tensor& to) {
  cuda::gather_rows(from, rows.device.as<std::int32_t>(), to, device_.stream());
}

void CudaOps::scatter_rows(const Tensor& from, const Indices& rows, float factor, const Tensor& to) {
  cuda::scatter_rows(from, rows.device.as<std::int32_t>(), factor, to, device_.stream());
}

void CudaOps::encode_rows(const Tensor& from, const Tensor& to) { cuda::encode_rows(from, to, device_.stream()); }
void CudaOps::decode_rows(const Tensor& from, const Tensor& to) { cuda::decode_rows(from, to, device_.stream()); }

std::unique_ptr<LinearWeight> CudaOps::create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) {
  return std::make_unique<CudaLinear>(context_, in, std::move(part_rows), bias);
}

void CudaOps::multiply(const Product& product) { products_.run(product, product_workspace_->data(), device_.stream()); }

Buffer CudaOps::bytes(const char* what, std::size_t count) {
  return arena_->workspace(what, DType::u8, 1, static_cast<std::int64_t>(count));
}

void CudaOps::add(const Tensor& a, const Tensor& b, float factor, const Tensor& out) { cuda::add(a, b, factor, out, device_.stream()); }
void CudaOps::shape_logits(const Tensor& logits, float factor, float cap) { cuda::shape_logits(logits, factor, cap, device_.stream()); }

void CudaOps::rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y) {
  cuda::rmsnorm_forward(x, weight, rule, y, device_.stream());
}
void CudaOps::rmsnorm_add(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& residual, float factor, const Tensor& y) {
  cuda::rmsnorm_add(x, weight, rule, residual, factor, y, device_.stream());
}
void CudaOps::rmsnorm_backward(const RmsNormBackward& call) { cuda::rmsnorm_backward(call, device_.stream()); }
void CudaOps::qk_rope_forward(const QkRope& call) { cuda::qk_rope_forward(call, device_.stream()); }
void CudaOps::qk_rope_backward(const QkRopeBackward& call) { cuda::qk_rope_backward(call, device_.stream()); }
void CudaOps::swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) {
  cuda::swiglu_forward(gate, up, act, activation, device_.stream());
}
void CudaOps::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                              const Tensor& act, Activation activation) {
  cuda::swiglu_backward(gate, up, dact, dgate, dup, act, activation, device_.stream());
}
void CudaOps::cross_entropy(const CrossEntropy& call) { cuda::cross_entropy(call, gpu_, device_.stream()); }

void CudaOps::add_noise(const EmbeddingNoise& call) { cuda::add_noise(call, device_.stream()); }

std::int32_t CudaOps::sample(const Sampling& call) {
  const std::size_t wanted = sampling_bytes(call.logits.cols);
  if (!sampling_ || sampling_->bytes() < wanted) sampling_ = device_.allocate("sorted logits", wanted);
  return cuda::sample(call, device_, sampling_->data());
}

template <class Entry>
Buffer CudaOps::table(const char* what, const std::vector<Entry>& entries) {
  const std::size_t bytes = entries.size() * sizeof(Entry);
  Buffer buffer = arena_->workspace(what, DType::u8, 1, static_cast<std::int64_t>(bytes));
  device_.upload(buffer.tensor().data, bytes, entries.data(), bytes, 1);
  return buffer;
}

void CudaOps::adamw(std::span<const AdamTarget> targets, const AdamSettings& settings) {
  std::vector<AdamChunk> chunks;
  for (const AdamTarget& target : targets) {
    for (std::int64_t at = 0; at < target.weight.size(); at += kAdamChunk) {
      chunks.push_back({target.weight.as<float>() + at, target.grad.as<float>() + at, target.exp_avg.as<float>() + at,
                        target.exp_avg_sq.as<float>() + at, std::min(kAdamChunk, target.weight.size() - at)});
    }
  }
  if (chunks.empty()) return;
  const Buffer list = table("pieces of LoRA matrices", chunks);
  cuda::adamw(static_cast<const AdamChunk*>(list.tensor().data), static_cast<std::int64_t>(chunks.size()), settings, device_.stream());
}

std::vector<double> CudaOps::squared_norms(std::span<const Tensor> tensors) {
  std::vector<NormChunk> chunks;
  std::vector<std::int32_t> first{0};
  for (const Tensor& tensor : tensors) {
    for (std::int64_t at = 0; at < tensor.size(); at += kNormChunk)
      chunks.push_back({tensor.as<float>() + at, std::min(kNormChunk, tensor.size() - at)});
    first.push_back(static_cast<std::int32_t>(chunks.size()));
  }
  std::vector<double> sums(tensors.size(), 0.0);
  if (chunks.empty()) return sums;
  const Buffer list = table("pieces of gradients", chunks), firsts = table("first pieces", first);
  const Buffer partial = arena_->workspace("sums of pieces", DType::f64, 1, static_cast<std::int64_t>(chunks.size()));
  const Buffer total = arena_->workspace("sums of squares", DType::f64, 1, static_cast<std::int64_t>(sums.size()));
  sum_squares(static_cast<const NormChunk*>(list.tensor().data), static_cast<std::int64_t>(chunks.size()),
              partial.tensor().as<double>(), firsts.tensor().as<std::int32_t>(), static_cast<std::int64_t>(sums.size()),
              total.tensor().as<double>(), device_.stream());
  download(total, sums.data());
  return sums;
}

}  // namespace pipelora::cuda
