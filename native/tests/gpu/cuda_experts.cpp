// The GPU's operations of a mixture of experts against float64.
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
  all.push_back({.in = 37, .out = 45, .rows = {3, 9}, .together = 2, .rank = 3, .hold = plain});  // no kernel for all experts takes it
  return all;
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
