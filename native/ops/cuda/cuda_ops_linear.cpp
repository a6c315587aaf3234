// Products with frozen weights, and LoRA beside them.
#include <algorithm>
#include <cmath>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/base/int8.h"
#include "ops/cuda/device/alignment.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "ops/cuda/lora/lora.h"
#include "pipelora/core/e4m3.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

LoraScratch CudaOps::scratch(const Buffer& partial) const {
  return {partial.tensor().data, static_cast<std::uint32_t*>(counters_->data())};
}

// LoRA joins the base product: its inner vectors stand behind x's columns, B behind the weight's.
void CudaOps::linear_forward(const LinearForward& call) {
  const HeldView view(*call.weight, call.parts);
  const CudaLinear& weight = view.weight();
  if (call.x.rows == 0) return;
  const bool trains = !call.lora.pairs.empty(), few = call.x.rows <= kFewTokens && weight.takes_lora() && !call.bare;
  LinearForward known = call;
  // Its inner vectors are made apart where the product does not take them along as it is made.
  if (trains && !call.inner_known && (!call.y || !weight.takes_lora() || few || choose(LoraOp::inner, call.lora, call.x) == LoraKernel::products)) {
    make_inner(call);
    known.inner_known = true;
  }
  if (!call.y) return;
  if (few && weight.forward_few(known)) return;
  known_forward(known, view, false);
}

bool CudaOps::forward_few(const FewInput& input, const LinearForward& call) {
  if (call.x.rows == 0 || call.lora.pairs.empty() || !call.y) return false;
  const Tensor& from = input.gate ? input.gate : input.before_norm;
  if (choose(LoraOp::inner, call.lora, call.x, {from, input.up ? input.up : from}) != LoraKernel::few) return false;
  lora_inner_few(input, forward_tiles(call.lora, call.x.cols), call.inner, device_.stream());
  LinearForward known = call;
  known.inner_known = true;
  linear_forward(known);
  return true;
}

void CudaOps::known_forward(const LinearForward& call, const HeldView& weight, bool inner_ready, Fp8Input made) {
  if (call.bare && weight.weight().is_fp8())
    forward_values(call, weight);
  else if (call.bare)
    forward_product(call, weight, inner_ready);
  else if (weight.weight().is_fp8())
    forward_fp8(call, weight, made ? std::move(made) : in_e4m3(call.x));
  else if (weight.weight().is_int8())
    forward_int8(call, weight);
  else
    forward_product(call, weight, inner_ready);
}

void CudaOps::norm_linear_forward(const Tensor& x, const Tensor& norm, NormRule rule, const LinearForward& call) {
  // The fused kernels know RMSNorm alone.
  if (rule.centred) return Ops::norm_linear_forward(x, norm, rule, call);
  const HeldView view(*call.weight, call.parts);
  const CudaLinear& weight = view.weight();
  if (call.x_has_room && call.y && x.rows > 0 && choose(LoraOp::norm_inner, call.lora, x, {call.x}) == LoraKernel::fused) {
    const std::int64_t tail = weight.takes_lora() ? tail_columns(call.lora.inner_cols) : 0;
    Fp8Input codes = weight.is_fp8() ? room_in_e4m3(x.rows, x.cols) : Fp8Input();
    rmsnorm_lora_inner(x, norm, rule.eps, call.lora, call.inner_known, call.sequences, call.inner, codes && call.x_unread ? Tensor() : call.x, tail,
                       codes ? codes.rows() : RowCodes(), device_.stream());
    return known_forward(call, view, true, std::move(codes));
  }
  if (forward_few({.x = call.x, .before_norm = x, .norm = norm, .eps = rule.eps}, call)) return;
  // LoRA's own products would read x. Rows that are read otherwise have sums in another order: a pass and its repetition go one way.
  if (weight.is_fp8() && call.x_unread && call.y && x.rows > 0 && (call.lora.pairs.empty() || call.inner_known) && eights(x) && eights(call.x)) {
    Fp8Input codes = room_in_e4m3(x.rows, x.cols);
    rmsnorm_rows(x, norm, rule.eps, codes.rows(), device_.stream());
    return known_forward(call, view, false, std::move(codes));
  }
  rmsnorm_forward(x, norm, rule, call.x);
  linear_forward(call);
}

void CudaOps::swiglu_linear_forward(const Tensor& gate, const Tensor& up, const LinearForward& call, Activation activation) {
  if (swiglu_inner_as_products(gate, up, call, activation)) {
    LinearForward known = call;
    known.inner_known = true;
    return linear_forward(known);
  }
  const HeldView view(*call.weight, call.parts);
  const CudaLinear& weight = view.weight();
  if (call.x_has_room && call.y && gate.rows > 0 && choose(LoraOp::swiglu_inner, call.lora, call.x, {gate, up}) == LoraKernel::fused) {
    const std::vector<LoraTile> tiles = forward_tiles(call.lora, call.x.cols);
    const Buffer partial = bytes("partial inner vectors", lora_inner_bytes(call.x, tiles.size()));
    const std::int64_t tail = weight.takes_lora() ? tail_columns(call.lora.inner_cols) : 0;
    swiglu_lora_inner(gate, up, activation, tiles, call.lora.dropout, call.sequences, call.inner, call.x, tail, scratch(partial), device_.stream());
    return known_forward(call, view, true);
  }
  if (forward_few({.x = call.x, .gate = gate, .up = up, .activation = activation}, call)) return;
  swiglu_forward(gate, up, call.x, activation);
  linear_forward(call);
}

void CudaOps::forward_product(const LinearForward& call, const HeldView& weight, bool inner_ready) {
  cudaStream_t stream = device_.stream();
  const std::int64_t inner_cols = call.lora.pairs.empty() ? 0 : call.lora.inner_cols;
  const Tensor matrix = weight.expanded(true);
  Product product;
  product.c = call.residual;
  product.d = call.y;
  product.bias = call.bare ? nullptr : weight.bias(context_.compute);
  if (inner_cols == 0) {
    product.a = call.x;
    product.b = matrix;
    multiply(product);
    weight.done(true);
    return;
  }
  const std::int64_t tail = tail_columns(inner_cols), width = call.x.cols + tail;
  if (tail > weight.weight().tail()) throw Error(kEngineFailed, "a product with more LoRA columns than its weight expects");
  Buffer wide;
  Tensor x = call.x;
  if (!call.x_has_room) {
    wide = arena_->workspace("a product's input with LoRA's inner vectors", call.x.dtype, call.x.rows, (width + 63) / 64 * 64);
    x = wide.tensor().columns(0, call.x.cols);
  }
  if (!inner_ready && call.inner_known) {
    if (wide) copy(call.x, x);
    append_inner(call.lora, call.inner, x, tail, stream);
  } else if (!inner_ready) {
    inner_products(call.x, forward_tiles(call.lora, call.x.cols), choose(LoraOp::inner, call.lora, call.x, {x}), call.lora.dropout,
                   call.sequences, call.inner, x, tail);
  }
  append_columns(matrix, call.lora, stream);
  product.a = Tensor(x.data, x.dtype, x.rows, width, x.stride);
  product.b = Tensor(matrix.data, matrix.dtype, matrix.rows, width, matrix.stride);
  multiply(product);
  weight.done(true);
}

// Some outputs at a time: their rows of the weight in 16 bits are no more than a workspace.
void CudaOps::forward_values(const LinearForward& call, const HeldView& weight) {
  constexpr std::int64_t kOutputs = 1024;
  cudaStream_t stream = device_.stream();
  const std::int64_t out = weight.out(), piece = std::min(kOutputs, out);
  const Buffer rows = arena_->workspace("rows of a weight in e4m3 as they stand", context_.compute, piece, weight.in());
  const Tensor codes = weight.expanded(true);
  const float* scales = weight.fp8_scales(true);
  for (std::int64_t first = 0; first < out; first += piece) {
    const std::int64_t count = std::min(piece, out - first);
    Product product;
    product.a = call.x;
    product.b = rows.tensor().row_range(0, count);
    product.d = call.y.columns(first, count);
    fp8_values(codes.row_range(first, count), scales + first, product.b, stream);
    multiply(product);
  }
  weight.done(true);
}

CudaOps::Fp8Input CudaOps::room_in_e4m3(std::int64_t rows, std::int64_t cols) {
  return {arena_->workspace("a product's input in e4m3", DType::f8, rows, cols), arena_->workspace("scales of a product's input", DType::f32, 1, rows)};
}

CudaOps::Fp8Input CudaOps::in_e4m3(const Tensor& x) {
  Fp8Input made = room_in_e4m3(x.rows, x.cols);
  fp8_rows(x, made.rows(), device_.stream());
  return made;
}

void CudaOps::multiply_e4m3(const Product& product) {
  if (has_row_scales(gpu_)) return multiply(product);
  // Sums of codes are divided by a power of two under which none leaves float16, by the inner dimension alone.
  const double largest = static_cast<double>(kE4m3Largest) * kE4m3Largest * static_cast<double>(product.a.cols) / 65504;
  const int exponent = std::max(0, static_cast<int>(std::ceil(std::log2(largest))));
  Buffer room;
  if (product.c.data == product.d.data) room = arena_->workspace("sums of a product in e4m3", product.d.dtype, product.d.rows, product.d.cols);
  Product sums = product;
  sums.c = {};
  sums.bias = nullptr;
  sums.a_scales = sums.b_scales = nullptr;
  sums.alpha = std::ldexp(1.0f, -exponent);
  if (room) sums.d = room;
  multiply(sums);
  fp8_scale_sums({sums.d, std::ldexp(1.0f, exponent), product.a_scales, product.b_scales, product.c, product.bias, product.d}, device_.stream());
}

// LoRA's part is in the compute dtype: it is written first where it reaches every output, and the product adds to it, which hides
// the reading.
void CudaOps::forward_fp8(const LinearForward& call, const HeldView& weight, Fp8Input x) {
  Product product;
  product.d = call.y;
  product.c = call.residual;
  product.bias = weight.bias(context_.compute);
  std::int64_t reached = 0;
  for (const LoraView& pair : call.lora.pairs) reached += pair.bt.cols;
  const bool first = reached == weight.out() && call.y.dtype == call.x.dtype && has_row_scales(gpu_);
  if (first) {
    write_output(call.lora, call.inner, call.residual, call.y);
    product.c = call.y;
  }
  x.into(product, weight, true);
  product.b = weight.expanded(true);
  multiply_e4m3(product);
  weight.done(true);
  x = {};
  if (!first) add_output(call.lora, call.inner, call.y);
}

// The integer product, finished in the compute dtype; then the outlier columns' product is added to it.
void CudaOps::forward_int8(const LinearForward& call, const HeldView& weight) {
  cudaStream_t stream = device_.stream();
  const std::int64_t tokens = call.x.rows, in = weight.in();
  const Tensor codes = weight.codes();
  const auto small = [](const LoraView& pair) { return pair.bt.rows <= 8 && pair.first_column % 4 == 0; };
  const bool finishes = call.lora.pairs.size() <= 8 && std::all_of(call.lora.pairs.begin(), call.lora.pairs.end(), small);
  Buffer lists;
  std::int32_t *flags = nullptr, *columns = nullptr, *counted = nullptr;
  if (weight.weight().threshold() > 0) {
    lists = arena_->workspace("outlier columns", DType::i32, 1, 2 * in + 1);
    flags = lists.tensor().as<std::int32_t>();
    columns = flags + in;
    counted = flags + 2 * in;
    find_outliers(call.x, weight.weight().threshold(), flags, columns, counted, stream);
  }
  {
    const Buffer x_codes = arena_->workspace("an input in 8 bits", DType::i8, tokens, codes.stride);
    const Buffer absmax = arena_->workspace("scales of an input in 8 bits", DType::f32, 1, tokens);
    const Buffer sums = arena_->workspace("integer sums of a product", DType::i32, tokens, int8_rows(weight.out()));
    quantise_rows(call.x, weight.weight().threshold(), flags, Tensor(x_codes.tensor().data, DType::i8, tokens, in, codes.stride),
                  absmax.tensor().as<float>(), stream);
    Product product;
    product.a = x_codes;
    product.b = Tensor(codes.data, DType::i8, int8_rows(weight.out()), codes.stride, codes.stride);
    product.d = sums;
    multiply(product);
    finish_int8({sums.tensor().columns(0, weight.out()), absmax.tensor().as<float>(), weight.scales(), weight.bias(context_.compute), call.residual, call.y,
                 finishes ? call.lora : LoraSet(), call.inner},
                stream);
  }
  if (flags != nullptr) add_outlier_product(call.x, codes, weight.scales(), columns, counted, call.y, stream);
  if (!finishes) add_output(call.lora, call.inner, call.y);
}

// Without dropout LoRA joins the product as in the forward pass ([dy, inner_grad] [W; A]) where dy is not much wider than dx;
// else its term, masked, is added to dx.
void CudaOps::linear_input_grad(const LinearInputGrad& call) {
  if (call.dy.rows == 0) return;
  if (input_grad_product(call))
    add_input_grad(call);
}

void CudaOps::linear_input_grad_norm(const LinearInputGrad& call, const RmsNormBackward& norm) {
  if (call.dy.rows == 0) return;
  if (input_grad_product(call)) {
    const Tensor residual = norm.residual ? norm.residual : norm.dy, y = norm.y ? norm.y : norm.dy;
    if (!norm.rule.centred && choose(LoraOp::norm_input_grad, call.lora, norm.dy, {norm.x, norm.dx, residual, y}) == LoraKernel::fused)
      return lora_add_input_grad_norm(call.lora, call.inner_grad, call.sequences, norm, device_.stream());
    add_input_grad(call);
  }
  rmsnorm_backward(norm);
}

void CudaOps::swiglu_linear_input_grad(const LinearInputGrad& call, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                       const Tensor& dup, Activation activation) {
  if (call.dy.rows == 0) return;
  const bool adds_term = input_grad_product(call);
  if (adds_term && swiglu_grad_as_products(call, {gate, up, dgate, dup}, activation)) return;
  const LoraAGrad grads{call.dx, call.inner_grad, call.lora, call.sequences};
  if (choose(LoraOp::swiglu_grad, call.lora, call.dx, {gate, up, dgate, dup}) == LoraKernel::fused) {
    const Buffer partial = bytes("partial gradients of LoRA's A", lora_a_grad_bytes(grads));
    return lora_swiglu_grad(grads, adds_term, gate, up, dgate, dup, activation, partial.tensor().data, device_.stream());
  }
  if (adds_term) add_input_grad(call);
  swiglu_backward(gate, up, call.dx, dgate, dup, call.lora.pairs.empty() ? Tensor() : call.dx, activation);
  lora_a_grad(grads);
}

bool CudaOps::input_grad_product(const LinearInputGrad& call) {
  const HeldView weight(*call.weight, call.parts);
  cudaStream_t stream = device_.stream();
  const bool trains = !call.lora.pairs.empty();
  const std::int64_t out = weight.out(), tail = trains ? tail_columns(call.lora.inner_cols) : 0;
  const bool drops = call.lora.dropout != nullptr &&
                     std::any_of(call.lora.pairs.begin(), call.lora.pairs.end(), [](const LoraView& pair) { return pair.dropout > 0; });
  const bool joined = trains && call.dx && weight.weight().takes_lora() && !drops && out < 2 * weight.in() && tail <= weight.room_below();

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
    weight.done(false);
    return false;
  }
  Fp8Input codes;
  if (weight.weight().is_fp8()) {
    codes = in_e4m3(call.dy);
    codes.into(product, weight, false);
  } else {
    product.a = call.dy;
  }
  product.b = matrix;
  if (codes)
    multiply_e4m3(product);
  else
    multiply(product);
  weight.done(false);
  return trains;
}

}  // namespace pipelora::cuda
