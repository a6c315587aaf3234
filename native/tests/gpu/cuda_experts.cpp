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

/// In e4m3: inner widths off and on a stage of 128, outputs off and on a tile of 256, fewer than eight experts' parts and more, parts of one size and
/// of two; every form of weight; widths that do not suit.
std::vector<ProductsCase> products_in_e4m3(DType dtype, bool small) {
  const std::vector<HoldSpec> holds{held(dtype), four_bit(Quantisation::nf4, dtype, true), four_bit(Quantisation::fp4, dtype, false), int8(dtype, 6), mxfp4(dtype),
                                    held(DType::f32), four_bit(Quantisation::nf4, DType::f32, false, 128)};
  const std::vector<std::vector<std::int64_t>> rows{{0, 1, 0, 130, 64, 3, 65, 0}, {200, 0, 0, 0}, {1, 1, 1, 1}, {33, 257, 128, 127}, {0, 0, 0, 5, 64, 128, 129, 1}};
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes{{16, 16}, {64, 256}, {80, 48}, {128, 272}, {272, 528}, {144, 1040}, {384, 96}, {672, 240}, {1040, 144}};
  std::vector<ProductsCase> all;
  std::size_t number = 0;
  for (const auto& [in, out] : shapes)
    for (const auto& count : rows)
      for (const std::int64_t rank : {0, 1, 8, 16, 24, 72}) {
        if (number++ % (small ? 17 : 2) != 0) continue;
        const std::size_t own = all.size();
        ProductsCase c{in, out, count};
        c.together = std::vector<std::int64_t>{4, 1, 2}[own % 3];
        c.rank = rank;
        if (own % 4 == 1 && out % 32 == 0) c.parts = {out / 2, out / 2};
        if (own % 4 == 3 && out > 16) c.parts = {out - 16, 16};
        c.bias = own % 5 < 2;
        c.hold = fp8(holds[own % holds.size()], own % 6 < 3);
        if (c.hold.quantisation == Quantisation::mxfp4 && in % 32 != 0) c.hold = fp8(holds[1], own % 6 < 3);
        all.push_back(c);
      }
  if (!small)
    for (const std::size_t form : {0, 1, 3, 4}) {
      ProductsCase many{96, 144, std::vector<std::int64_t>(128)};
      for (std::size_t e = 0; e < many.rows.size(); ++e) many.rows[e] = static_cast<std::int64_t>(e % 5 == 1 ? e % 70 : e % 3 == 0 ? 1 : 0);
      many.together = 64;
      many.parts = {72 - 8, 72 + 8};
      many.rank = 8;
      many.hold = fp8(holds[form]);
      all.push_back(many);
      many.parts = {48, 48, 48};
      many.rank = 0;
      all.push_back(many);
      all.push_back({.in = 2048, .out = 96, .rows = {0, 301, 1, 64}, .together = 2, .rank = 16, .hold = fp8(holds[form])});
      all.push_back({.in = 160, .out = 1536, .rows = {0, 201, 1, 64}, .together = 4, .rank = 0, .hold = fp8(holds[form])});
    }
  all.push_back({.in = 72, .out = 128, .rows = {3, 90}, .together = 2, .rank = 3, .hold = fp8(held(dtype))});
  all.push_back({.in = 128, .out = 64, .rows = {3, 90}, .together = 2, .rank = 8, .parts = {24, 40}, .hold = fp8(four_bit(Quantisation::nf4, dtype, true))});
  return all;
}

/// In e4m3 a row's numbers are the same bits whatever rows others have, whether the weight is kept expanded, and when the rows are gathered by the product.
void among_others_in_e4m3(Gpu& gpu, DType dtype, std::int64_t in, std::int64_t out, const HoldSpec& hold) {
  constexpr std::int64_t kExperts = 6, kOwn = 37, kWhose = 2, kTokens = 50, kChosen = 3;
  const auto weights = [&](bool kept) {
    std::vector<std::unique_ptr<LinearWeight>> made;
    for (std::int64_t first = 0; first < kExperts; first += 3) {
      made.push_back(gpu.ops->create_linear(in, {out, out, out}, false));
      made.back()->expect_matrices(3);
      for (std::size_t part = 0; part < 3; ++part)
        load_held(*made.back(), part, random_values(out * in, 0.05, DType::f32, 500 + static_cast<std::uint64_t>(first) + part), out, in, fp8(hold, kept));
    }
    return made;
  };
  const auto turns = weights(false), kept = weights(true);
  const Values x = random_values(kOwn * in, 1, dtype, 520), dy = random_values(kOwn * out, 1, dtype, 521);
  const auto product = [&](const std::vector<std::unique_ptr<LinearWeight>>& held, std::int64_t others, bool forward) {
    const std::int64_t width = forward ? in : out;
    const Values& own = forward ? x : dy;
    Values starts(1, 0.0), all;
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const std::int64_t rows = e == kWhose ? kOwn : others;
      const Values more = e == kWhose ? own : random_values(rows * width, 30, dtype, 530 + static_cast<std::uint64_t>(e));
      all.insert(all.end(), more.begin(), more.end());
      starts.push_back(starts.back() + static_cast<double>(rows));
    }
    const auto total = static_cast<std::int64_t>(starts.back());
    const auto from = gpu.put(all, dtype, total, width), to = gpu.empty(dtype, total, forward ? out : in), device_starts = gpu.put(starts, DType::i32, 1, kExperts + 1);
    std::vector<std::int32_t> host;
    if (forward)
      gpu.ops->experts_forward({from, {held, kExperts}, {}, Tensor(), to, {device_starts, &host}});
    else
      gpu.ops->experts_input_grad({from, {held, kExperts}, {}, Tensor(), Tensor(), to, {device_starts, &host}});
    return gpu.get(to.view.row_range(kWhose * others, kOwn));
  };
  const std::string what = label("experts in e4m3", dtype, hold_name(hold) + " " + shape_text(out, in) + ": ");
  for (const bool forward : {true, false}) {
    const std::string way = what + (forward ? "y " : "dx ");
    const Values alone = product(turns, 0, forward);
    require(way + "again", product(turns, 0, forward) == alone);
    require(way + "beside others", product(turns, 1, forward) == alone && product(turns, 130, forward) == alone);
    require(way + "of a kept weight", product(kept, 0, forward) == alone && product(kept, 70, forward) == alone);

    // Rows that the product gathers itself: choices in an order of no meaning.
    const std::int64_t width = forward ? in : out, rows = kTokens * kChosen;
    Values order(static_cast<std::size_t>(rows)), starts{0, 30, 30, 99, 100, 149, static_cast<double>(rows)};
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<double>((i * 37 + 11) % order.size());
    const auto tokens = gpu.put(random_values(kTokens * width, 1, dtype, 540), dtype, kTokens, width), sorted = gpu.empty(dtype, rows, width),
               held_order = gpu.put(order, DType::i32, 1, rows), device_starts = gpu.put(starts, DType::i32, 1, kExperts + 1),
               experts = gpu.put(Values(static_cast<std::size_t>(rows), 0.0), DType::i32, kTokens, kChosen), to = gpu.empty(dtype, rows, forward ? out : in);
    Routes routes;
    routes.order = held_order;
    routes.experts = experts;
    std::vector<std::int32_t> host;
    const ExpertRows own{device_starts, &host};
    const ExpertsWeight all{turns, kExperts};
    if (forward)
      gpu.ops->gathered_experts_forward(tokens, routes, {sorted, all, {}, Tensor(), to, own});
    else
      gpu.ops->gathered_experts_input_grad(tokens, routes, {sorted, all, {}, Tensor(), Tensor(), to, own});
    const Values gathered = gpu.get(to);
    gpu.ops->gather_choices(tokens, routes, sorted);
    if (forward)
      gpu.ops->experts_forward({sorted, all, {}, Tensor(), to, own});
    else
      gpu.ops->experts_input_grad({sorted, all, {}, Tensor(), Tensor(), to, own});
    require(way + "of gathered rows", gpu.get(to) == gathered);
  }
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
    std::vector<ProductsCase> cases = products(dtype, asked.small);
    if (dtype != DType::f32) {
      const std::vector<ProductsCase> more = products_in_e4m3(dtype, asked.small);
      cases.insert(cases.end(), more.begin(), more.end());
      for (const HoldSpec& hold : {held(dtype), four_bit(Quantisation::nf4, dtype, true), int8(dtype, 6)})
        for (const auto& [width, out] : {std::pair<std::int64_t, std::int64_t>{144, 272}, {512, 80}, {3088, 48}}) among_others_in_e4m3(gpu, dtype, width, out, hold);
    }
    for (const ProductsCase& c : cases) {
      const bool eight = c.multiplies_e4m3(dtype), integers = c.hold.quantisation == Quantisation::int8 && !eight;
      // Sums in the tensor cores' registers, and LoRA's operands in 16 bits.
      const double same = eight ? (c.rank > 0 ? 1e-2 : 5e-3) : integers ? 4e-2 : limit_of(dtype);
      try_products(
          gpu, c, dtype,
          [&](const std::string& what, const Values& got, const Values& expected, DType, Against against) {
            compare(in + hold_name(c.hold) + " " + what, got, expected, against == Against::unrounded ? 6e-2 : same);
          },
          random_values, load_held,
          [&](const Values& part, std::int64_t rows, std::int64_t width, const HoldSpec& hold) { return seen_values(part, rows, width, hold, dtype); });
    }
  }
  return finish();
}
