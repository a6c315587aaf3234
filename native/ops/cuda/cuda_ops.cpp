#include "ops/cuda/cuda_ops.h"

#include <algorithm>

#include "ops/cuda/attention.h"
#include "ops/cuda/check.h"
#include "ops/cuda/event_fence.h"
#include "ops/cuda/int8.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/lora.h"
#include "pipelora/error.h"

namespace pipelora::cuda {

CudaOps::CudaOps(int device, DType compute) : device_(device), context_(device_, compute) {
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

std::unique_ptr<LinearWeight> CudaOps::create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) {
  return std::make_unique<CudaLinear>(context_, in, std::move(part_rows), bias);
}

void CudaOps::multiply(const Product& product) { products_.run(product, product_workspace_->data(), device_.stream()); }

Buffer CudaOps::bytes(const char* what, std::size_t count) {
  return arena_->workspace(what, DType::u8, 1, static_cast<std::int64_t>(count));
}

LoraScratch CudaOps::scratch(const Buffer& partial) const {
  return {partial.tensor().data, static_cast<std::uint32_t*>(counters_->data())};
}

void CudaOps::inner_products(const Tensor& x, const std::vector<LoraTile>& tiles, const DropoutKey* dropout, const Sequences* sequences,
                             const Tensor& inner, const Tensor& copy, std::int64_t tail) {
  if (x.rows <= kFewTokens && !copy && lora_inner_few({x}, tiles, inner, device_.stream())) return;
  const Buffer partial = bytes("partial inner vectors", lora_inner_bytes(x, tiles.size()));
  lora_inner(x, tiles, dropout, sequences, inner, copy, tail, scratch(partial), device_.stream());
}

// LoRA joins the base product: its inner vectors stand behind x's columns, B behind the weight's.
void CudaOps::linear_forward(const LinearForward& call) {
  const auto& weight = static_cast<const CudaLinear&>(*call.weight);
  if (call.x.rows == 0) return;
  const bool trains = !call.lora.pairs.empty(), few = call.x.rows <= kFewTokens && !weight.is_int8();
  if (trains && !call.inner_known && (!call.y || weight.is_int8() || few)) {
    inner_products(call.x, forward_tiles(call.lora, call.x.cols), call.lora.dropout, call.sequences, call.inner, Tensor(), 0);
  }
  if (!call.y) return;
  if (few && weight.forward_few(call)) return;
  if (weight.is_int8()) {
    forward_int8(call, weight);
  } else if (trains && call.inner_known && call.x_has_room) {
    append_inner(call.lora, call.inner, call.x, tail_columns(call.lora.inner_cols), device_.stream());
    forward_product(call, weight, true);
  } else {
    forward_product(call, weight, false);
  }
}

bool CudaOps::forward_few(const FewInput& input, const LinearForward& call) {
  if (call.x.rows > kFewTokens || call.lora.pairs.empty() || !call.y) return false;
  if (!lora_inner_few(input, forward_tiles(call.lora, call.x.cols), call.inner, device_.stream())) return false;
  LinearForward known = call;
  known.inner_known = true;
  linear_forward(known);
  return true;
}

void CudaOps::finish_forward(const LinearForward& call, const CudaLinear& weight) {
  if (weight.is_int8())
    forward_int8(call, weight);
  else
    forward_product(call, weight, true);
}

void CudaOps::norm_linear_forward(const Tensor& x, const Tensor& norm, float eps, const LinearForward& call) {
  const auto& weight = static_cast<const CudaLinear&>(*call.weight);
  if (!call.lora.pairs.empty() && call.x_has_room && call.y && call.x.rows > kFewTokens) {
    const std::int64_t tail = weight.is_int8() ? 0 : tail_columns(call.lora.inner_cols);
    if (rmsnorm_lora_inner(x, norm, eps, call.lora, call.inner_known, call.sequences, call.inner, call.x, tail, device_.stream()))
      return finish_forward(call, weight);
  }
  if (forward_few({.x = call.x, .before_norm = x, .norm = norm, .eps = eps}, call)) return;
  rmsnorm_forward(x, norm, eps, call.x);
  linear_forward(call);
}

void CudaOps::swiglu_linear_forward(const Tensor& gate, const Tensor& up, const LinearForward& call) {
  const auto& weight = static_cast<const CudaLinear&>(*call.weight);
  if (!call.lora.pairs.empty() && call.x_has_room && call.y && call.x.rows > kFewTokens) {
    const std::vector<LoraTile> tiles = forward_tiles(call.lora, call.x.cols);
    const Buffer partial = bytes("partial inner vectors", lora_inner_bytes(call.x, tiles.size()));
    const std::int64_t tail = weight.is_int8() ? 0 : tail_columns(call.lora.inner_cols);
    if (swiglu_lora_inner(gate, up, tiles, call.lora.dropout, call.sequences, call.inner, call.x, tail, scratch(partial), device_.stream()))
      return finish_forward(call, weight);
  }
  if (forward_few({.x = call.x, .gate = gate, .up = up}, call)) return;
  swiglu_forward(gate, up, call.x);
  linear_forward(call);
}

void CudaOps::forward_product(const LinearForward& call, const CudaLinear& weight, bool inner_ready) {
  cudaStream_t stream = device_.stream();
  const std::int64_t inner_cols = call.lora.pairs.empty() ? 0 : call.lora.inner_cols;
  const Tensor matrix = weight.expanded(true);
  Product product;
  product.c = call.residual;
  product.d = call.y;
  product.bias = weight.bias();
  if (inner_cols == 0) {
    product.a = call.x;
    product.b = matrix;
    multiply(product);
    weight.done();
    return;
  }
  const std::int64_t tail = tail_columns(inner_cols), width = call.x.cols + tail;
  if (tail > weight.tail()) throw Error(kEngineFailed, "a product with more LoRA columns than its weight expects");
  Buffer wide;
  Tensor x = call.x;
  if (!call.x_has_room) {
    wide = arena_->workspace("a product's input with LoRA's inner vectors", call.x.dtype, call.x.rows, (width + 63) / 64 * 64);
    x = wide.tensor().columns(0, call.x.cols);
  }
  if (!inner_ready) inner_products(call.x, forward_tiles(call.lora, call.x.cols), call.lora.dropout, call.sequences, call.inner, x, tail);
  append_columns(matrix, call.lora, stream);
  product.a = Tensor(x.data, x.dtype, x.rows, width, x.stride);
  product.b = Tensor(matrix.data, matrix.dtype, matrix.rows, width, matrix.stride);
  multiply(product);
  weight.done();
}

// The integer product, finished in the compute dtype; then the outlier columns' product is added to it. How many columns
// hold an outlier decides the second product's size, so the host waits for that one number.
void CudaOps::forward_int8(const LinearForward& call, const CudaLinear& weight) {
  cudaStream_t stream = device_.stream();
  const std::int64_t tokens = call.x.rows, in = weight.in;
  const Tensor codes = weight.codes();
  const Buffer lists = arena_->workspace("outlier columns", DType::i32, 1, 2 * in + 1);
  std::int32_t* flags = lists.tensor().as<std::int32_t>();
  std::int32_t *const columns = flags + in, *const counted = flags + 2 * in;
  std::int32_t outliers = 0;
  const auto small = [](const LoraView& pair) { return pair.bt.rows <= 8 && pair.first_column % 4 == 0; };
  const bool finishes = call.lora.pairs.size() <= 8 && std::all_of(call.lora.pairs.begin(), call.lora.pairs.end(), small);
  if (weight.threshold() > 0) {
    find_outliers(call.x, weight.threshold(), flags, columns, counted, stream);
    device_.download(counted, sizeof outliers, &outliers, sizeof outliers, 1);
  }
  if (outliers == 0) flags = nullptr;
  {
    const Buffer x_codes = arena_->workspace("an input in 8 bits", DType::i8, tokens, codes.stride);
    const Buffer absmax = arena_->workspace("scales of an input in 8 bits", DType::f32, 1, tokens);
    const Buffer sums = arena_->workspace("integer sums of a product", DType::i32, tokens, (weight.out + 3) / 4 * 4);
    quantise_rows(call.x, weight.threshold(), flags, Tensor(x_codes.tensor().data, DType::i8, tokens, in, codes.stride),
                  absmax.tensor().as<float>(), stream);
    Product product;
    product.a = x_codes;
    product.b = Tensor(codes.data, DType::i8, weight.out, codes.stride, codes.stride);
    product.d = Tensor(sums.tensor().data, DType::i32, tokens, weight.out, sums.tensor().cols);
    multiply(product);
    finish_int8({product.d, absmax.tensor().as<float>(), weight.scales(), weight.bias(), call.residual, call.y,
                 finishes ? call.lora : LoraSet(), call.inner},
                stream);
  }
  if (outliers > 0) {
    const std::int64_t padded = (outliers + 15) / 16 * 16;
    const Buffer values = arena_->workspace("outlier columns of an input", context_.compute, tokens, padded);
    const Buffer rows = arena_->workspace("outlier columns of a weight", context_.compute, padded, (weight.out + 7) / 8 * 8);
    const Tensor weights = rows.tensor().columns(0, weight.out);
    gather_outliers(call.x, codes, weight.scales(), columns, outliers, values, weights, stream);
    Product product;
    product.a = values;
    product.b = weights;
    product.b_transposed = false;
    product.c = call.y;
    product.d = call.y;
    multiply(product);
  }
  if (!finishes) add_lora_output(call.lora, call.inner, call.y, stream);
}

// Without dropout LoRA joins the product as in the forward pass ([dy, inner_grad] [W; A]) where dy is not much wider than dx;
// else its term, masked, is added to dx.
void CudaOps::linear_input_grad(const LinearInputGrad& call) {
  if (call.dy.rows == 0) return;
  if (input_grad_product(call, static_cast<const CudaLinear&>(*call.weight)))
    lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, device_.stream());
}

void CudaOps::linear_input_grad_norm(const LinearInputGrad& call, const RmsNormBackward& norm) {
  if (call.dy.rows == 0) return;
  if (input_grad_product(call, static_cast<const CudaLinear&>(*call.weight))) {
    if (lora_add_input_grad_norm(call.lora, call.inner_grad, call.sequences, norm, device_.stream())) return;
    lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, device_.stream());
  }
  rmsnorm_backward(norm);
}

void CudaOps::swiglu_linear_input_grad(const LinearInputGrad& call, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                       const Tensor& dup) {
  if (call.dy.rows == 0) return;
  const bool adds_term = input_grad_product(call, static_cast<const CudaLinear&>(*call.weight));
  const LoraAGrad grads{call.dx, call.inner_grad, call.lora, call.sequences};
  if (lora_swiglu_grad_suits(grads, gate, up, dgate, dup)) {
    const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_bytes(grads));
    return lora_swiglu_grad(grads, adds_term, gate, up, dgate, dup, partial.tensor().data, device_.stream());
  }
  if (adds_term) lora_add_input_grad(call.lora, call.inner_grad, call.dx, call.sequences, device_.stream());
  swiglu_backward(gate, up, call.dx, dgate, dup, call.lora.pairs.empty() ? Tensor() : call.dx);
  lora_a_grad(grads);
}

void CudaOps::output_grads(const LinearInputGrad& call) {
  const LoraBGrad grads{call.dy, call.inner, call.inner_grad, call.lora};
  if (lora_b_grad_suits(grads)) {
    const Buffer partial = bytes("partial gradients of LoRA's B", lora_b_grad_bytes(grads));
    return lora_b_grad(grads, partial.tensor().data, device_.stream());
  }
  inner_products(call.dy, backward_tiles(call.lora), nullptr, call.sequences, call.inner_grad, Tensor(), 0);
  const Buffer partial = bytes("partial gradients of LoRA's B", lora_b_grad_plain_bytes(grads));
  lora_b_grad_plain(grads, scratch(partial), device_.stream());
}

bool CudaOps::input_grad_product(const LinearInputGrad& call, const CudaLinear& weight) {
  cudaStream_t stream = device_.stream();
  const bool trains = !call.lora.pairs.empty();
  const std::int64_t out = weight.out, tail = trains ? tail_columns(call.lora.inner_cols) : 0;
  const bool drops = call.lora.dropout != nullptr &&
                     std::any_of(call.lora.pairs.begin(), call.lora.pairs.end(), [](const LoraView& pair) { return pair.dropout > 0; });
  const bool joined = trains && call.dx && !drops && out < 2 * weight.in && tail <= weight.tail();

  if (trains) output_grads(call);
  if (!call.dx) return false;

  const Tensor matrix = weight.expanded(false);
  Product product;
  product.b_transposed = false;
  product.d = call.dx;
  if (joined) {
    const Buffer wide = arena_->workspace("a gradient with that of LoRA's inner vectors", call.dy.dtype, call.dy.rows, (out + tail + 63) / 64 * 64);
    copy(call.dy, wide.tensor().columns(0, out));
    append_inner_grad(call.lora, call.inner_grad, wide.tensor().columns(0, out), tail, stream);
    append_rows(matrix, call.lora, tail, stream);
    product.a = wide.tensor().columns(0, out + tail);
    product.b = Tensor(matrix.data, matrix.dtype, out + tail, matrix.cols, matrix.stride);
    multiply(product);
    weight.done();
    return false;
  }
  product.a = call.dy;
  product.b = matrix;
  multiply(product);
  weight.done();
  return trains;
}

void CudaOps::lora_a_grad(const LoraAGrad& call) {
  if (call.lora.pairs.empty() || call.x.rows == 0) return;
  if (lora_a_grad_suits(call)) {
    const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_bytes(call));
    return cuda::lora_a_grad(call, partial.tensor().data, device_.stream());
  }
  const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_plain_bytes(call));
  lora_a_grad_plain(call, scratch(partial), device_.stream());
}

void CudaOps::rmsnorm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y) {
  cuda::rmsnorm_forward(x, weight, eps, y, device_.stream());
}
void CudaOps::rmsnorm_backward(const RmsNormBackward& call) { cuda::rmsnorm_backward(call, device_.stream()); }
void CudaOps::qk_rope_forward(const QkRope& call) { cuda::qk_rope_forward(call, device_.stream()); }
void CudaOps::qk_rope_backward(const QkRopeBackward& call) { cuda::qk_rope_backward(call, device_.stream()); }
void CudaOps::attention_forward(const AttentionForward& call) {
  cuda::attention_forward(call, static_cast<std::uint32_t*>(counters_->data()) + kLoraCounters, device_.stream());
}

void CudaOps::attention_backward(const AttentionBackward& call) {
  const Buffer delta = arena_->workspace("attention's row sums", DType::f32, call.lse.rows, call.lse.cols);
  const AttentionRoom wanted = attention_room(call);
  const Buffer room = arena_->spare("attention's slopes", wanted.least, wanted.most);
  AttentionBackward attention = call;
  const bool turned = attention_turns_back(call);
  if (!turned) attention.rope = Tensor();
  cuda::attention_backward(attention, delta, room, device_.stream());
  if (call.rope && !turned) qk_rope_backward({call.dq, call.dk, {}, {}, {}, {}, 0, call.rope, call.rope_row, call.head_dim});
}

void CudaOps::swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act) {
  cuda::swiglu_forward(gate, up, act, device_.stream());
}
void CudaOps::swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                              const Tensor& act) {
  cuda::swiglu_backward(gate, up, dact, dgate, dup, act, device_.stream());
}
void CudaOps::cross_entropy(const CrossEntropy& call) { cuda::cross_entropy(call, device_.stream()); }

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
