// Times what LoRA on every expert of a mixture adds, one line an operation. usage: cuda_expert_ops
#include <string>
#include <utility>
#include <vector>

#include "bench/timing.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

/// Rank 16 at Qwen3-30B-A3B's shape, 3,072 tokens: 128 experts of 129 to 255 rows. Bytes: of activations, A, B and their gradients.
void experts(Gpu& gpu) {
  constexpr std::int64_t kExperts = 128, kRank = 16;
  std::vector<std::int32_t> starts(1, 0);
  for (std::int64_t e = 0; e < kExperts; ++e) starts.push_back(starts.back() + static_cast<std::int32_t>(192 + (e * 37 % 127) - 63));
  const std::int64_t rows = starts.back();
  Indices first;
  first.host = starts;
  gpu.upload(first);
  const ExpertRows own{Tensor(const_cast<std::int32_t*>(first.device.as<std::int32_t>()), DType::i32, 1, kExperts + 1), &starts};
  for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{2048, 1536}, {768, 2048}}) {
    std::vector<std::unique_ptr<LinearWeight>> weights;
    const std::int64_t together = gpu.ops->experts_together(kExperts, in, out);
    std::vector<std::uint16_t> source(static_cast<std::size_t>(in * out), to_bf16(0.02f).bits);
    for (std::int64_t at = 0; at < kExperts; at += together) {
      weights.push_back(gpu.ops->create_linear(in, std::vector<std::int64_t>(static_cast<std::size_t>(together), out), false));
      HoldSpec hold;
      hold.dtype = DType::bf16;
      for (std::int64_t e = 0; e < together; ++e) weights.back()->load(static_cast<std::size_t>(e), {source.data(), DType::bf16, out, in}, hold);
    }
    const ExpertsWeight all{weights, kExperts};
    const Buffer a = noise(gpu, DType::f32, kExperts * kRank, in), bt = noise(gpu, DType::f32, kExperts * kRank, out), grad_a = noise(gpu, DType::f32, kExperts * kRank, in),
                 grad_bt = noise(gpu, DType::f32, kExperts * kRank, out);
    std::vector<LoraView> views;
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const auto part = [&](const Buffer& whole) { return whole.tensor().row_range(e * kRank, kRank); };
      views.push_back({part(a), part(bt), part(grad_a), part(grad_bt), 1.0f});
    }
    const Buffer x = noise(gpu, DType::bf16, rows, in), dy = noise(gpu, DType::bf16, rows, out), y = noise(gpu, DType::bf16, rows, out), dx = noise(gpu, DType::bf16, rows, in);
    const Buffer inner = noise(gpu, DType::f32, rows, kRank), inner_grad = noise(gpu, DType::f32, rows, kRank);
    const std::string at = "experts " + shape_text(out, in) + ", r 16: ";
    const auto bytes = [&](std::int64_t width, double of_pair) { return static_cast<double>(width) * (2.0 * static_cast<double>(rows) + of_pair * kExperts * kRank); };
    const double flops = 2.0 * static_cast<double>(rows * in * out);
    report(at + "inner vectors", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, views, inner, Tensor(), own}); }), bytes(in, 4), 0);
    report(at + "forward", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, views, inner, y, own}); }), 0, flops);
    report(at + "forward without LoRA", time_us(*gpu.ops, [&] { gpu.ops->experts_forward({x, all, {}, Tensor(), y, own}); }), 0, flops);
    report(at + "gradients of B and of inner vectors", time_us(*gpu.ops, [&] { gpu.ops->experts_input_grad({dy, all, views, inner, inner_grad, Tensor(), own}); }), bytes(out, 12), 0);
    report(at + "gradient of A", time_us(*gpu.ops, [&] { gpu.ops->experts_a_grad({x, inner_grad, views, own}); }), bytes(in, 8), 0);
  }
  const Buffer gate_up = noise(gpu, DType::bf16, rows, 1536), act = noise(gpu, DType::bf16, rows, 768);
  const double part = 2.0 * static_cast<double>(rows) * 768;
  report("experts' gate", time_us(*gpu.ops, [&] { gpu.ops->gate_forward({gate_up, Tensor(), Tensor(), GateRule(), act}); }), 3 * part, 0);
  report("experts' gate back", time_us(*gpu.ops, [&] { gpu.ops->gate_backward({gate_up, Tensor(), Tensor(), GateRule(), act, Tensor()}); }), 6 * part, 0);
}

}  // namespace

int main() {
  Gpu gpu(DType::bf16, std::size_t{20} << 30);
  experts(gpu);
  return 0;
}
