// The operations of a mixture of experts on the CPU against float64, and their bits whatever the threads.
#include "tests/support/bench_device.h"
#include "tests/support/experts_products.h"
#include "tests/support/experts_reference.h"

using namespace testing;

namespace {

struct Bench {
  Device device;
  Ops* ops = device.ops.get();
  Buffer empty(DType dtype, std::int64_t rows, std::int64_t cols) { return device.arena.tensor("a test's tensor", dtype, rows, cols); }
  Buffer put(const Values& values, DType dtype, std::int64_t rows, std::int64_t cols) {
    Buffer held = empty(dtype, rows, cols);
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::i32)
        held.tensor().as<std::int32_t>()[i] = static_cast<std::int32_t>(values[i]);
      else
        held.tensor().as<float>()[i] = static_cast<float>(values[i]);
    }
    return held;
  }
  Values get(const Tensor& t) {
    if (t.dtype == DType::i32) return Values(t.as<std::int32_t>(), t.as<std::int32_t>() + t.size());
    return Values(t.as<float>(), t.as<float>() + t.size());
  }
};

}  // namespace

TEST_CASE("routing, sorting, gates, weighted sums and sinks") {
  Bench bench;
  test::try_experts(
      bench, DType::f32, false,
      [](const std::string& what, const Values& got, const Values& expected, bool) {
        INFO(what);
        CHECK(distance(got, expected) < 1e-5);
      },
      [](const std::string& what, bool good) {
        INFO(what);
        CHECK(good);
      },
      [](std::int64_t count, double scale, unsigned seed) { return reference::random_values(static_cast<std::size_t>(count), seed, scale); });
}

TEST_CASE("the experts' products, with LoRA") {
  for (const std::int64_t rank : {0, 1, 5, 16})
    for (const auto& rows : {std::vector<std::int64_t>{0, 1, 7, 0, 33}, {4}, {0, 20}}) {
      test::ProductsCase c{24, 40, rows};
      c.rank = rank;
      c.bias = rank % 2 == 1;
      if (rank > 1) c.parts = {16, 24};
      Bench bench;
      test::try_products(
          bench, c, DType::f32,
          [](const std::string& what, const Values& got, const Values& expected, DType, test::Against) {
            INFO(what);
            CHECK(distance(got, expected) < 1e-5);
          },
          [](std::int64_t count, double scale, DType, unsigned seed) { return reference::random_values(static_cast<std::size_t>(count), seed, scale); },
          [](LinearWeight& weight, std::size_t part, const Values& values, std::int64_t own, std::int64_t in, const HoldSpec& hold) {
            const std::vector<float> source(values.begin(), values.end());
            weight.load(part, {source.data(), DType::f32, own, in}, hold);
          },
          [](const Values& part, std::int64_t, std::int64_t, const HoldSpec&) { return part; });
    }
}
