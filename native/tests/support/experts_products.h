// The products of a mixture's experts, with LoRA, against float64: rows of one expert, of none, and of many.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "pipelora/ops/ops.h"
#include "tests/support/e4m3_values.h"

namespace pipelora::test {

struct ProductsCase {
  std::int64_t in, out;
  std::vector<std::int64_t> rows;     // of each expert
  std::int64_t together = 1, rank = 0;
  std::vector<std::int64_t> parts{};  // of an expert; empty: one
  bool bias = false;
  HoldSpec hold{};

  /// Products multiply e4m3 numbers: asked for, and the widths suit.
  bool multiplies_e4m3(DType compute) const {
    const auto whole = [](std::int64_t n) { return n % 16 == 0; };
    return hold.fp8 && compute != DType::f32 && whole(in) && whole(out) && std::all_of(parts.begin(), parts.end(), whole);
  }
  std::string name() const {
    return shape_text(out, in) + ", " + std::to_string(rows.size()) + " experts of up to " +
           std::to_string(*std::max_element(rows.begin(), rows.end())) + " rows, " + std::to_string(together) + " a weight, r " + std::to_string(rank);
  }
};

/// What a result is held against: the same numbers multiplied in float64, or those that the same case has where they are not rounded to e4m3.
enum class Against { same_numbers, unrounded };

/// `bench` and `random` as in try_experts; `compare(what, got, expected, dtype, against)`; `load(weight, part, values, rows, in, hold)`;
/// `seen(values, rows, in, hold)`: what a product in the compute dtype sees of a weight's part.
template <class Bench, class Compare, class Random, class Load, class Seen>
void try_products(Bench& bench, const ProductsCase& c, DType dtype, Compare&& compare, Random&& random, Load&& load, Seen&& seen) {
  using Values = std::vector<double>;
  Ops& ops = *bench.ops;
  const auto experts = static_cast<std::int64_t>(c.rows.size());
  const std::vector<std::int64_t> parts = c.parts.empty() ? std::vector{c.out} : c.parts;
  Values starts(1, 0.0);
  for (const std::int64_t n : c.rows) starts.push_back(starts.back() + static_cast<double>(n));
  const auto total = static_cast<std::int64_t>(starts.back());
  const auto at = [](std::int64_t row, std::int64_t width, std::int64_t column) { return static_cast<std::size_t>(row * width + column); };

  unsigned seed = 900;
  std::vector<std::unique_ptr<LinearWeight>> weights;
  Values weight, bias;  // [experts * out, in] and [experts * out]
  for (std::int64_t first = 0; first < experts; first += c.together) {
    std::vector<std::int64_t> rows;
    for (std::int64_t e = 0; e < c.together; ++e) rows.insert(rows.end(), parts.begin(), parts.end());
    weights.push_back(ops.create_linear(c.in, rows, c.bias));
    weights.back()->expect_lora(c.rank);
    weights.back()->expect_matrices(c.together);
    for (std::size_t part = 0; part < rows.size(); ++part) {
      const Values values = random(rows[part] * c.in, 0.05, DType::f32, ++seed), shift = random(rows[part], 1, dtype, ++seed);
      const std::vector<float> shifts(shift.begin(), shift.end());
      load(*weights.back(), part, values, rows[part], c.in, c.hold);
      if (c.bias) weights.back()->load_bias(part, {shifts.data(), DType::f32, 1, rows[part]});
      const Values held = seen(values, rows[part], c.in, c.hold);
      weight.insert(weight.end(), held.begin(), held.end());
      bias.insert(bias.end(), shift.begin(), shift.end());
    }
  }

  const std::int64_t r = c.rank;
  const float scale = 0.75f;
  const Values a = random(experts * r * c.in, 0.1, DType::f32, ++seed), bt = random(experts * r * c.out, 0.1, DType::f32, ++seed);
  Values grad_a = random(experts * r * c.in, 1, DType::f32, ++seed), grad_bt = random(experts * r * c.out, 1, DType::f32, ++seed);
  const auto held_a = bench.put(a, DType::f32, experts * r, c.in), held_bt = bench.put(bt, DType::f32, experts * r, c.out),
             held_grad_a = bench.put(grad_a, DType::f32, experts * r, c.in), held_grad_bt = bench.put(grad_bt, DType::f32, experts * r, c.out);
  std::vector<LoraView> views;
  for (std::int64_t e = 0; r > 0 && e < experts; ++e) {
    const auto own = [&](const Tensor& all) { return all.row_range(e * r, r); };
    views.push_back({own(held_a), own(held_bt), own(held_grad_a), own(held_grad_bt), scale});
  }

  const Values x = random(total * c.in, 1, dtype, ++seed), dy = random(total * c.out, 1, dtype, ++seed);
  Values inner(static_cast<std::size_t>(total * r)), inner_grad(inner), y(dy.size()), dx(x.size());
  // What the products see.
  const bool eight = c.multiplies_e4m3(dtype);
  Values x_seen = x, dy_seen = dy, w = weight, w_back = weight, plain_y, plain_dx;
  if (eight) {
    for (std::int64_t row = 0; row < total; ++row) {
      in_e4m3(x_seen.data() + row * c.in, c.in, 1);
      in_e4m3(dy_seen.data() + row * c.out, c.out, 1);
    }
    for (std::int64_t o = 0; o < experts * c.out; ++o) in_e4m3(w.data() + o * c.in, c.in, 1);
    for (std::int64_t e = 0; e < experts; ++e)
      for (std::int64_t i = 0; i < c.in; ++i) in_e4m3(w_back.data() + e * c.out * c.in + i, c.out, c.in);
    plain_y.resize(y.size());
    plain_dx.resize(dx.size());
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    for (auto row = static_cast<std::int64_t>(starts[static_cast<std::size_t>(e)]); row < static_cast<std::int64_t>(starts[static_cast<std::size_t>(e) + 1]); ++row) {
      for (std::int64_t k = 0; k < r; ++k) {
        double sum = 0, back = 0;
        for (std::int64_t i = 0; i < c.in; ++i) sum += x[at(row, c.in, i)] * a[at(e * r + k, c.in, i)];
        for (std::int64_t o = 0; o < c.out; ++o) back += dy[at(row, c.out, o)] * bt[at(e * r + k, c.out, o)];
        inner[at(row, r, k)] = sum;
        inner_grad[at(row, r, k)] = back * static_cast<double>(scale);
        for (std::int64_t i = 0; i < c.in; ++i) grad_a[at(e * r + k, c.in, i)] += x[at(row, c.in, i)] * inner_grad[at(row, r, k)];
        for (std::int64_t o = 0; o < c.out; ++o) grad_bt[at(e * r + k, c.out, o)] += static_cast<double>(scale) * sum * dy[at(row, c.out, o)];
      }
      for (std::int64_t o = 0; o < c.out; ++o) {
        double rest = c.bias ? bias[static_cast<std::size_t>(e * c.out + o)] : 0, sum = 0, plain = 0;
        for (std::int64_t k = 0; k < r; ++k) rest += static_cast<double>(scale) * inner[at(row, r, k)] * bt[at(e * r + k, c.out, o)];
        for (std::int64_t i = 0; i < c.in; ++i) sum += x_seen[at(row, c.in, i)] * w[at(e * c.out + o, c.in, i)];
        y[at(row, c.out, o)] = sum + rest;
        for (std::int64_t i = 0; eight && i < c.in; ++i) plain += x[at(row, c.in, i)] * weight[at(e * c.out + o, c.in, i)];
        if (eight) plain_y[at(row, c.out, o)] = plain + rest;
      }
      const auto back = [&](Values& to, const Values& from, const Values& by) {
        for (std::int64_t o = 0; o < c.out; ++o)
          for (std::int64_t i = 0; i < c.in; ++i) to[at(row, c.in, i)] += from[at(row, c.out, o)] * by[at(e * c.out + o, c.in, i)];
        for (std::int64_t k = 0; k < r; ++k)
          for (std::int64_t i = 0; i < c.in; ++i) to[at(row, c.in, i)] += inner_grad[at(row, r, k)] * a[at(e * r + k, c.in, i)];
      };
      back(dx, dy_seen, w_back);
      if (eight) back(plain_dx, dy, weight);
    }
  }

  const auto device_starts = bench.put(starts, DType::i32, 1, experts + 1);
  std::vector<std::int32_t> host;
  const ExpertRows rows{device_starts, &host};
  const ExpertsWeight all{weights, experts};
  const auto xd = bench.put(x, dtype, total, c.in), yd = bench.empty(dtype, total, c.out), dyd = bench.put(dy, dtype, total, c.out),
             dxd = bench.empty(dtype, total, c.in), id = bench.empty(DType::f32, total, r), gd = bench.empty(DType::f32, total, r);
  const Tensor none, i = r > 0 ? Tensor(id) : none, g = r > 0 ? Tensor(gd) : none;
  const std::string name = c.name() + ": ";
  const auto same = [&](const char* what, const Values& got, const Values& expected) { compare(name + what, got, expected, dtype, Against::same_numbers); };
  ops.experts_forward({xd, all, views, i, yd, rows});
  same("y", bench.get(yd), y);
  if (eight) compare(name + "y beside 16 bits", bench.get(yd), plain_y, dtype, Against::unrounded);
  if (r > 0) same("inner", bench.get(id), inner);
  ops.experts_input_grad({dyd, all, views, i, g, dxd, rows});
  same("dx", bench.get(dxd), dx);
  if (eight) compare(name + "dx beside 16 bits", bench.get(dxd), plain_dx, dtype, Against::unrounded);
  if (r == 0) return;
  same("inner's gradient", bench.get(gd), inner_grad);
  same("B's gradient", bench.get(held_grad_bt), grad_bt);
  ops.experts_a_grad({xd, gd, views, rows});
  same("A's gradient", bench.get(held_grad_a), grad_a);
  // LoRA's inner vectors and gradients without an output.
  ops.experts_forward({xd, all, views, id, none, rows});
  same("inner alone", bench.get(id), inner);
  ops.experts_input_grad({dyd, all, views, id, gd, none, rows});
  same("inner's gradient alone", bench.get(gd), inner_grad);
}

}  // namespace pipelora::test
