// Linears whose frozen weight is held in 4 or 8 bits: forward, input gradient, and what goes wrong at loading.
#include <algorithm>
#include <limits>

#include "tests/support/bench_device.h"
#include "pipelora/core/error.h"
#include "quant/state.h"
#include "vectors.h"

using namespace testing;
namespace quantised = pipelora::quant;

namespace {

struct Shape {
  std::int64_t in;
  std::vector<std::int64_t> parts;
  std::int64_t tokens;
};

// Rows that cut blocks; several tiles and parts that tiles straddle; an inner dimension of more than one panel, each way.
const std::vector<Shape> kShapes{{45, {30, 7, 19}, 5}, {192, {300, 200, 100}, 270}, {4200, {24}, 3}, {40, {4100, 8}, 4}};

const std::vector<HoldSpec> kHolds{{DType::f32, Quantisation::nf4, 64, false}, {DType::bf16, Quantisation::nf4, 64, true},
                                   {DType::f16, Quantisation::fp4, 128, true}, {DType::f16, Quantisation::int8},
                                   {DType::bf16, Quantisation::int8, 64, false, 2.5f}};

std::int64_t sum(const std::vector<std::int64_t>& values) { return std::accumulate(values.begin(), values.end(), std::int64_t{0}); }

std::vector<float> narrowed(const Values& values) { return {values.begin(), values.end()}; }

struct Result {
  Values y, dx;
  /// The product of the weight's values alone; and both products again, part by part.
  Values bare, y_by_parts, dx_by_parts;
  std::size_t bytes = 0;
  bool operator==(const Result&) const = default;
};

Result run(const Shape& shape, const HoldSpec& hold, DType compute, int threads, const Values& x, const Values& w, const Values& bias,
           const Values& dy) {
  Device device(compute, threads);
  const std::int64_t out = sum(shape.parts), tokens = shape.tokens;
  const auto weight = device.ops->create_linear(shape.in, shape.parts, true);
  const std::vector<float> rows = narrowed(w), offsets = narrowed(bias);
  std::int64_t first = 0;
  for (std::size_t part = 0; part < shape.parts.size(); ++part) {
    weight->load(part, HostTensor{rows.data() + first * shape.in, DType::f32, shape.parts[part], shape.in}, hold);
    weight->load_bias(part, HostTensor{offsets.data() + first, DType::f32, 1, shape.parts[part]});
    first += shape.parts[part];
  }
  const Sequences sequences = make_sequences(*device.ops, {static_cast<std::int32_t>(tokens)});
  const Buffer x_t = device.put(x, tokens), dy_t = device.put(dy, tokens);
  const Buffer y = device.make(tokens, out), dx = device.make(tokens, shape.in);
  device.ops->linear_forward({x_t, weight.get(), {}, {}, {}, y, &sequences});
  device.ops->linear_input_grad({dy_t, weight.get(), {}, {}, {}, dx, &sequences});
  const Buffer bare = device.make(tokens, out), by_parts = device.make(tokens, out), part_dx = device.make(tokens, shape.in);
  LinearForward alone{x_t, weight.get(), {}, {}, {}, bare, &sequences};
  alone.bare = true;
  device.ops->linear_forward(alone);
  Values dx_by_parts(static_cast<std::size_t>(tokens * shape.in));
  first = 0;
  for (std::size_t part = 0; part < shape.parts.size(); ++part) {
    const auto own = [&](const Buffer& all) { return all.tensor().columns(first, shape.parts[part]); };
    device.ops->linear_forward({x_t, weight.get(), {}, {}, {}, own(by_parts), &sequences, false, false, {part, 1}});
    device.ops->linear_input_grad({own(dy_t), weight.get(), {}, {}, {}, part_dx, &sequences, {part, 1}});
    const Values values = Device::get(part_dx);
    for (std::size_t i = 0; i < values.size(); ++i) dx_by_parts[i] += values[i];
    first += shape.parts[part];
  }
  return {Device::get(y), Device::get(dx), Device::get(bare), Device::get(by_parts), dx_by_parts, weight->bytes()};
}

/// The weight as its quantised form stands for it, each part by itself.
Values expanded(const Shape& shape, const HoldSpec& hold, const Values& w) {
  using quantised::Float;
  const Float as = hold.dtype == DType::bf16 ? Float::bf16 : hold.dtype == DType::f16 ? Float::f16 : Float::f32;
  const std::vector<float> rows = narrowed(w);
  std::vector<float> dense(rows.size());
  std::int64_t first = 0;
  for (const std::int64_t n : shape.parts) {
    const float* from = rows.data() + first * shape.in;
    float* to = dense.data() + first * shape.in;
    if (hold.quantisation == Quantisation::int8) {
      quantised::State8 state;
      REQUIRE(quantised::quantise(from, Float::f32, as, n, shape.in, 1, state) == -1);
      quantised::dequantise_tile(state.view(), 0, n, 0, shape.in, to, Float::f32, shape.in);
    } else {
      const auto type = hold.quantisation == Quantisation::nf4 ? quantised::FourBit::nf4 : quantised::FourBit::fp4;
      quantised::State4 state;
      REQUIRE(quantised::quantise(from, Float::f32, as, n, shape.in, {type, hold.block_size, hold.double_quant}, 1, state) == -1);
      quantised::dequantise(state.view(), to, Float::f32, 1);
    }
    first += n;
  }
  return {dense.begin(), dense.end()};
}

Values transposed(const Values& w, std::size_t rows, std::size_t cols) {
  Values t(w.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c) t[c * rows + r] = w[r * cols + c];
  return t;
}

}  // namespace

TEST_CASE("products with a quantised weight are products with the values it stands for") {
  for (const Shape& shape : kShapes)
    for (const HoldSpec& hold : kHolds) {
      CAPTURE(shape.in);
      CAPTURE(static_cast<int>(hold.quantisation));
      const auto in = static_cast<std::size_t>(shape.in), out = static_cast<std::size_t>(sum(shape.parts));
      const auto tokens = static_cast<std::size_t>(shape.tokens);
      const Values x = reference::random_values(tokens * in, 1), w = reference::random_values(out * in, 2, 0.05);
      const Values bias = reference::random_values(out, 3, 0.1), dy = reference::random_values(tokens * out, 4);
      const Values dense = expanded(shape, hold, w);
      const Values alone = reference::product(x, dense, tokens, in, out);
      Values y = alone;
      for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias[i % out];
      const Values dx = reference::product(dy, transposed(dense, out, in), tokens, out, in);

      const Result wide = run(shape, hold, DType::f32, 1, x, w, bias, dy);
      const bool integers = hold.quantisation == Quantisation::int8;
      CHECK(distance(wide.y, y) < (integers ? 2e-2 : 2e-6));
      CHECK(distance(wide.dx, dx) < 2e-6);
      CHECK(distance(wide.bare, alone) < 2e-6);
      CHECK(distance(wide.y_by_parts, y) < (integers ? 2e-2 : 2e-6));
      CHECK(distance(wide.dx_by_parts, dx) < 2e-6);
      const Result narrow = run(shape, hold, DType::bf16, 1, x, w, bias, dy);
      CHECK(distance(narrow.y, y) < (integers ? 2e-2 : 1e-2));
      CHECK(distance(narrow.dx, dx) < 1e-2);
      CHECK(distance(narrow.bare, alone) < 1e-2);

      const Result again = run(shape, hold, DType::f32, 2, x, w, bias, dy);
      CHECK(again == wide);
      HoldSpec kept = hold;
      kept.keep_expanded = true;
      const Result from_cache = run(shape, kept, DType::f32, 2, x, w, bias, dy);
      CHECK(from_cache.y == wide.y);
      CHECK(from_cache.dx == wide.dx);
      CHECK(from_cache.bytes == wide.bytes + out * in * sizeof(float));
    }
}

TEST_CASE("4-bit and 8-bit layers give bitsandbytes' outputs and input gradients") {
  const auto golden = quantised::test::read_safetensors(quantised::test::golden_files().front());
  const auto values = [&](const char* name) {
    const auto wide = golden.at(name).widened();
    return Values(wide.begin(), wide.end());
  };
  const Shape shape{512, {256}, 24};
  const auto check = [&](const HoldSpec& hold, const char* y, const char* gx) {
    const Result got =
        run(shape, hold, DType::f32, 2, values("llm_int8.x"), values("llm_int8.w"), values("llm_int8.b"), values("llm_int8.gy"));
    CHECK(distance(got.y, values(y)) < 2e-3);
    CHECK(distance(got.dx, values(gx)) < 2e-3);
  };
  check({DType::f16, Quantisation::nf4, 64, true}, "linear4bit.y", "linear4bit.gx");
  check({DType::f16, Quantisation::int8}, "llm_int8.y", "llm_int8.gx");
}

TEST_CASE("outlier columns of an 8-bit linear are those of the whole micro-batch") {
  // One token's outlier takes its column out of the integers for all tokens; a threshold of 0 keeps every column in.
  const Shape shape{64, {32}, 300};
  Values x = reference::random_values(300 * 64, 1, 0.1);
  x[299 * 64 + 7] = 50.0;
  const Values w = reference::random_values(32 * 64, 2, 0.05), bias(32, 0.0), dy(300 * 32, 0.0);
  HoldSpec hold{DType::f16, Quantisation::int8};
  const Values y = reference::product(x, expanded(shape, hold, w), 300, 64, 32);
  const auto error = [&](float threshold, std::size_t row) {
    hold.threshold = threshold;
    const Values got = run(shape, hold, DType::f32, 2, x, w, bias, dy).y;
    const auto cut = [&](const Values& v) { return Values(v.begin() + static_cast<std::ptrdiff_t>(row * 32), v.begin() + static_cast<std::ptrdiff_t>(row * 32 + 32)); };
    return distance(cut(got), cut(y));
  };
  CHECK(error(6.0f, 299) < 1e-3);
  CHECK(error(0.0f, 299) > 5e-3);
  // Token 0 has no outlier of its own, yet its column 7 is multiplied exactly: zero everything else and nothing is lost.
  for (std::size_t c = 0; c < 64; ++c)
    if (c != 7) x[c] = 0.0;
  const double exact = x[7] * expanded(shape, hold, w)[7];
  hold.threshold = 6.0f;
  CHECK(run(shape, hold, DType::f32, 1, x, w, bias, dy).y[0] == doctest::Approx(exact).epsilon(1e-6));
}

TEST_CASE("loading refuses what can't be quantised, and says where it is") {
  Device device;
  std::vector<float> rows(8 * 64, 0.5f);
  const HostTensor tensor{rows.data(), DType::f32, 8, 64};
  const auto message = [&](LinearWeight& weight, std::size_t part, const HoldSpec& hold) -> std::string {
    try {
      weight.load(part, tensor, hold);
      return "";
    } catch (const Error& error) {
      return std::string(error.code()) + " " + error.what();
    }
  };
  for (const Quantisation form : {Quantisation::nf4, Quantisation::fp4, Quantisation::int8}) {
    const auto weight = device.ops->create_linear(64, {8}, false), half = device.ops->create_linear(64, {8}, false);
    rows[5 * 64 + 9] = std::numeric_limits<float>::quiet_NaN();
    CHECK(message(*weight, 0, {DType::f32, form}).find("PL_QUANTIZATION_INVALID row 5, column 9") == 0);
    rows[5 * 64 + 9] = 1e6f;
    CHECK(message(*half, 0, {DType::f16, form}).find("float16") != std::string::npos);
    rows[5 * 64 + 9] = 0.5f;
    CHECK(message(*half, 0, {DType::f16, form}).empty());
  }
  const auto odd = device.ops->create_linear(64, {8}, false);
  CHECK(message(*odd, 0, {DType::f32, Quantisation::nf4, 48}).find("48") != std::string::npos);
  const auto mixed = device.ops->create_linear(64, {8, 8}, false);
  CHECK(message(*mixed, 0, {DType::f32, Quantisation::nf4}).empty());
  CHECK(message(*mixed, 1, {DType::f32, Quantisation::int8}).find("PL_TENSOR_MISMATCH") == 0);
}
