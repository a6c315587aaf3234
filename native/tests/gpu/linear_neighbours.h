// Linears of a GPU together with what stands beside them, a norm before or a gate behind, as devices may do it in one pass: against one after
// the other, which cuda_linear holds against float64.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/pointwise/pointwise.h"
#include "tests/gpu/cuda_fixture.h"
#include "tests/gpu/held_values.h"

namespace pipelora::test {

/// A linear behind a norm: in one pass, as devices may, against one after the other, which the rest of this program checks.
inline void beside_a_norm(Gpu& gpu, const std::string& name, const LinearWeight& weight, const LoraSet& lora, DType compute, const Values& x,
                   const Tensor& dy, const Sequences& sequences, double forward_limit) {
  const std::int64_t tokens = dy.rows, in = weight.in, room = gpu.ops->room_for_lora(lora.inner_cols);
  const auto wide = (in + room + 7) / 8 * 8;
  auto xd = gpu.put(x, compute, tokens, in, 8);
  const auto norm = gpu.put(random_values(in, 0.3, DType::f32, 21), DType::f32, 1, in);
  const auto residual = gpu.put(random_values(tokens * in, 1, compute, 22), compute, tokens, in);
  constexpr float kEps = 1e-6f;
  Values y[2], inner[2], normed[2], dx[2], again[2];
  for (const int fused : {0, 1}) {
    auto storage = gpu.empty(compute, tokens, wide), id = gpu.empty(DType::f32, tokens, lora.inner_cols), yd = gpu.empty(compute, tokens, weight.out);
    LinearForward forward{storage.view.columns(0, in), &weight, lora, id, Tensor(), yd, &sequences, true};
    const auto run = [&] {
      if (fused != 0)
        gpu.ops->norm_linear_forward(xd, norm, kEps, forward);
      else
        gpu.ops->Ops::norm_linear_forward(xd, norm, kEps, forward);
    };
    run();
    y[fused] = gpu.get(yd);
    inner[fused] = gpu.get(id);
    normed[fused] = gpu.get(forward.x);
    forward.inner_known = true;
    run();
    require(name + (fused != 0 ? "fused " : "") + "forward with known inner vectors gives the same bits", gpu.get(yd) == y[fused]);

    auto zd = gpu.empty(DType::f32, tokens, lora.inner_cols), dd = gpu.empty(compute, tokens, in), to = gpu.empty(compute, tokens, in);
    const LinearInputGrad back{dy, &weight, lora, id, zd, dd, &sequences};
    const RmsNormBackward behind{xd, norm, dd, residual, to, dd, kEps};
    if (fused != 0)
      gpu.ops->linear_input_grad_norm(back, behind);
    else
      gpu.ops->Ops::linear_input_grad_norm(back, behind);
    dx[fused] = gpu.get(to);
    again[fused] = gpu.get(dd);
  }
  const double limit = limit_of(compute);
  compare(name + "norm and forward", y[1], y[0], forward_limit);
  compare(name + "norm and inner", inner[1], inner[0], 1e-3);
  compare(name + "norm", normed[1], normed[0], limit);
  compare(name + "input_grad and norm's", dx[1], dx[0], limit);
  compare(name + "norm's output again", again[1], again[0], limit);
}

/// A product in e4m3 behind a norm whose output nobody else reads: with whatever in its memory, the bits of the norm, and then the product.
inline void unread_norm(Gpu& gpu, const std::string& name, const LinearWeight& weight, const LoraSet& lora, DType compute, const Values& x,
                 const Sequences& sequences) {
  const std::int64_t tokens = sequences.tokens, in = weight.in, wide = (in + gpu.ops->room_for_lora(lora.inner_cols) + 7) / 8 * 8;
  const auto xd = gpu.put(x, compute, tokens, in, 8);
  const auto norm = gpu.put(random_values(in, 0.3, DType::f32, 21), DType::f32, 1, in);
  struct Made {
    Values y, inner, normed;
  };
  const auto run = [&](bool apart, bool unread, const Values& known) {
    auto storage = gpu.empty(compute, tokens, wide), yd = gpu.empty(compute, tokens, weight.out);
    Gpu::Held id;
    if (lora.inner_cols > 0) id = known.empty() ? gpu.empty(DType::f32, tokens, lora.inner_cols) : gpu.put(known, DType::f32, tokens, lora.inner_cols);
    LinearForward call{storage.view.columns(0, in), &weight, lora, id, Tensor(), yd, &sequences, true, !known.empty()};
    call.x_unread = unread;
    if (apart)
      gpu.ops->Ops::norm_linear_forward(xd, norm, 1e-6f, call);
    else
      gpu.ops->norm_linear_forward(xd, norm, 1e-6f, call);
    return Made{gpu.get(yd), lora.inner_cols > 0 ? gpu.get(id) : Values(), unread ? Values() : gpu.get(call.x)};
  };
  const Made read = run(false, false, {}), unread = run(false, true, {});
  require(name + "a norm's output that nobody reads: the same bits", unread.y == read.y && unread.inner == read.inner);
  if (lora.inner_cols > 0) {
    require(name + "and with known inner vectors", run(false, true, read.inner).y == read.y && run(false, false, read.inner).y == read.y);
    // The rows that were written, through the pass of its own.
    auto yd = gpu.empty(compute, tokens, weight.out);
    const auto id = gpu.put(read.inner, DType::f32, tokens, lora.inner_cols), rows = gpu.put(read.normed, compute, tokens, in);
    gpu.ops->linear_forward({rows, &weight, lora, id, Tensor(), yd, &sequences, false, true});
    require(name + "and as by the pass over the norm's output", gpu.get(yd) == read.y);
  } else {
    require(name + "and as by the pass over the norm's output", run(true, false, {}).y == unread.y);
  }
}

/// Rows in e4m3 by a norm's kernels against the pass over their output: codes and scales, with the output written or not.
inline void norm_in_e4m3(Gpu& gpu, DType compute, std::int64_t rows, std::int64_t cols, const std::vector<std::int64_t>& ranks, float dropout) {
  const std::string name = std::string(dtype_name(compute)) + " norm in e4m3 " + shape_text(rows, cols) + (dropout > 0 ? " dropout" : "") + " " +
                           std::to_string(ranks.size()) + " pairs: ";
  Values values = random_values(rows * cols, 1, compute, 170);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) {
      double& v = values[static_cast<std::size_t>(r * cols + c)];
      if (r % 7 == 1) v = 0;                                               // zeros
      if (r % 7 == 2) v = rounded(v * 3e-5, compute);                      // below what eps leaves
      if (r % 7 == 3 && c % 97 == 5) v = rounded(v * 3000, compute);       // a few far out
      if (r % 7 == 4 && c == cols / 2) v = std::numeric_limits<double>::quiet_NaN();
      if (r % 7 == 5 && c == cols - 1) v = std::numeric_limits<double>::infinity();
    }
  const auto x = gpu.put(values, compute, rows, cols, 16), weight = gpu.put(random_values(cols, 1, DType::f32, 171), DType::f32, 1, cols);
  const auto sequences = gpu.sequences({static_cast<int>(rows)});
  std::vector<Gpu::Held> held;
  std::vector<LoraView> views;
  std::int64_t inner_cols = 0;
  for (const std::int64_t r : ranks) {
    LoraView view;
    view.a = held.emplace_back(gpu.put(random_values(r * cols, 0.1, DType::f32, 172 + static_cast<std::uint64_t>(inner_cols)), DType::f32, r, cols));
    view.scale = 1.5f;
    view.dropout = dropout;
    view.module_id = static_cast<std::uint32_t>(3 + inner_cols);
    view.first_inner = inner_cols;
    inner_cols += r;
    views.push_back(view);
  }
  const DropoutKey key{77, 5};
  const LoraSet lora{views, inner_cols, &key};
  struct Made {
    std::vector<std::uint8_t> y, codes, scales, inner;
    bool operator==(const Made&) const = default;
  };
  const auto bytes = [&](const Tensor& tensor) {
    std::vector<std::uint8_t> all(tensor.bytes());
    gpu.ops->download(tensor, all.data());
    return all;
  };
  const auto made = [&](bool apart, bool writes, bool known) {
    auto y = gpu.empty(compute, rows, cols, 8), codes = gpu.empty(DType::f8, rows, cols, 16), scales = gpu.empty(DType::f32, 1, rows);
    Gpu::Held inner;
    if (inner_cols > 0) inner = known ? gpu.put(Values(static_cast<std::size_t>(rows * inner_cols), 0.5), DType::f32, rows, inner_cols) : gpu.empty(DType::f32, rows, inner_cols);
    const cuda::RowCodes to{codes.view.as<std::uint8_t>(), codes.view.stride, scales.view.as<float>()};
    const Tensor written = apart || writes ? y.view : Tensor();
    cudaDeviceSynchronize();
    if (inner_cols > 0)
      cuda::rmsnorm_lora_inner(x, weight, 1e-6f, lora, known, sequences.get(), inner, written, 0, apart ? cuda::RowCodes() : to, nullptr);
    else if (apart)
      cuda::rmsnorm_forward(x, weight, 1e-6f, y, nullptr);
    else
      cuda::rmsnorm_rows(x, weight, 1e-6f, to, nullptr);
    if (apart) cuda::fp8_rows(y, to, nullptr);
    cudaDeviceSynchronize();
    Made all{writes ? bytes(y) : std::vector<std::uint8_t>(), bytes(codes), bytes(scales), inner_cols > 0 ? bytes(inner) : std::vector<std::uint8_t>()};
    return all;
  };
  for (const bool known : {false, true}) {
    if (known && inner_cols == 0) continue;
    const std::string with = known ? "known inner vectors, " : "";
    const Made apart = made(true, true, known);
    if (inner_cols > 0) require(name + with + "written in 16 bits too", made(false, true, known) == apart);
    Made alone = made(false, false, known);
    alone.y = apart.y;
    require(name + with + "in e4m3 alone", alone == apart);
  }
}

/// A linear behind a gate, likewise.
inline void behind_gate(Gpu& gpu, const std::string& called, Activation activation, const LinearWeight& weight, const LoraSet& lora, DType compute,
                 const Tensor& inner, const Tensor& dy, const Sequences& sequences, double forward_limit) {
  const std::string name = called + (activation == Activation::silu ? "SiLU: " : activation == Activation::gelu ? "GELU: " : "GELU by tanh: ");
  const std::int64_t tokens = dy.rows, in = weight.in, wide = (in + gpu.ops->room_for_lora(lora.inner_cols) + 7) / 8 * 8;
  {
    const auto both = gpu.put(random_values(tokens * 2 * in, 1.5, compute, 33), compute, tokens, 2 * in);
    const Tensor gate = both.view.columns(0, in), up = both.view.columns(in, in);
    Values y[2], made[2], act[2];
    for (const int fused : {0, 1}) {
      const auto storage = gpu.empty(compute, tokens, wide), id = gpu.empty(DType::f32, tokens, lora.inner_cols), yd = gpu.empty(compute, tokens, weight.out);
      const LinearForward forward{storage.view.columns(0, in), &weight, lora, id, Tensor(), yd, &sequences, true};
      if (fused != 0)
        gpu.ops->swiglu_linear_forward(gate, up, forward, activation);
      else
        gpu.ops->Ops::swiglu_linear_forward(gate, up, forward, activation);
      y[fused] = gpu.get(yd);
      made[fused] = gpu.get(id);
      act[fused] = gpu.get(forward.x);
    }
    compare(name + "gate and forward", y[1], y[0], forward_limit);
    compare(name + "gate and inner", made[1], made[0], 1e-3);
    compare(name + "gate", act[1], act[0], compute == DType::f32 ? 1e-6 : 1e-3);
  }
  const Values gate_up = random_values(tokens * 2 * in, 1, compute, 31);
  std::vector<Values> runs[3];  // dgate and dup, then each pair's gradient of A: one after the other, and twice in one pass
  for (std::vector<Values>& results : runs) {
    std::vector<LoraView> views(lora.pairs.begin(), lora.pairs.end());
    std::vector<Gpu::Held> grads;
    for (LoraView& view : views)
      view.grad_a = grads.emplace_back(gpu.put(random_values(view.a.size(), 1, DType::f32, 32), DType::f32, view.a.rows, in));
    auto both = gpu.put(gate_up, compute, tokens, 2 * in), zd = gpu.empty(DType::f32, tokens, lora.inner_cols), dx = gpu.empty(compute, tokens, in);
    const Tensor gate = both.view.columns(0, in), up = both.view.columns(in, in);
    const LinearInputGrad back{dy, &weight, {views, lora.inner_cols, lora.dropout}, inner, zd, dx, &sequences};
    if (&results == &runs[0])
      gpu.ops->Ops::swiglu_linear_input_grad(back, gate, up, gate, up, activation);
    else
      gpu.ops->swiglu_linear_input_grad(back, gate, up, gate, up, activation);
    results.push_back(gpu.get(both));
    for (const LoraView& view : views) results.push_back(gpu.get(view.grad_a));
  }
  compare(name + "input_grad and the gate's", runs[1][0], runs[0][0], limit_of(compute));
  for (std::size_t i = 1; i < runs[0].size(); ++i) compare(name + "grad_a behind the gate", runs[1][i], runs[0][i], compute == DType::f32 ? 1e-4 : 1e-3);
  require(name + "in one pass again gives the same bits", runs[1] == runs[2]);
}

}  // namespace pipelora::test
