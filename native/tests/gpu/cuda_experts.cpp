// The GPU's operations of a mixture of experts against float64.
#include <array>

#include "tests/gpu/cuda_fixture.h"
#include "tests/support/experts_products.h"
#include "tests/support/experts_reference.h"
#include "tests/gpu/held_values.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

/// Shapes off tiles and on them, experts without rows, with one, with more than a tile; every form of weight.
std::vector<ProductsCase> products(DType dtype, bool small) {
  const HoldSpec plain = held(dtype), nf4 = four_bit(Quantisation::nf4, dtype, true), fp4 = four_bit(Quantisation::fp4, dtype, false);
  std::vector<ProductsCase> all;
  const std::vector<std::vector<std::int64_t>> rows{{0, 1, 0, 130, 64, 3, 65, 0}, {200, 0, 0, 0}, {1, 1, 1, 1}, {33, 257, 128, 127}};
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes{{64, 256}, {72, 40}, {200, 264}, {256, 512}, {136, 520}};
  std::size_t number = 0;
  for (const auto& [in, out] : shapes)
    for (const auto& count : rows)
      for (const std::int64_t rank : {0, 1, 4, 8, 16, 24, 64, 72}) {
        if (small && number % 7 != 0) {
          ++number;
          continue;
        }
        ProductsCase c{in, out, count};
        c.together = std::vector<std::int64_t>{1, 2, 4}[number % 3];
        c.rank = rank;
        if (number % 4 == 1) c.parts = {out / 2, out / 2};
        c.bias = number % 5 == 2;
        c.hold = std::vector{plain, nf4, fp4}[number % 3];
        if (number % 11 == 5) c.hold = int8(dtype, 6);
        all.push_back(c);
        ++number;
      }
  // Experts and columns that fill a GPU, half of one, a quarter; an expert with thousands of rows beside one with one.
  if (!small)
    for (const std::int64_t out : {520, 264, 72}) {
      ProductsCase many{72, out, std::vector<std::int64_t>(128)};
      for (std::size_t e = 0; e < many.rows.size(); ++e) many.rows[e] = static_cast<std::int64_t>(e % 5 == 1 ? e % 70 : 0);
      many.together = 64;
      many.rank = out == 264 ? 8 : 16;
      many.hold = plain;
      all.push_back(many);
      all.push_back({.in = 136, .out = out, .rows = {0, 3001, 1, 64}, .together = 2, .rank = out == 72 ? 72 : 16, .hold = plain});
    }
  all.push_back({.in = 37, .out = 45, .rows = {3, 9}, .together = 2, .rank = 3, .hold = plain});  // no kernel for all experts takes it
  return all;
}

/// An expert's gradients are the same bits again, and whatever rows others have.
void repeated(Gpu& gpu, DType dtype, std::int64_t experts, std::int64_t columns, std::int64_t rank) {
  const std::int64_t own_rows = 333, whose = experts / 2;
  const Values weights(static_cast<std::size_t>(experts * rank * columns), 0.0);
  const auto a = gpu.put(weights, DType::f32, experts * rank, columns), bt = gpu.put(weights, DType::f32, experts * rank, columns);
  const Values x = random_values(own_rows * columns, 1, dtype, 71), inner_grad = random_values(own_rows * rank, 1, DType::f32, 72);
  /// Gradients of A of the expert `whose`, when each other one has `others` rows.
  const auto gradient = [&](std::int64_t others) {
    const auto held = gpu.put(weights, DType::f32, experts * rank, columns);
    Values starts(1, 0.0), all_x, all_grad;
    for (std::int64_t e = 0; e < experts; ++e) {
      const std::int64_t rows = e == whose ? own_rows : others;
      const Values more_x = e == whose ? x : random_values(rows * columns, 1, dtype, static_cast<std::uint64_t>(100 + e)),
                   more_grad = e == whose ? inner_grad : random_values(rows * rank, 1, DType::f32, static_cast<std::uint64_t>(300 + e));
      all_x.insert(all_x.end(), more_x.begin(), more_x.end());
      all_grad.insert(all_grad.end(), more_grad.begin(), more_grad.end());
      starts.push_back(starts.back() + static_cast<double>(rows));
    }
    const auto total = static_cast<std::int64_t>(starts.back());
    std::vector<LoraView> views;
    for (std::int64_t e = 0; e < experts; ++e)
      views.push_back({a.view.row_range(e * rank, rank), bt.view.row_range(e * rank, rank), held.view.row_range(e * rank, rank), held.view.row_range(e * rank, rank), 1.0f});
    const auto device_starts = gpu.put(starts, DType::i32, 1, experts + 1), held_x = gpu.put(all_x, dtype, total, columns),
               held_grad = gpu.put(all_grad, DType::f32, total, rank);
    std::vector<std::int32_t> host;
    gpu.ops->experts_a_grad({held_x, held_grad, views, {device_starts, &host}});
    return gpu.get(held.view.row_range(whose * rank, rank));
  };
  const Values alone = gradient(0);
  const std::string what = label("experts' A gradient", dtype, std::to_string(experts) + " experts, " + shape_text(rank, columns));
  require(what + " again", gradient(0) == alone);
  require(what + " beside others", gradient(1) == alone && gradient(70) == alone);
}

}  // namespace

/// usage: cuda_experts [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{256} << 20);
    const std::string in = std::string(dtype_name(dtype)) + " ";
    try_experts(
        gpu, dtype, asked.small,
        [&](const std::string& what, const Values& got, const Values& expected, bool rounds) {
          compare(in + what, got, expected, rounds ? limit_of(dtype) : 1e-5);
        },
        [&](const std::string& what, bool good) { require(in + what, good); },
        [&](std::int64_t count, double scale, unsigned seed) { return random_values(count, scale, dtype, seed); });
    for (const auto& [experts, columns, rank] : {std::array<std::int64_t, 3>{3, 72, 5}, {9, 136, 16}, {16, 1160, 24}, {3, 264, 72}}) repeated(gpu, dtype, experts, columns, rank);
    for (const ProductsCase& c : products(dtype, asked.small)) {
      const bool integers = c.hold.quantisation == Quantisation::int8;
      try_products(
          gpu, c, dtype,
          [&](const std::string& what, const Values& got, const Values& expected, DType) {
            compare(in + hold_name(c.hold) + " " + what, got, expected, integers ? 4e-2 : limit_of(dtype));
          },
          random_values, [&](const Values& part, std::int64_t rows, std::int64_t width, const HoldSpec& hold) { return seen_values(part, rows, width, hold, dtype); });
    }
  }
  return finish();
}
