// The GPU's linear layers, held, 4-bit and 8-bit, with LoRA and dropout, against references in float64 over the values that
// the quantisation library gives.
#include <algorithm>
#include <cstring>

#include "ops/cuda/device/check.h"
#include "tests/gpu/cuda_fixture.h"
#include "tests/gpu/held_values.h"
#include "tests/gpu/linear_neighbours.h"
#include "tests/support/e4m3_values.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

struct Case {
  std::vector<int> lengths;
  std::int64_t in;
  std::vector<std::int64_t> parts;
  std::vector<std::int64_t> ranks;  // one a part; 0: no pair
  float dropout = 0;
  bool bias = false, residual = false;
  HoldSpec hold;
  double outlier = 0;  // magnitude of a few columns of x
};

bool in_eight_bits(const Case& c, DType compute) {
  const auto whole = [](std::int64_t n) { return n % 16 == 0; };
  return c.hold.fp8 && compute != DType::f32 && whole(c.in) && std::all_of(c.parts.begin(), c.parts.end(), whole);
}

/// x Wᵀ + bias as LLM.int8() computes it.
Values int8_product(const Values& x, std::int64_t tokens, const Values& weight, std::int64_t rows, std::int64_t in, const Values& bias,
                    const HoldSpec& hold, DType compute) {
  const std::vector<float> source = floats(weight), bf = floats(bias);
  std::vector<std::uint8_t> typed(x.size() * dtype_bytes(compute));
  for (std::size_t i = 0; i < x.size(); ++i) quant::store_float(typed.data(), format_of(compute), static_cast<std::int64_t>(i), static_cast<float>(x[i]));
  std::vector<std::int8_t> q(weight.size()), xq(x.size());
  std::vector<float> scb(static_cast<std::size_t>(rows)), absmax(static_cast<std::size_t>(tokens));
  quant::quantise_weight8(source.data(), quant::Float::f32, format_of(hold.dtype), rows, in, q.data(), scb.data(), 4);
  std::vector<std::uint8_t> found(static_cast<std::size_t>(in));
  std::vector<std::int32_t> columns(static_cast<std::size_t>(in));
  const quant::Activation act{typed.data(), format_of(compute), tokens, in, in};
  std::int64_t outliers = 0;
  if (hold.threshold > 0) {
    quant::mark_outlier_columns(act, hold.threshold, found.data());
    outliers = quant::list_outlier_columns(found.data(), in, columns.data());
  }
  quant::quantise_activation(act, hold.threshold, columns.data(), outliers, xq.data(), absmax.data());
  std::vector<float> y(static_cast<std::size_t>(tokens * rows));
  quant::int8_tile({act, xq.data(), absmax.data(), columns.data(), outliers}, {q.data(), scb.data(), rows, in},
                   bf.empty() ? nullptr : bf.data(), 0, tokens, 0, rows, y.data(), rows);
  return {y.begin(), y.end()};
}

void linear(Gpu& gpu, DType compute, const Case& c) {
  std::int64_t out = 0, inner_cols = 0;
  for (std::int64_t rows : c.parts) out += rows;
  for (std::int64_t r : c.ranks) inner_cols += r;
  const auto sequences = gpu.sequences(c.lengths);
  const std::int64_t tokens = sequences->tokens, in = c.in;
  const std::string name = std::string(dtype_name(compute)) + " " + hold_name(c.hold) + " " + std::to_string(tokens) + " x " + shape_text(out, in) +
                           " r " + std::to_string(inner_cols) + (c.dropout > 0 ? " dropout" : "") + ": ";

  Values x = random_values(tokens * in, 1, compute, 40);
  if (c.outlier > 0)
    for (std::int64_t t = 0; t < tokens; t += 3) x[static_cast<std::size_t>(t * in + t % 5 * 7)] = rounded(c.outlier, compute);
  const Values dy = random_values(tokens * out, 1, compute, 41);
  const Values residual = c.residual ? random_values(tokens * out, 1, compute, 42) : Values();
  const Values bias = c.bias ? random_values(out, 1, compute, 43) : Values();

  auto weight = gpu.ops->create_linear(in, c.parts, c.bias);
  weight->expect_lora(inner_cols);
  Values seen, raw;
  std::int64_t first_row = 0;
  for (std::size_t p = 0; p < c.parts.size(); ++p) {
    const Values part = random_values(c.parts[p] * in, 0.05, DType::f32, 50 + p);
    const std::vector<float> source = floats(part);
    weight->load(p, {source.data(), DType::f32, c.parts[p], in}, c.hold);
    const Values values = seen_values(part, c.parts[p], in, c.hold, compute);
    seen.insert(seen.end(), values.begin(), values.end());
    raw.insert(raw.end(), part.begin(), part.end());
    if (c.bias) {
      const std::vector<float> b(bias.begin() + first_row, bias.begin() + first_row + c.parts[p]);
      weight->load_bias(p, {b.data(), DType::f32, 1, c.parts[p]});
    }
    first_row += c.parts[p];
  }

  // Pairs.
  struct Pair {
    Values a, bt, grad_a, grad_bt;
    Gpu::Held held_a, held_bt, held_grad_a, held_grad_bt;
  };
  std::vector<Pair> pairs;
  std::vector<LoraView> views;
  std::int64_t column = 0, inner_column = 0;
  for (std::size_t p = 0; p < c.parts.size(); ++p) {
    const std::int64_t r = c.ranks.empty() ? 0 : c.ranks[p], rows = c.parts[p];
    if (r > 0) {
      Pair pair;
      pair.a = random_values(r * in, 0.1, DType::f32, 60 + p);
      pair.bt = random_values(r * rows, 0.1, DType::f32, 70 + p);
      pair.grad_a = random_values(r * in, 1, DType::f32, 80 + p);
      pair.grad_bt = random_values(r * rows, 1, DType::f32, 90 + p);
      pair.held_a = gpu.put(pair.a, DType::f32, r, in);
      pair.held_bt = gpu.put(pair.bt, DType::f32, r, rows);
      pair.held_grad_a = gpu.put(pair.grad_a, DType::f32, r, in);
      pair.held_grad_bt = gpu.put(pair.grad_bt, DType::f32, r, rows);
      LoraView view;
      view.a = pair.held_a;
      view.bt = pair.held_bt;
      view.grad_a = pair.held_grad_a;
      view.grad_bt = pair.held_grad_bt;
      view.scale = 1.5f;
      view.dropout = c.dropout;
      view.module_id = static_cast<std::uint32_t>(5 + p);
      view.first_column = column;
      view.first_inner = inner_column;
      views.push_back(view);
      pairs.push_back(std::move(pair));
      inner_column += r;
    }
    column += rows;
  }
  const DropoutKey key{0x123456789abcdefull, 17};
  const LoraSet lora{views, inner_cols, &key};
  const double kept = 1.0 / (1.0 - static_cast<double>(c.dropout));
  const auto keep = [&](const LoraView& view, std::int64_t t, std::int64_t col) {
    if (c.dropout <= 0) return true;
    const auto at = static_cast<std::size_t>(t);
    const std::uint64_t element = static_cast<std::uint64_t>(sequences->position.host[at]) * static_cast<std::uint64_t>(in) + static_cast<std::uint64_t>(col);
    const Philox bits = dropout_bits(key, static_cast<std::uint32_t>(sequences->row.host[at]), view.module_id, element / 8);
    const std::uint32_t lane = static_cast<std::uint32_t>(element % 8);
    return ((bits.v[lane / 2] >> (16 * (lane % 2))) & 0xFFFFu) >= dropout_threshold(c.dropout);
  };

  // References.
  Values inner(static_cast<std::size_t>(tokens * inner_cols)), inner_grad(inner.size()), y(static_cast<std::size_t>(tokens * out)), dx(x.size());
  const bool eight = in_eight_bits(c, compute);
  Values x_seen = x, dy_seen = dy, seen_back = seen;
  if (eight) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      in_e4m3(x_seen.data() + t * in, in, 1);
      in_e4m3(dy_seen.data() + t * out, out, 1);
    }
    for (std::int64_t o = 0; o < out; ++o) in_e4m3(seen.data() + o * in, in, 1);
    for (std::int64_t i = 0; i < in; ++i) in_e4m3(seen_back.data() + i, out, in);
  }
  const Values base = c.hold.quantisation == Quantisation::int8 && !eight ? int8_product(x, tokens, raw, out, in, bias, c.hold, compute) : Values();
#pragma omp parallel for
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double *xt = x.data() + t * in, *gt = dy.data() + t * out;
    double *yt = y.data() + t * out, *dt = dx.data() + t * in;
    for (std::int64_t o = 0; o < out; ++o) {
      const double *w = seen.data() + o * in, *w_back = seen_back.data() + o * in, *x_of = x_seen.data() + t * in;
      double sum = 0;
      if (base.empty()) {
        for (std::int64_t i = 0; i < in; ++i) sum += x_of[i] * w[i];
        if (c.bias) sum += bias[static_cast<std::size_t>(o)];
      } else {
        sum = base[static_cast<std::size_t>(t * out + o)];
      }
      if (c.residual) sum += residual[static_cast<std::size_t>(t * out + o)];
      yt[o] = sum;
      const double g = dy_seen[static_cast<std::size_t>(t * out + o)];
      for (std::int64_t i = 0; i < in; ++i) dt[i] += g * w_back[i];
    }
    for (std::size_t p = 0; p < views.size(); ++p) {
      const LoraView& view = views[p];
      const std::int64_t rows = view.bt.cols;
      for (std::int64_t r = 0; r < view.a.rows; ++r) {
        double dot = 0, back = 0;
        for (std::int64_t i = 0; i < in; ++i)
          if (keep(view, t, i)) dot += xt[i] * pairs[p].a[static_cast<std::size_t>(r * in + i)];
        dot *= kept;
        for (std::int64_t o = 0; o < rows; ++o) {
          const double b = pairs[p].bt[static_cast<std::size_t>(r * rows + o)];
          yt[view.first_column + o] += 1.5 * dot * b;
          back += gt[view.first_column + o] * b;
        }
        inner[static_cast<std::size_t>(t * inner_cols + view.first_inner + r)] = dot;
        inner_grad[static_cast<std::size_t>(t * inner_cols + view.first_inner + r)] = 1.5 * back;
        for (std::int64_t i = 0; i < in; ++i)
          if (keep(view, t, i)) dt[i] += kept * 1.5 * back * pairs[p].a[static_cast<std::size_t>(r * in + i)];
      }
    }
  }
  for (std::size_t p = 0; p < views.size(); ++p) {
    const LoraView& view = views[p];
    const std::int64_t rows = view.bt.cols;
#pragma omp parallel for
    for (std::int64_t r = 0; r < view.a.rows; ++r)
      for (std::int64_t t = 0; t < tokens; ++t) {
        const double left = inner_grad[static_cast<std::size_t>(t * inner_cols + view.first_inner + r)] * kept;
        const double right = inner[static_cast<std::size_t>(t * inner_cols + view.first_inner + r)] * 1.5;
        for (std::int64_t i = 0; i < in; ++i)
          if (keep(view, t, i)) pairs[p].grad_a[static_cast<std::size_t>(r * in + i)] += left * x[static_cast<std::size_t>(t * in + i)];
        for (std::int64_t o = 0; o < rows; ++o)
          pairs[p].grad_bt[static_cast<std::size_t>(r * rows + o)] += right * dy[static_cast<std::size_t>(t * out + view.first_column + o)];
      }
  }

  // The device, every operation twice over: the second time other shapes' weights have not been expanded in between.
  const double limit = limit_of(compute);
  // Up to eight ranks the kernels keep float32's quality; for more they round their operands to the compute dtype.
  const bool rounds = compute != DType::f32 && std::any_of(c.ranks.begin(), c.ranks.end(), [](std::int64_t r) { return r > 8; });
  const double lora_limit = rounds ? 5e-3 : 1e-4;
  auto xd = gpu.put(x, compute, tokens, in, 8), gd = gpu.put(dy, compute, tokens, out), yd = gpu.empty(compute, tokens, out),
       dd = gpu.empty(compute, tokens, in);
  Gpu::Held rd, id, zd;
  if (c.residual) rd = gpu.put(residual, compute, tokens, out);
  if (inner_cols > 0) {
    id = gpu.empty(DType::f32, tokens, inner_cols);
    zd = gpu.empty(DType::f32, tokens, inner_cols);
  }
  gpu.ops->linear_forward({xd, weight.get(), lora, id, rd, yd, sequences.get()});
  compare(name + "forward", gpu.get(yd), y, c.hold.quantisation == Quantisation::int8 ? std::max(limit, 1e-3) : limit);
  if (inner_cols > 0) {
    compare(name + "inner", gpu.get(id), inner, lora_limit);
    auto alone = gpu.empty(DType::f32, tokens, inner_cols);
    gpu.ops->linear_forward({xd, weight.get(), lora, alone, Tensor(), Tensor(), sequences.get()});
    compare(name + "inner alone", gpu.get(alone), inner, lora_limit);
  }
  gpu.ops->linear_input_grad({gd, weight.get(), lora, id, zd, dd, sequences.get()});
  compare(name + "input_grad", gpu.get(dd), dx, limit);
  const Values once = gpu.get(dd);
  for (std::size_t p = 0; p < views.size(); ++p) compare(name + "grad_bt", gpu.get(views[p].grad_bt), pairs[p].grad_bt, lora_limit);
  gpu.ops->linear_input_grad({gd, weight.get(), lora, id, zd, dd, sequences.get()});
  require(name + "input_grad again gives the same bits", gpu.get(dd) == once);
  if (eight) unread_norm(gpu, name, *weight, lora, compute, x, *sequences);
  if (inner_cols == 0) return;
  compare(name + "inner_grad", gpu.get(zd), inner_grad, lora_limit);
  gpu.ops->lora_a_grad({xd, zd, lora, sequences.get()});
  for (std::size_t p = 0; p < views.size(); ++p) {
    compare(name + "grad_a", gpu.get(views[p].grad_a), pairs[p].grad_a, lora_limit);
  }
  // A norm's output that is rounded otherwise by a bit may be another number in e4m3.
  beside_a_norm(gpu, name, *weight, lora, compute, x, gd, *sequences, eight ? 2e-2 : limit);
  for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh})
    behind_gate(gpu, name, activation, *weight, lora, compute, id, gd, *sequences, eight ? 2e-2 : limit);
}

/// Tokens have the same bits with whatever beside them, from five tokens on (Hopper).
void among_others(Gpu& gpu, DType compute, std::int64_t in, const std::vector<std::int64_t>& parts, const HoldSpec& hold) {
  constexpr std::int64_t kMost = 64, kRank = 8;
  std::int64_t out = 0;
  for (const std::int64_t rows : parts) out += rows;
  const auto weight = gpu.ops->create_linear(in, parts, false);
  weight->expect_lora(kRank);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const std::vector<float> source = floats(random_values(parts[p] * in, 0.05, DType::f32, 150 + p));
    weight->load(p, {source.data(), DType::f32, parts[p], in}, hold);
  }
  const auto a = gpu.put(random_values(kRank * in, 0.1, DType::f32, 160), DType::f32, kRank, in);
  const auto bt = gpu.put(random_values(kRank * parts[0], 0.1, DType::f32, 161), DType::f32, kRank, parts[0]);
  LoraView view;
  view.a = a;
  view.bt = bt;
  view.scale = 1.5f;
  const std::vector<LoraView> views{view};
  const LoraSet lora{views, kRank, nullptr};
  const auto x = gpu.put(random_values(kMost * in, 1, compute, 162), compute, kMost, in);
  const auto residual = gpu.put(random_values(kMost * out, 1, compute, 163), compute, kMost, out);
  const auto run = [&](std::int64_t first, std::int64_t count) {
    const auto sequences = gpu.sequences(std::vector<int>(static_cast<std::size_t>(count), 1));
    auto inner = gpu.empty(DType::f32, count, kRank), y = gpu.empty(compute, count, out);
    gpu.ops->linear_forward({x.view.row_range(first, count), weight.get(), lora, inner, residual.view.row_range(first, count), y, sequences.get()});
    return gpu.get(y);
  };
  const Values all = run(0, kMost);
  const std::string name = std::string(dtype_name(compute)) + " " + hold_name(hold) + " " + shape_text(out, in) + ": ";
  for (const std::int64_t count : {5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50, 63})
    for (const std::int64_t first : {std::int64_t{0}, kMost - count}) {
      const auto from = all.begin() + first * out;
      require(name + std::to_string(count) + " tokens from " + std::to_string(first) + " on are the same bits as among 64",
              run(first, count) == Values(from, from + count * out));
    }
}

}  // namespace

/// usage: cuda_linear [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{1} << 30);
    const DType half = dtype == DType::f32 ? DType::bf16 : dtype;
    linear(gpu, dtype, {{3, 1, 5}, 64, {96}, {}, 0, true, true, held(dtype)});
    linear(gpu, dtype, {{3, 1, 5}, 64, {64, 32, 32}, {8, 0, 4}, 0.1f, true, false, held(dtype)});
    linear(gpu, dtype, {{1}, 128, {64, 64}, {8, 8}, 0, false, true, held(half)});
    linear(gpu, dtype, {{7, 4}, 172, {64}, {3}, 0.25f, false, true, held(dtype)});
    linear(gpu, dtype, {{7, 4}, 172, {64}, {3}, 0, false, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{17, 16}, 128, {192}, {16}, 0.1f, true, false, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{17, 16}, 128, {64, 128}, {8, 8}, 0, false, false, four_bit(Quantisation::fp4, half, false, 128)});
    linear(gpu, dtype, {{1}, 128, {64, 128}, {8, 4}, 0, true, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{2, 1}, 1088, {70}, {8}, 0, true, true, four_bit(Quantisation::nf4, DType::f16, true)});
    linear(gpu, dtype, {{4}, 96, {40}, {}, 0, false, false, four_bit(Quantisation::fp4, half, false, 32)});
    // What stands behind a gate: ranks of one tile, of two and beyond what is fused, widths off tiles and odd ones, tokens few and many.
    for (const std::int64_t in : {64, 104, 333, 1096})
      for (const std::int64_t rank : {1, 8, 9, 16, 24}) {
        if (asked.small && (in == 1096 || rank == 9)) continue;
        linear(gpu, dtype, {in == 104 ? std::vector{3} : std::vector{70, 1, 60}, in, {24}, {rank}, rank % 2 == 0 ? 0.1f : 0.0f, false, false, held(dtype)});
        linear(gpu, dtype, {{66}, in, {16, 8}, {rank, 3}, rank % 2 == 0 ? 0.0f : 0.2f, false, false, held(dtype)});
      }
    // Few tokens: rows that end within a tile and begin within a block of codes, several parts, more tiles than multiprocessors,
    // columns that end within a step, scales of 64 to 256 columns.
    linear(gpu, dtype, {{1}, 2080, {300, 40, 24}, {8, 0, 12}, 0, true, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{3, 2, 3}, 2144, {90, 33}, {4, 8}, 0, true, false, four_bit(Quantisation::nf4, half, true, 32)});
    linear(gpu, dtype, {{5}, 96, {7000}, {}, 0, false, true, four_bit(Quantisation::fp4, half, true)});
    linear(gpu, dtype, {{1, 1}, 4096, {50}, {8}, 0, false, true, four_bit(Quantisation::nf4, half, false, 256), 300.0});
    linear(gpu, dtype, {{9}, 64, {33}, {}, 0, false, false, four_bit(Quantisation::nf4, DType::f32, false)});
    linear(gpu, dtype, {{1, 9, 6}, 448, {130, 62}, {8, 4}, 0, true, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{17, 1}, 1152, {257}, {16}, 0, true, false, four_bit(Quantisation::fp4, half, false, 64)});
    linear(gpu, dtype, {{30, 2, 8}, 2208, {128, 1, 5}, {8, 0, 3}, 0.1f, false, true, four_bit(Quantisation::nf4, half, true, 32)});
    linear(gpu, dtype, {{64}, 4160, {140}, {}, 0, true, true, four_bit(Quantisation::nf4, half, true, 256)});
    linear(gpu, dtype, {{64, 1}, 512, {140}, {8}, 0, true, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{33}, 128, {96}, {8}, 0.1f, true, true, int8(half, 6.0f), 8.0});
    linear(gpu, dtype, {{33}, 96, {64, 32}, {8, 8}, 0, false, false, int8(half, 0.0f)});
    // Widths that are no multiple of four or sixteen, and outliers in many columns.
    linear(gpu, dtype, {{33}, 100, {65}, {8}, 0.1f, true, true, int8(half, 6.0f), 8.0});
    linear(gpu, dtype, {{70, 5}, 61, {3, 7}, {4, 0}, 0, true, false, int8(half, 6.0f), 30.0});
    linear(gpu, dtype, {{1}, 77, {130}, {2}, 0, false, true, int8(half, 6.0f), 10.0});
    // In e4m3: every form held, kept or not, parts with and without pairs, widths that do not suit.
    linear(gpu, dtype, {{3, 1, 5}, 64, {96}, {}, 0, true, true, fp8(held(half))});
    linear(gpu, dtype, {{33, 1}, 128, {64, 32, 32}, {8, 0, 4}, 0.1f, true, true, fp8(four_bit(Quantisation::nf4, half, true))});
    linear(gpu, dtype, {{33, 1}, 144, {64, 48}, {8, 3}, 0, true, true, fp8(four_bit(Quantisation::fp4, half, false, 128), true)});
    linear(gpu, dtype, {{5, 12}, 192, {144, 16}, {8, 2}, 0.1f, true, true, fp8(four_bit(Quantisation::fp4, half, false, 128))});
    linear(gpu, dtype, {{40}, 320, {336}, {16}, 0, false, true, fp8(four_bit(Quantisation::nf4, DType::f32, true), true)});
    linear(gpu, dtype, {{17}, 128, {272}, {8}, 0, false, true, fp8(four_bit(Quantisation::nf4, half, true, 32))});
    linear(gpu, dtype, {{17}, 272, {400}, {24}, 0.1f, false, true, fp8(int8(half, 6.0f))});
    linear(gpu, dtype, {{1}, 128, {96}, {8}, 0, true, false, fp8(four_bit(Quantisation::nf4, DType::f16, true))});
    linear(gpu, dtype, {{9}, 72, {40}, {8}, 0.1f, true, true, fp8(four_bit(Quantisation::nf4, half, true))});
    // A token, a block that is not full, blocks of half as many warps (more than 264); columns that end within a warp's turn.
    for (const std::int64_t cols : {16, 48, 272, 528, 4096})
      for (const std::int64_t rows : {1, 7, 8, 33}) {
        if (dtype == DType::f32) continue;
        norm_in_e4m3(gpu, dtype, rows, cols, {}, 0);
        norm_in_e4m3(gpu, dtype, rows, cols, {8}, 0.1f);
        norm_in_e4m3(gpu, dtype, rows, cols, {3, 8}, 0);
        norm_in_e4m3(gpu, dtype, rows, cols, {8, 1, 5}, 0.25f);
        norm_in_e4m3(gpu, dtype, rows, cols, {16, 16, 16}, 0.1f);
      }
    if (dtype != DType::f32 && !asked.small) {
      norm_in_e4m3(gpu, dtype, 2305, 144, {8, 8, 8}, 0.1f);
      norm_in_e4m3(gpu, dtype, 2305, 144, {}, 0);
      norm_in_e4m3(gpu, dtype, 40, 18944, {8}, 0.1f);
      norm_in_e4m3(gpu, dtype, 40, 18944, {}, 0);
    }
    if (dtype != DType::f32 && cuda::on_hopper()) {
      among_others(gpu, dtype, 1088, {96, 40}, four_bit(Quantisation::nf4, half, true));
      if (!asked.small) among_others(gpu, dtype, 11008, {4096}, four_bit(Quantisation::nf4, half, true));
      if (!asked.small) among_others(gpu, dtype, 4096, {11008, 11008}, four_bit(Quantisation::fp4, half, false));
    }
    if (asked.small) continue;
    linear(gpu, dtype, {{5}, 4096, {12288}, {8}, 0, false, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{40}, 11008, {4096}, {8}, 0, false, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{300, 77}, 2048, {1024, 128, 128}, {16, 16, 16}, 0.1f, true, false, fp8(four_bit(Quantisation::nf4, half, true))});
    linear(gpu, dtype, {{515}, 1024, {512, 512}, {64, 64}, 0.1f, false, false, fp8(held(half))});
    linear(gpu, dtype, {{257}, 4096, {320}, {8}, 0, false, true, fp8(held(DType::f32), true)});
    linear(gpu, dtype, {{200, 1, 99}, 1024, {1536}, {8}, 0.1f, true, false, four_bit(Quantisation::nf4, half, true, 64, true)});
    linear(gpu, dtype, {{515}, 1024, {512, 512}, {64, 64}, 0.1f, false, false, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{300}, 2048, {1024, 128, 128}, {8, 8, 8}, 0, true, false, held(half)});
    linear(gpu, dtype, {{300}, 1024, {768}, {16}, 0.05f, false, true, int8(half, 6.0f), 20.0});
    linear(gpu, dtype, {{8192}, 64, {128}, {8}, 0.1f, false, true, held(dtype)});
    linear(gpu, dtype, {{700, 333}, 64, {8192, 8192}, {8, 4}, 0, false, false, held(dtype)});
    linear(gpu, dtype, {{700, 333}, 8192, {64}, {8}, 0.1f, false, false, held(dtype)});
    linear(gpu, dtype, {{301}, 1096, {72}, {12}, 0.1f, false, false, held(dtype)});
    linear(gpu, dtype, {{301}, 1096, {72}, {12}, 0, false, false, held(dtype)});
    // Ranks beyond what fused kernels take, odd ones among them, and tiles that are not powers of two.
    linear(gpu, dtype, {{300}, 2048, {1024, 128, 128}, {16, 16, 16}, 0.1f, true, false, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{300}, 2048, {1024, 128, 128}, {12, 12, 12}, 0, true, false, held(dtype)});
    linear(gpu, dtype, {{77}, 512, {256, 256}, {24, 8}, 0.1f, false, false, held(dtype)});
    linear(gpu, dtype, {{77, 1}, 520, {264}, {129}, 0.1f, false, true, four_bit(Quantisation::nf4, half, true)});
    linear(gpu, dtype, {{129}, 512, {320}, {40}, 0, false, true, int8(half, 6.0f), 20.0});
    linear(gpu, dtype, {{129}, 172, {68, 60}, {17, 3}, 0.1f, false, false, held(dtype)});
    linear(gpu, dtype, {{5}, 512, {320}, {256}, 0.1f, true, false, held(dtype)});
  }
  return finish();
}
