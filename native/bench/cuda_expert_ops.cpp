// Times experts' products in 16 bits beside e4m3, and what LoRA on every expert of a mixture adds, one line an operation. usage: cuda_expert_ops
#include <cuda_runtime.h>

#include <string>
#include <utility>
#include <vector>

#include "bench/timing.h"
#include "ops/cuda/base/fp8.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

constexpr std::int64_t kExperts = 128, kRank = 16, kChosen = 8;
constexpr std::pair<std::int64_t, std::int64_t> kProducts[] = {{2048, 1536}, {768, 2048}};  // Qwen3-30B-A3B's gate and up, and down

/// Rows of 3,072 tokens: 129 to 255 an expert.
struct Rows {
  std::vector<std::int32_t> starts{0};
  Indices first;

  explicit Rows(Gpu& gpu) {
    for (std::int64_t e = 0; e < kExperts; ++e) starts.push_back(starts.back() + static_cast<std::int32_t>(192 + (e * 37 % 127) - 63));
    first.host = starts;
    gpu.upload(first);
  }
  std::int64_t total() const { return starts.back(); }
  ExpertRows of() { return {Tensor(const_cast<std::int32_t*>(first.device.as<std::int32_t>()), DType::i32, 1, kExperts + 1), &starts}; }
};

std::vector<std::unique_ptr<LinearWeight>> loaded(Gpu& gpu, std::int64_t in, std::int64_t out, const HoldSpec& hold) {
  std::vector<std::unique_ptr<LinearWeight>> weights;
  const std::int64_t together = gpu.ops->experts_together(kExperts, in, out);
  std::vector<std::uint16_t> source(static_cast<std::size_t>(in * out));
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = to_bf16(0.02f * static_cast<float>(static_cast<int>(i * 7919 % 201) - 100) / 100).bits;
  for (std::int64_t at = 0; at < kExperts; at += together) {
    weights.push_back(gpu.ops->create_linear(in, std::vector<std::int64_t>(static_cast<std::size_t>(together), out), false));
    weights.back()->expect_matrices(together);
    for (std::int64_t e = 0; e < together; ++e) weights.back()->load(static_cast<std::size_t>(e), {source.data(), DType::bf16, out, in}, hold);
  }
  return weights;
}

HoldSpec held_as(Quantisation quantisation, bool fp8, bool kept) {
  HoldSpec hold;
  hold.dtype = DType::bf16;
  hold.quantisation = quantisation;
  hold.double_quant = quantisation == Quantisation::nf4;
  hold.fp8 = fp8;
  hold.keep_expanded = kept;
  return hold;
}

/// Rank 16. Bytes: of activations, A, B and their gradients.
void with_lora(Gpu& gpu, Rows& rows) {
  const ExpertRows own = rows.of();
  for (const auto& [in, out] : kProducts) {
    const auto weights = loaded(gpu, in, out, held_as(Quantisation::none, false, false)), eight = loaded(gpu, in, out, held_as(Quantisation::none, true, false));
    const ExpertsWeight all{weights, kExperts}, in_e4m3{eight, kExperts};
    const Buffer a = noise(gpu, DType::f32, kExperts * kRank, in), bt = noise(gpu, DType::f32, kExperts * kRank, out), grad_a = noise(gpu, DType::f32, kExperts * kRank, in),
                 grad_bt = noise(gpu, DType::f32, kExperts * kRank, out);
    std::vector<LoraView> views;
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const auto part = [&](const Buffer& whole) { return whole.tensor().row_range(e * kRank, kRank); };
      views.push_back({part(a), part(bt), part(grad_a), part(grad_bt), 1.0f});
    }
    const std::int64_t total = rows.total();
    const Buffer x = noise(gpu, DType::bf16, total, in), dy = noise(gpu, DType::bf16, total, out), y = noise(gpu, DType::bf16, total, out), dx = noise(gpu, DType::bf16, total, in);
    const Buffer inner = noise(gpu, DType::f32, total, kRank), inner_grad = noise(gpu, DType::f32, total, kRank);
    const std::string at = "experts " + shape_text(out, in) + ", r 16: ";
    const auto bytes = [&](std::int64_t width, double of_pair) { return static_cast<double>(width) * (2.0 * static_cast<double>(total) + of_pair * kExperts * kRank); };
    const double flops = 2.0 * static_cast<double>(total * in * out);
    report(at + "inner vectors", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, views, inner, Tensor(), own}); }), bytes(in, 4), 0);
    report(at + "forward", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, views, inner, y, own}); }), 0, flops);
    report(at + "forward in e4m3", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, in_e4m3, views, inner, y, own}); }), 0, flops);
    report(at + "back", time_us(*gpu.ops, [&] { gpu.ops->experts_input_grad({dy, all, views, inner, inner_grad, dx, own}); }), 0, flops);
    report(at + "back in e4m3", time_us(*gpu.ops, [&] { gpu.ops->experts_input_grad({dy, in_e4m3, views, inner, inner_grad, dx, own}); }), 0, flops);
    report(at + "gradients of B and of inner vectors", time_us(*gpu.ops, [&] { gpu.ops->experts_input_grad({dy, all, views, inner, inner_grad, Tensor(), own}); }), bytes(out, 12), 0);
    report(at + "gradient of A", time_us(*gpu.ops, [&] { gpu.ops->experts_a_grad({x, inner_grad, views, own}); }), bytes(in, 8), 0);
  }
}

/// Without LoRA: products of weights that are kept expanded, and of nf4 that is expanded for each.
void in_16_bits_and_e4m3(Gpu& gpu, Rows& rows) {
  const ExpertRows own = rows.of();
  const std::int64_t total = rows.total();
  for (const auto& [in, out] : kProducts) {
    const Buffer x = noise(gpu, DType::bf16, total, in), dy = noise(gpu, DType::bf16, total, out), y = noise(gpu, DType::bf16, total, out), dx = noise(gpu, DType::bf16, total, in);
    const double flops = 2.0 * static_cast<double>(total * in * out);
    for (const auto& [base, kept] : {std::pair{"kept", true}, {"nf4", false}})
      for (const bool fp8 : {false, true}) {
        const auto weights = loaded(gpu, in, out, held_as(kept ? Quantisation::none : Quantisation::nf4, fp8, false));
        const ExpertsWeight all{weights, kExperts};
        const std::string at = "experts " + shape_text(out, in) + ", " + base + (fp8 ? ", e4m3: " : ", bf16: ");
        report(at + "forward", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, {}, Tensor(), y, own}); }), 0, flops);
        report(at + "back", time_us(*gpu.ops, [&] { gpu.ops->experts_input_grad({dy, all, {}, Tensor(), Tensor(), dx, own}); }), 0, flops);
      }
  }
}

/// The pass over a product's input, and the one that gathers it from the tokens.
void rows_to_e4m3(Gpu& gpu, Rows& rows) {
  const std::int64_t total = rows.total(), tokens = total / kChosen;
  Indices order;
  for (std::int64_t i = 0; i < tokens * kChosen; ++i) order.host.push_back(static_cast<std::int32_t>(i * 4099 % (tokens * kChosen)));
  gpu.upload(order);
  for (const std::int64_t width : {768, 1536, 2048}) {
    const Buffer x = noise(gpu, DType::bf16, total, width), sorted = noise(gpu, DType::bf16, total, width), codes = noise(gpu, DType::f8, total, width), scales = noise(gpu, DType::f32, 1, total);
    const cuda::RowCodes to{codes.tensor().as<std::uint8_t>(), width, scales.tensor().as<float>()};
    const Tensor few = x.tensor().row_range(0, tokens);
    const double values = static_cast<double>(total * width), of_tokens = static_cast<double>(tokens * width);
    const std::string at = "rows of " + std::to_string(width) + ": ";
    // On the default stream, which the engine's do not wait for.
    const auto time = [&](const std::string& what, double bytes, const std::function<void()>& run) {
      constexpr int kRuns = 20;
      const auto runs = [&] {
        for (int i = 0; i < kRuns; ++i) run();
        cudaDeviceSynchronize();
      };
      report(at + what, time_us(*gpu.ops, runs) / kRuns, bytes, 0);
    };
    time("to e4m3", 3 * values, [&] { cuda::fp8_rows(x, to, nullptr); });
    time("gathered in e4m3", values + 2 * of_tokens, [&] { cuda::fp8_gathered_rows(few, order.device.as<std::int32_t>(), kChosen, tokens * kChosen, to, nullptr); });
  }
}

void gates(Gpu& gpu, std::int64_t rows) {
  const Buffer gate_up = noise(gpu, DType::bf16, rows, 1536), act = noise(gpu, DType::bf16, rows, 768);
  const double part = 2.0 * static_cast<double>(rows) * 768;
  report("experts' gate", time_us(*gpu.ops, [&] { gpu.ops->gate_forward({gate_up, Tensor(), Tensor(), GateRule(), act}); }), 3 * part, 0);
  report("experts' gate back", time_us(*gpu.ops, [&] { gpu.ops->gate_backward({gate_up, Tensor(), Tensor(), GateRule(), act, Tensor()}); }), 6 * part, 0);
}

}  // namespace

int main() {
  Gpu gpu(DType::bf16, std::size_t{20} << 30);
  Rows rows(gpu);
  in_16_bits_and_e4m3(gpu, rows);
  rows_to_e4m3(gpu, rows);
  with_lora(gpu, rows);
  gates(gpu, rows.total());
  return 0;
}
