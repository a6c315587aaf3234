// Times single operations at Qwen-7B's shape: one line an operation, with the bytes or FLOPs it must move and its share of
// the card's rates. usage: cuda_ops [attention | hot tokens … | few tokens … | norms tokens … | tokens …]
#include <cuda_runtime.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "ops/cuda/base/cublaslt.h"
#include "ops/cuda/base/fp8.h"
#include "ops/cuda/base/quant.h"
#include "ops/cuda/lora/lora.h"
#include "pipelora/core/error.h"
#include "bench/timing.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

cudaEvent_t first_event, last_event;

void linear(Gpu& gpu, const char* name, std::int64_t tokens, std::int64_t in, std::vector<std::int64_t> parts, bool quantised, float dropout) {
  const std::int64_t out = [&] { std::int64_t n = 0; for (auto p : parts) n += p; return n; }();
  auto weight = gpu.ops->create_linear(in, parts, false);
  const std::int64_t inner_cols = 8 * static_cast<std::int64_t>(parts.size());
  weight->expect_lora(inner_cols);
  HoldSpec hold;
  hold.dtype = DType::bf16;
  if (quantised) {
    hold.quantisation = Quantisation::nf4;
    hold.double_quant = true;
  }
  std::vector<std::uint16_t> source(static_cast<std::size_t>(in * *std::max_element(parts.begin(), parts.end())));
  Random random(3);
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = i < 4000000 ? to_bf16(static_cast<float>(random.normal() * 0.02)).bits : source[i - 4000000];
  for (std::size_t p = 0; p < parts.size(); ++p) weight->load(p, {source.data(), DType::bf16, parts[p], in}, hold);
  std::vector<Buffer> held;
  std::vector<LoraView> views;
  std::int64_t column = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    LoraView view;
    for (Tensor* t : {&view.a, &view.grad_a}) *t = held.emplace_back(noise(gpu, DType::f32, 8, in)).tensor();
    for (Tensor* t : {&view.bt, &view.grad_bt}) *t = held.emplace_back(noise(gpu, DType::f32, 8, parts[p])).tensor();
    view.scale = 4;
    view.dropout = dropout;
    view.module_id = static_cast<std::uint32_t>(p);
    view.first_column = column;
    view.first_inner = static_cast<std::int64_t>(p) * 8;
    column += parts[p];
    views.push_back(view);
  }
  const DropoutKey key{1, 2};
  const LoraSet lora{views, inner_cols, &key}, none{};
  const auto sequences = gpu.sequences({static_cast<int>(tokens)});
  const Buffer x = noise(gpu, DType::bf16, tokens, in), dy = noise(gpu, DType::bf16, tokens, out);
  const Buffer y = gpu.arena->tensor("y", DType::bf16, tokens, out), dx = gpu.arena->tensor("dx", DType::bf16, tokens, in);
  const Buffer inner = gpu.arena->tensor("inner", DType::f32, tokens, inner_cols), inner_grad = gpu.arena->tensor("inner", DType::f32, tokens, inner_cols);
  const double flops = 2.0 * static_cast<double>(tokens * in * out);
  const double x_bytes = 2.0 * static_cast<double>(tokens * in), y_bytes = 2.0 * static_cast<double>(tokens * out);
  const std::string at = std::string(name) + " T=" + std::to_string(tokens) + " ";
  report(at + "product forward", time_us(*gpu.ops, [&] { gpu.ops->linear_forward({x, weight.get(), none, Tensor(), Tensor(), y, sequences.get()}); }), 0, flops);
  report(at + "product dx", time_us(*gpu.ops, [&] { gpu.ops->linear_input_grad({dy, weight.get(), none, Tensor(), Tensor(), dx, sequences.get()}); }), 0, flops);
  report(at + "forward with LoRA", time_us(*gpu.ops, [&] { gpu.ops->linear_forward({x, weight.get(), lora, inner, Tensor(), y, sequences.get()}); }), 0, flops);
  report(at + "inner alone", time_us(*gpu.ops, [&] { gpu.ops->linear_forward({x, weight.get(), lora, inner, Tensor(), Tensor(), sequences.get()}); }), x_bytes, 0);
  report(at + "dx with LoRA", time_us(*gpu.ops, [&] { gpu.ops->linear_input_grad({dy, weight.get(), lora, inner, inner_grad, dx, sequences.get()}); }), 0, flops);
  report(at + "inner grad and grad of B", time_us(*gpu.ops, [&] { gpu.ops->linear_input_grad({dy, weight.get(), lora, inner, inner_grad, Tensor(), sequences.get()}); }), y_bytes, 0);
  report(at + "grad of A", time_us(*gpu.ops, [&] { gpu.ops->lora_a_grad({x, inner_grad, lora, sequences.get()}); }), x_bytes, 0);
}

/// Microseconds of what `enqueue` puts into a stream, the mean of twenty without a gap.
template <class Enqueue>
double stream_us(Enqueue&& enqueue) {
  constexpr int kTimes = 20;
  cudaStream_t stream;
  cudaStreamCreate(&stream);
  enqueue(stream);
  cudaEventRecord(first_event, stream);
  for (int i = 0; i < kTimes; ++i) enqueue(stream);
  cudaEventRecord(last_event, stream);
  cudaStreamSynchronize(stream);
  float ms = 0;
  cudaEventElapsedTime(&ms, first_event, last_event);
  cudaStreamDestroy(stream);
  return ms * 1e3 / kTimes;
}

void dequantise(Gpu& gpu, std::int64_t rows, std::int64_t in) {
  const std::int64_t blocks = rows * in / 64;
  const Buffer packed = noise(gpu, DType::bf16, 1, rows * in / 4), codes = noise(gpu, DType::bf16, 1, blocks / 2);
  const Buffer nested = noise(gpu, DType::f32, 1, blocks / 256 + 8), target = gpu.arena->tensor("expanded", DType::bf16, rows, in + 16);
  const Buffer map = noise(gpu, DType::f32, 1, 256);
  cuda::Packed4 w;
  w.packed = packed.tensor().as<std::uint8_t>();
  w.codes = codes.tensor().as<std::uint8_t>();
  w.nested = nested.tensor().as<float>();
  w.offset = nested.tensor().as<float>();
  w.rows = rows;
  w.in = in;
  w.via = DType::bf16;
  const cuda::QuantTables tables{map.tensor().as<float>(), map.tensor().as<float>()};
  const double numbers = static_cast<double>(rows * in), held = 0.5 + 1.0 / 64;
  report("dequantise nf4 " + shape_text(rows, in), stream_us([&](cudaStream_t stream) { cuda::dequantise4(w, tables, target.tensor().columns(0, in), stream); }), numbers * (2 + held), 0);
  const Buffer divisors = noise(gpu, DType::f32, 1, rows + in);
  cuda::HeldRows weight;
  weight.four_bit = w;
  weight.rows = weight.matrix_rows = rows;
  weight.in = in;
  for (const bool transposed : {false, true}) {
    const Tensor codes8 = transposed ? Tensor(target.tensor().data, DType::f8, in, rows, rows) : Tensor(target.tensor().data, DType::f8, rows, in, in);
    const double us = stream_us([&](cudaStream_t stream) { cuda::fp8_expand(weight, DType::bf16, tables, divisors.tensor().as<float>(), transposed, codes8, stream); });
    report(std::string(transposed ? "its transpose to e4m3 " : "nf4 to e4m3 ") + shape_text(rows, in), us, numbers * (1 + held), 0);
  }
}

/// A block's products of a few tokens (decoding) with weights in nf4, of more blocks than the level-2 cache holds.
void few_products(Gpu& gpu, const char* name, const std::vector<std::pair<std::int64_t, std::vector<std::int64_t>>>& shapes, const std::vector<std::int64_t>& sizes) {
  constexpr int kBlocks = 4;
  HoldSpec hold;
  hold.dtype = DType::bf16;
  hold.quantisation = Quantisation::nf4;
  hold.double_quant = true;
  std::vector<std::unique_ptr<LinearWeight>> weights;
  for (int block = 0; block < kBlocks; ++block)
    for (const auto& [in, parts] : shapes) {
      auto& weight = weights.emplace_back(gpu.ops->create_linear(in, parts, false));
      for (std::size_t p = 0; p < parts.size(); ++p) {
        std::vector<std::uint16_t> source(static_cast<std::size_t>(in * parts[p]));
        for (std::size_t i = 0; i < source.size(); ++i) source[i] = to_bf16(static_cast<float>(i * 2654435761u % 1000) * 1e-4f - 0.05f).bits;
        weight->load(p, {source.data(), DType::bf16, parts[p], in}, hold);
      }
    }
  const LoraSet none{};
  for (const std::int64_t tokens : sizes) {
    const auto sequences = gpu.sequences({static_cast<int>(tokens)});
    double all = 0;
    for (std::size_t shape = 0; shape < shapes.size(); ++shape) {
      const std::int64_t in = shapes[shape].first, out = weights[shape]->out;
      const Buffer x = noise(gpu, DType::bf16, tokens, in), y = gpu.arena->tensor("y", DType::bf16, tokens, out);
      const double us = time_us(*gpu.ops, [&] {
        for (std::size_t at = shape; at < weights.size(); at += shapes.size()) gpu.ops->linear_forward({x, weights[at].get(), none, Tensor(), Tensor(), y, sequences.get()});
      }) / kBlocks;
      report(std::string(name) + ", nf4, T=" + std::to_string(tokens) + ", " + shape_text(out, in), us, 0.5 * static_cast<double>(in * out) * (1 + 1.0 / 32), 0);
      all += us;
    }
    report(std::string(name) + ", nf4, T=" + std::to_string(tokens) + ", a block", all, 0, 0);
  }
}

void few_products(Gpu& gpu, const std::vector<std::int64_t>& sizes) {
  few_products(gpu, "Qwen-7B", {{4096, {12288}}, {4096, {4096}}, {4096, {11008, 11008}}, {11008, {4096}}}, sizes);
  few_products(gpu, "Qwen2.5-7B", {{3584, {3584, 512, 512}}, {3584, {3584}}, {3584, {18944, 18944}}, {18944, {3584}}}, sizes);
}

/// A block's eight products at Qwen-7B's shape one after the other for two seconds, so that the card is as hot as in training.
void hot_products(Gpu& gpu, std::int64_t tokens) {
  cuda::Products products;
  const Buffer workspace = gpu.arena->tensor("w", DType::u8, 1, cuda::Products::kWorkspaceBytes);
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{{12288, 4096}, {4096, 4096}, {22016, 4096}, {4096, 11008}};  // out, in
  std::vector<Buffer> held;
  const auto rows = [&](std::int64_t count, std::int64_t cols, bool eight, const float*& scales) {
    Buffer half = noise(gpu, DType::bf16, count, cols);
    if (!eight) return held.emplace_back(std::move(half)).tensor();
    Buffer codes = gpu.arena->tensor("codes", DType::f8, count, cols), scale = gpu.arena->tensor("scales", DType::f32, 1, count);
    cuda::fp8_rows(half, {codes.tensor().as<std::uint8_t>(), cols, scale.tensor().as<float>()}, nullptr);
    cudaDeviceSynchronize();
    scales = held.emplace_back(std::move(scale)).tensor().as<float>();
    return held.emplace_back(std::move(codes)).tensor();
  };
  for (const auto& [name, eight, fast] : {std::tuple{"bf16", false, true}, {"e4m3, fast sums", true, true}, {"e4m3, exact sums", true, false}}) {
    std::vector<cuda::Product> all;
    double flops = 0;
    for (const auto& [out, in] : widths) {
      for (const auto& [n, k] : {std::pair{out, in}, {in, out}}) {
        cuda::Product product;
        product.a = rows(tokens, k, eight, product.a_scales);
        product.b = rows(n, k, eight, product.b_scales);
        product.d = held.emplace_back(gpu.arena->tensor("d", DType::bf16, tokens, n)).tensor();
        product.fast_sums = fast;
        all.push_back(product);
        flops += 2.0 * static_cast<double>(tokens * n * k);
      }
    }
    const auto once = [&] {
      for (const cuda::Product& product : all) products.run(product, workspace.tensor().data, nullptr);
    };
    double us = 0;
    try {
      once();
      cudaDeviceSynchronize();
      timespec a{}, b{};
      clock_gettime(CLOCK_MONOTONIC, &a);
      int rounds = 0;
      for (double spent = 0; spent < 2; ++rounds) {
        for (int i = 0; i < 20; ++i) once();
        cudaDeviceSynchronize();
        clock_gettime(CLOCK_MONOTONIC, &b);
        spent = static_cast<double>(b.tv_sec - a.tv_sec) + static_cast<double>(b.tv_nsec - a.tv_nsec) * 1e-9;
        us = spent * 1e6 / (20.0 * (rounds + 1));
      }
    } catch (const Error& error) {
      std::printf("%s: %s\n", name, error.what());
      continue;
    }
    report(std::string("a block's products, hot, T=") + std::to_string(tokens) + ", " + name, us, 0, flops);
    held.clear();
  }
}

/// The library's suggestions for one product, in its order.
void survey(Gpu& gpu, const char* name, std::int64_t tokens, std::int64_t in, std::int64_t out, bool transposed,
            std::int64_t room = 0) {
  cuda::Products products;
  const Buffer workspace = gpu.arena->tensor("w", DType::u8, 1, cuda::Products::kWorkspaceBytes);
  const Buffer a = noise(gpu, DType::bf16, tokens, in), b = noise(gpu, DType::bf16, transposed ? out : in, (transposed ? in : out) + room);
  const Buffer d = gpu.arena->tensor("d", DType::bf16, tokens, out);
  cuda::Product product;
  product.a = a;
  product.b = b.tensor().columns(0, transposed ? in : out);
  product.b_transposed = transposed;
  product.d = d;
  std::printf("%s T=%lld suggestions, TFLOP/s:", name, static_cast<long long>(tokens));
  for (int choice = 0; choice < 4; ++choice) {
    if (!products.run(product, workspace.tensor().data, nullptr, choice)) break;
    cudaDeviceSynchronize();
    cudaEventRecord(first_event, nullptr);
    for (int i = 0; i < 20; ++i) products.run(product, workspace.tensor().data, nullptr, choice);
    cudaEventRecord(last_event, nullptr);
    cudaEventSynchronize(last_event);
    float ms = 0;
    cudaEventElapsedTime(&ms, first_event, last_event);
    std::printf(" %.0f", 2.0 * static_cast<double>(tokens * in * out) * 20 / static_cast<double>(ms) * 1e-9);
  }
  std::printf("\n");
}

void copy_rate(Gpu& gpu) {
  const std::int64_t n = std::int64_t{1} << 31;
  const Buffer a = gpu.arena->tensor("a", DType::u8, 1, n), b = gpu.arena->tensor("b", DType::u8, 1, n);
  report("copy on the device", time_us(*gpu.ops, [&] { gpu.ops->copy(a, b); }), 2.0 * static_cast<double>(n), 0);
}

void passes(Gpu& gpu, std::int64_t tokens) {
  const std::int64_t d = 4096, f = 11008, v = 151936;
  const std::string at = "T=" + std::to_string(tokens) + " ";
  const double td = 2.0 * static_cast<double>(tokens * d), tf = 2.0 * static_cast<double>(tokens * f);
  const Buffer x = noise(gpu, DType::bf16, tokens, d), y = noise(gpu, DType::bf16, tokens, d), z = noise(gpu, DType::bf16, tokens, d);
  const Buffer weight = noise(gpu, DType::f32, 1, d);
  report(at + "rmsnorm_forward", time_us(*gpu.ops, [&] { gpu.ops->rmsnorm_forward(x, weight, 1e-6f, y); }), 2 * td, 0);
  report(at + "rmsnorm_backward", time_us(*gpu.ops, [&] { gpu.ops->rmsnorm_backward({x, weight, y, z, z, y, 1e-6f}); }), 5 * td, 0);
  const Buffer gate_up = noise(gpu, DType::bf16, tokens, 2 * f), act = noise(gpu, DType::bf16, tokens, f);
  const Tensor g = gate_up.tensor().columns(0, f), u = gate_up.tensor().columns(f, f);
  report(at + "swiglu_forward", time_us(*gpu.ops, [&] { gpu.ops->swiglu_forward(g, u, act, Activation::silu); }), 3 * tf, 0);
  report(at + "swiglu_backward", time_us(*gpu.ops, [&] { gpu.ops->swiglu_backward(g, u, act, g, u, act, Activation::silu); }), 6 * tf, 0);
  const Buffer qkv = noise(gpu, DType::bf16, tokens, 3 * d), table = noise(gpu, DType::f32, 8192, 128);
  Indices rows;
  for (std::int64_t t = 0; t < tokens; ++t) rows.host.push_back(static_cast<std::int32_t>(t));
  gpu.upload(rows);
  const Tensor q = qkv.tensor().columns(0, d), k = qkv.tensor().columns(d, d);
  report(at + "qk_rope_forward", time_us(*gpu.ops, [&] { gpu.ops->qk_rope_forward({q, k, q, k, Tensor(), Tensor(), 1e-6f, table, &rows, Tensor(), 128}); }), 4 * td, 0);
  const std::int64_t labels = std::min<std::int64_t>(tokens, 512);
  const Buffer logits = noise(gpu, DType::f32, labels, v), dlogits = gpu.arena->tensor("d", DType::bf16, labels, v);
  const Buffer target = gpu.arena->tensor("t", DType::i32, 1, labels), w = noise(gpu, DType::f32, 1, labels), loss = noise(gpu, DType::f32, 1, labels),
               hit = gpu.arena->tensor("h", DType::i32, 1, labels);
  gpu.ops->zero(target);
  report(at + "cross_entropy of " + std::to_string(labels), time_us(*gpu.ops, [&] { gpu.ops->cross_entropy({logits, dlogits, target, w, loss, hit}); }),
         static_cast<double>(labels * v) * 6, 0);
}

/// A norm with LoRA and dropout as the input of a product in e4m3: with the pass over its output, and in e4m3 alone. Each call has another input, so
/// that none is in a cache.
void norms_in_e4m3(Gpu& gpu, std::int64_t tokens) {
  constexpr std::size_t kInputs = 8;
  const std::int64_t d = 4096;
  std::vector<Buffer> inputs;
  for (std::size_t i = 0; i < kInputs; ++i) inputs.push_back(noise(gpu, DType::bf16, tokens, d));
  const Buffer weight = noise(gpu, DType::f32, 1, d), y = gpu.arena->tensor("y", DType::bf16, tokens, d + 64), codes = gpu.arena->tensor("codes", DType::f8, tokens, d),
               scales = gpu.arena->tensor("scales", DType::f32, 1, tokens), inner = gpu.arena->tensor("inner", DType::f32, tokens, 24);
  const Tensor out = y.tensor().columns(0, d);
  const cuda::RowCodes to{codes.tensor().as<std::uint8_t>(), d, scales.tensor().as<float>()};
  const auto sequences = gpu.sequences({static_cast<int>(tokens)});
  const auto time = [&](const std::string& name, double bytes, const std::function<void(const Tensor&)>& body) {
    for (const Buffer& x : inputs) body(x);
    cudaDeviceSynchronize();
    constexpr int kRounds = 10;
    cudaEventRecord(first_event, nullptr);
    for (int round = 0; round < kRounds; ++round)
      for (const Buffer& x : inputs) body(x);
    cudaEventRecord(last_event, nullptr);
    cudaEventSynchronize(last_event);
    float ms = 0;
    cudaEventElapsedTime(&ms, first_event, last_event);
    report("T=" + std::to_string(tokens) + " " + name, static_cast<double>(ms) * 1e3 / (kRounds * static_cast<double>(kInputs)), bytes, 0);
  };
  const double row = static_cast<double>(tokens * d);
  for (const std::int64_t pairs : {0, 1, 2, 3}) {
    std::vector<Buffer> held;
    std::vector<LoraView> views;
    for (std::int64_t p = 0; p < pairs; ++p) {
      LoraView view;
      view.a = held.emplace_back(noise(gpu, DType::f32, 8, d)).tensor();
      view.dropout = 0.1f;
      view.module_id = static_cast<std::uint32_t>(p);
      view.first_inner = 8 * p;
      views.push_back(view);
    }
    const DropoutKey key{1, 2};
    const LoraSet lora{views, 8 * pairs, &key};
    const auto norm = [&](const Tensor& x, const Tensor& written, const cuda::RowCodes& rows) {
      if (pairs > 0)
        cuda::rmsnorm_lora_inner(x, weight, 1e-6f, lora, false, sequences.get(), inner.tensor().columns(0, 8 * pairs), written, 0, rows, nullptr);
      else if (rows.codes != nullptr)
        cuda::rmsnorm_rows(x, weight, 1e-6f, rows, nullptr);
      else
        cuda::rmsnorm_forward(x, weight, 1e-6f, written, nullptr);
    };
    const std::string with = "norm, " + std::to_string(pairs) + " pairs of LoRA";
    time(with, 4 * row, [&](const Tensor& x) { norm(x, out, {}); });
    time(with + ", then rows to e4m3", 7 * row, [&](const Tensor& x) {
      norm(x, out, {});
      cuda::fp8_rows(out, to, nullptr);
    });
    time(with + ", in e4m3 alone", 3 * row, [&](const Tensor& x) { norm(x, Tensor(), to); });
  }
}

/// Bytes that the rest of a block of Qwen-7B has given back when its attention's backward pass begins.
constexpr std::int64_t kSpareOfToken = 41 << 10;

void attention(Gpu& gpu, const std::string& rows, const std::vector<int>& lengths, std::int64_t head_dim) {
  const auto sequences = gpu.sequences(lengths);
  const std::int64_t tokens = sequences->tokens, d = 4096;
  const Buffer qkv = noise(gpu, DType::bf16, tokens, 3 * d), out = gpu.arena->tensor("o", DType::bf16, tokens, d), dout = noise(gpu, DType::bf16, tokens, d);
  const Buffer dqkv = gpu.arena->tensor("d", DType::bf16, tokens, 3 * d), lse = gpu.arena->tensor("l", DType::f32, d / head_dim, tokens);
  const Tensor q = qkv.tensor().columns(0, d), k = qkv.tensor().columns(d, d), v = qkv.tensor().columns(2 * d, d);
  const Tensor dq = dqkv.tensor().columns(0, d), dk = dqkv.tensor().columns(d, d), dv = dqkv.tensor().columns(2 * d, d);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  double flops = 0;
  for (const int length : lengths) flops += 2.0 * length * length * static_cast<double>(d);
  const std::string at = rows + ", heads of " + std::to_string(head_dim) + " ";
  report(at + "attention_forward", time_us(*gpu.ops, [&] { gpu.ops->attention_forward({q, k, v, out, lse, sequences.get(), head_dim, 0, scale}); }), 0, flops);
  const auto backward = [&] { gpu.ops->attention_backward({q, k, v, out, lse, dout, dq, dk, dv, sequences.get(), head_dim, 0, scale}); };
  gpu.arena->reset_peak();
  report(at + "attention_backward, no spare room", time_us(*gpu.ops, backward), 0, 2.5 * flops);
  gpu.arena->workspace("what was there before", DType::i8, 1, kSpareOfToken * tokens);
  report(at + "attention_backward", time_us(*gpu.ops, backward), 0, 2.5 * flops);
}

void dequantise(Gpu& gpu) {
  dequantise(gpu, 12288, 4096);
  dequantise(gpu, 22016, 4096);
  dequantise(gpu, 4096, 11008);
}

void attention(Gpu& gpu) {
  for (const std::int64_t head_dim : {256, 128, 64}) {
    attention(gpu, "16 of 29..250", {29, 31, 34, 36, 39, 42, 45, 48, 52, 56, 60, 66, 78, 98, 124, 250}, head_dim);
    for (const auto& [count, length] : {std::pair{16, 68}, {8, 384}, {4, 2048}, {1, 8192}}) {
      attention(gpu, std::to_string(count) + "x" + std::to_string(length), std::vector<int>(static_cast<std::size_t>(count), length), head_dim);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string part = argc > 1 && std::isalpha(static_cast<unsigned char>(argv[1][0])) != 0 ? argv[1] : "";
  std::vector<std::int64_t> sizes;
  for (int i = part.empty() ? 1 : 2; i < argc; ++i) sizes.push_back(std::stoll(argv[i]));
  if (sizes.empty()) sizes = {1088, 3072};
  Gpu gpu(DType::bf16, std::size_t{20} << 30);
  cudaEventCreate(&first_event);
  cudaEventCreate(&last_event);
  const auto each = [&](auto&& measure) {
    for (const std::int64_t tokens : sizes) measure(gpu, tokens);
    return 0;
  };
  if (part == "attention") return attention(gpu), 0;
  if (part == "expand") return dequantise(gpu), 0;
  if (part == "few") return few_products(gpu, sizes), 0;
  if (part == "hot") return each(hot_products);
  if (part == "norms") return each(norms_in_e4m3);
  if (!part.empty()) {
    std::fprintf(stderr, "no part is called %s. Expected attention, expand, few, hot or norms, then numbers of tokens\n", part.c_str());
    return 2;
  }
  copy_rate(gpu);
  dequantise(gpu);
  for (const std::int64_t tokens : sizes) {
    linear(gpu, "qkv", tokens, 4096, {12288}, true, 0.1f);
    linear(gpu, "o", tokens, 4096, {4096}, true, 0.1f);
    linear(gpu, "gate_up", tokens, 4096, {11008, 11008}, true, 0.1f);
    linear(gpu, "down", tokens, 11008, {4096}, true, 0.1f);
    linear(gpu, "down, no dropout", tokens, 11008, {4096}, true, 0.0f);
    passes(gpu, tokens);
    for (const std::int64_t tail : {0, 16, 64}) {
      const std::string with = " forward, inner dimension + " + std::to_string(tail);
      survey(gpu, ("qkv" + with).c_str(), tokens, 4096 + tail, 12288, true);
      survey(gpu, ("gate_up" + with).c_str(), tokens, 4096 + tail, 22016, true);
      survey(gpu, ("o" + with).c_str(), tokens, 4096 + tail, 4096, true);
      survey(gpu, ("down" + with).c_str(), tokens, 11008 + tail, 4096, true);
    }
    for (const std::int64_t room : {0, 64}) {
      const std::string with = " dx, weight's rows + " + std::to_string(room);
      survey(gpu, ("qkv" + with).c_str(), tokens, 12288, 4096, false, room);
      survey(gpu, ("gate_up" + with).c_str(), tokens, 22016, 4096, false, room);
      survey(gpu, ("down" + with).c_str(), tokens, 4096, 11008, false, room);
    }
  }
  attention(gpu);
  return 0;
}
