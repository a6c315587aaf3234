#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/int8/int8.h"
#include "vectors.h"

using namespace pipelora::quant;
using namespace pipelora::quant::test;

namespace {

struct Held {
  std::vector<std::int8_t> q;
  std::vector<float> scb;
  std::int64_t bad = -1;

  Weight8 view() const {
    const auto out = static_cast<std::int64_t>(scb.size());
    return {q.data(), scb.data(), out, static_cast<std::int64_t>(q.size()) / out};
  }
};

Held quantised(const void* weight, Float format, Float as, std::int64_t out, std::int64_t in, int threads = 1) {
  Held held{std::vector<std::int8_t>(static_cast<std::size_t>(out * in)), std::vector<float>(static_cast<std::size_t>(out)), -1};
  held.bad = quantise_weight8(weight, format, as, out, in, held.q.data(), held.scb.data(), threads);
  return held;
}

struct Input {
  std::vector<std::int32_t> columns;
  std::vector<std::int8_t> q;
  std::vector<float> absmax;
  Int8Input view;

  Input(const Activation& x, float threshold) {
    columns.resize(static_cast<std::size_t>(x.in));
    std::vector<std::uint8_t> found(columns.size());
    if (threshold > 0) mark_outlier_columns(x, threshold, found.data());
    const std::int64_t count = list_outlier_columns(found.data(), x.in, columns.data());
    columns.resize(static_cast<std::size_t>(count));
    q.resize(static_cast<std::size_t>(x.tokens * x.in));
    absmax.resize(static_cast<std::size_t>(x.tokens));
    quantise_activation(x, threshold, columns.data(), count, q.data(), absmax.data());
    view = {x, q.data(), absmax.data(), columns.data(), count};
  }
};

std::vector<float> product(const Input& x, const Weight8& weight, const float* bias) {
  std::vector<float> y(static_cast<std::size_t>(x.view.x.tokens * weight.out));
  int8_tile(x.view, weight, bias, 0, x.view.x.tokens, 0, weight.out, y.data(), weight.out);
  return y;
}

}  // namespace

TEST_CASE("8-bit codes and row scales equal bitsandbytes'") {
  for (const auto& path : golden_files()) {
    const Vectors golden = read_safetensors(path);
    for (const int number : {0, 3, 5}) {
      const std::string key = std::to_string(number);
      const Vector& weight = golden.at(key + ".weight");
      const Vector& codes = golden.at(key + ".int8.q");
      const Vector& scb = golden.at(key + ".int8.scb");
      for (const Isa level : levels()) {
        const AtLevel at(level);
        for (const int threads : {1, 2}) {
          const Held ours = quantised(weight.bytes.data(), weight.format(), weight.format(), weight.shape[0], weight.shape[1], threads);
          CHECK(ours.bad == -1);
          CHECK(std::equal(ours.q.begin(), ours.q.end(), codes.i8()));
          CHECK(std::equal(ours.scb.begin(), ours.scb.end(), scb.f32()));
        }
      }
    }
  }
}

TEST_CASE("the 8-bit layer's output and input gradient equal bitsandbytes'") {
  const Vectors golden = read_safetensors(golden_files().front());
  const Vector& w = golden.at("llm_int8.w");
  const Vector& x = golden.at("llm_int8.x");
  const std::int64_t out = w.shape[0];
  const std::int64_t in = w.shape[1];
  const auto bias = golden.at("llm_int8.b").widened();
  const auto gy = golden.at("llm_int8.gy").widened();
  const Held held = quantised(w.bytes.data(), Float::f16, Float::f16, out, in);
  for (const Isa level : levels()) {
    const AtLevel at(level);
    const Input input({x.bytes.data(), Float::f16, x.shape[0], in, in}, 6.0f);
    CHECK(input.columns == std::vector<std::int32_t>{17, 300});
    auto y = product(input, held.view(), bias.data());
    for (auto& value : y) value = rounded(value, Float::f16);
    CHECK(relative_error(y, golden.at("llm_int8.y").widened()) < 2e-4);

    std::vector<float> dense(static_cast<std::size_t>(out * in));
    std::vector<std::uint16_t> halves(dense.size());
    dequantise_tile(held.view(), 0, out, 0, in, halves.data(), Float::f16, in);
    std::vector<float> gx(static_cast<std::size_t>(x.size()), 0.0f);
    for (std::int64_t t = 0; t < x.shape[0]; ++t) {
      for (std::int64_t o = 0; o < out; ++o) {
        for (std::int64_t i = 0; i < in; ++i) gx[t * in + i] += gy[t * out + o] * f32_from_f16(halves[o * in + i]);
      }
    }
    CHECK(relative_error(gx, golden.at("llm_int8.gx").widened()) < 1e-3);
  }
}

TEST_CASE("integer products are exact on every level, for every remainder") {
  std::mt19937 generator(11);
  std::uniform_int_distribution<int> any(-127, 127);
  for (const std::int64_t k : {1, 15, 64, 130, 1000}) {
    for (const std::int64_t m : {1, 5, 6, 13}) {
      for (const std::int64_t n : {1, 4, 7, 66}) {
        std::vector<std::int8_t> a(static_cast<std::size_t>(m * (k + 3)));
        std::vector<std::int8_t> b(static_cast<std::size_t>(n * (k + 1)));
        for (auto& value : a) value = static_cast<std::int8_t>(any(generator));
        for (auto& value : b) value = static_cast<std::int8_t>(any(generator));
        limit_isa(Isa::scalar);
        std::vector<std::int32_t> expected(static_cast<std::size_t>(m * n));
        int8_product(a.data(), k + 3, m, b.data(), k + 1, n, k, expected.data(), n);
        for (const Isa level : levels()) {
          const AtLevel at(level);
          std::vector<std::int32_t> ours(expected.size(), -1);
          int8_product(a.data(), k + 3, m, b.data(), k + 1, n, k, ours.data(), n);
          REQUIRE(ours == expected);
        }
      }
    }
  }
  // The largest sums: all codes at the edge.
  const std::vector<std::int8_t> edge(20000, -127);
  std::int32_t sum = 0;
  int8_product(edge.data(), 20000, 1, edge.data(), 20000, 1, 20000, &sum, 1);
  CHECK(sum == 127 * 127 * 20000);
}

TEST_CASE("all levels and tile grids give the same output") {
  const std::int64_t tokens = 37;
  const std::int64_t in = 1100;
  const std::int64_t out = 75;
  const auto weights = random_normal(out * in, 0.05f, 12);
  const auto bias = random_normal(out, 0.1f, 13);
  auto values = random_normal(tokens * in, 1.0f, 14);
  for (std::int64_t column = 3; column < 500; column += 9) values[5 * in + column] = 7.0f;
  for (const Float format : {Float::f32, Float::bf16, Float::f16}) {
    const auto bytes = as_bytes(values, format);
    limit_isa(Isa::scalar);
    const Held held = quantised(weights.data(), Float::f32, Float::f32, out, in);
    const auto expected = product(Input({bytes.data(), format, tokens, in, in}, 6.0f), held.view(), bias.data());
    for (const Isa level : levels()) {
      const AtLevel at(level);
      const Held again = quantised(weights.data(), Float::f32, Float::f32, out, in, 2);
      REQUIRE(again.q == held.q);
      REQUIRE(again.scb == held.scb);
      const Input input({bytes.data(), format, tokens, in, in}, 6.0f);
      REQUIRE(product(input, held.view(), bias.data()) == expected);
      std::vector<float> tiled(expected.size());
      for (std::int64_t t = 0; t < tokens; t += 10) {
        for (std::int64_t o = 0; o < out; o += 32) {
          int8_tile(input.view, held.view(), bias.data(), t, std::min(t + 10, tokens), o, std::min(o + 32, out),
                    tiled.data() + t * out + o, out);
        }
      }
      REQUIRE(tiled == expected);
    }
  }
}

TEST_CASE("outlier columns are decided over the whole batch and leave the integer part") {
  std::vector<float> values(3 * 8, 1.0f);
  values[0 * 8 + 2] = -6.0f;  // exactly the threshold counts
  values[1 * 8 + 5] = 5.99f;
  values[2 * 8 + 7] = 100.0f;
  const Activation x{values.data(), Float::f32, 3, 8, 8};
  const Input input(x, 6.0f);
  CHECK(input.columns == std::vector<std::int32_t>{2, 7});
  CHECK(input.absmax[0] == 1.0f);
  CHECK(input.absmax[1] == rounded(5.99f, Float::f16));
  CHECK(input.absmax[2] == 1.0f);
  for (int t = 0; t < 3; ++t) {
    CHECK(input.q[t * 8 + 2] == 0);
    CHECK(input.q[t * 8 + 7] == 0);
  }
  CHECK(input.q[0] == 127);
  CHECK(Input(x, 0.0f).columns.empty());
  CHECK(Input(x, 0.0f).absmax[2] == 100.0f);
}

TEST_CASE("8 bits hold a product within their step, outliers or not") {
  const std::int64_t tokens = 16;
  const std::int64_t in = 512;
  const std::int64_t out = 64;
  const auto weights = random_normal(out * in, 0.05f, 15);
  auto values = random_normal(tokens * in, 1.0f, 16);
  for (std::int64_t t = 0; t < tokens; ++t) values[t * in + 40] = 60.0f;
  const Held held = quantised(weights.data(), Float::f32, Float::f32, out, in);
  std::vector<float> exact(static_cast<std::size_t>(tokens * out));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (std::int64_t i = 0; i < in; ++i) sum += static_cast<double>(values[t * in + i]) * weights[o * in + i];
      exact[t * out + o] = static_cast<float>(sum);
    }
  }
  const Activation x{values.data(), Float::f32, tokens, in, in};
  const double kept_apart = relative_error(product(Input(x, 6.0f), held.view(), nullptr), exact);
  const double in_eight_bits = relative_error(product(Input(x, 0.0f), held.view(), nullptr), exact);
  CHECK(kept_apart < 0.01);
  CHECK(in_eight_bits > 3 * kept_apart);
}

TEST_CASE("rows of zeros, bad numbers and bf16 rounding of 8-bit weights") {
  for (const Isa level : levels()) {
    const AtLevel at(level);
    std::vector<float> values(4 * 1500, 0.0f);
    Held held = quantised(values.data(), Float::f32, Float::f32, 4, 1500);
    CHECK(held.bad == -1);
    CHECK(std::all_of(held.q.begin(), held.q.end(), [](std::int8_t code) { return code == 0; }));
    values[2 * 1500 + 1400] = std::numeric_limits<float>::quiet_NaN();
    values[3 * 1500] = std::numeric_limits<float>::infinity();
    CHECK(quantised(values.data(), Float::f32, Float::f32, 4, 1500, 2).bad == 2 * 1500 + 1400);
    values[1] = 1e6f;  // infinite in f16
    CHECK(quantised(values.data(), Float::f32, Float::f32, 4, 1500, 2).bad == 1);

    const auto fine = random_normal(3 * 1100, 1e-6f, 17);  // subnormal in f16: rounding twice differs
    const auto brain = as_bytes(fine, Float::bf16);
    const Held through = quantised(fine.data(), Float::f32, Float::bf16, 3, 1100);
    const Held direct = quantised(brain.data(), Float::bf16, Float::bf16, 3, 1100);
    CHECK(through.q == direct.q);
    CHECK(through.scb == direct.scb);
  }
}

TEST_CASE("a NaN in an activation reaches every output of its row") {
  std::vector<float> values(2 * 64, 1.0f);
  values[64 + 3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> weights(4 * 64, 0.5f);
  for (const Isa level : levels()) {
    const AtLevel at(level);
    const Held held = quantised(weights.data(), Float::f32, Float::f32, 4, 64);
    const auto y = product(Input({values.data(), Float::f32, 2, 64, 64}, 6.0f), held.view(), nullptr);
    for (int i = 0; i < 4; ++i) {
      CHECK(std::isfinite(y[i]));
      CHECK(std::isnan(y[4 + i]));
    }
  }
}

TEST_CASE("a tile of an 8-bit weight is q * (scb / 127), rounded once") {
  const auto weights = random_normal(9 * 1300, 0.3f, 18);
  const Held held = quantised(weights.data(), Float::f32, Float::f32, 9, 1300);
  for (const Float format : {Float::f32, Float::bf16, Float::f16}) {
    for (const Isa level : levels()) {
      const AtLevel at(level);
      std::vector<std::uint8_t> tile(static_cast<std::size_t>(5 * 1250 * bytes_of(format)));
      dequantise_tile(held.view(), 2, 7, 11, 1255, tile.data(), format, 1250);
      int unequal = 0;
      for (std::int64_t r = 2; r < 7; ++r) {
        for (std::int64_t c = 11; c < 1255; ++c) {
          const float exact = static_cast<float>(held.q[r * 1300 + c]) * (held.scb[r] * (1.0f / 127.0f));
          unequal += load_float(tile.data(), format, (r - 2) * 1250 + c - 11) != rounded(exact, format);
        }
      }
      CHECK(unequal == 0);
    }
  }
}
