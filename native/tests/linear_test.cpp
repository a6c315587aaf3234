// Products with frozen weights, their input gradients, and LoRA with and without dropout.
#include "tests/support/bench_device.h"

using namespace testing;

namespace {

struct Pair {
  std::int64_t part, r;
  float scale, dropout;
  std::uint32_t module;
};

struct Case {
  std::int64_t in;
  std::vector<std::int64_t> parts;
  std::vector<std::int32_t> lengths;
  bool bias;
  std::vector<Pair> pairs;
};

// Small and odd; several tiles in both directions; three pairs that share an input, one linear of them without LoRA.
const std::vector<Case> kCases{
    {24, {40}, {3, 4}, true, {{0, 4, 2.0f, 0.0f, 1}}},
    {45, {30, 7, 19}, {5, 9}, false, {{0, 8, 0.5f, 0.3f, 7}, {2, 3, 4.0f, 0.1f, 8}}},
    {400, {500, 270}, {300, 17}, true, {{1, 9, 1.5f, 0.2f, 3}}},
    {64, {64}, {1}, false, {}},
};

struct Data {
  std::int64_t tokens = 0, out = 0, inner = 0;
  Values x, w, bias, residual, dy;
  std::vector<Values> a, b;  // [R, in], [out of its part, R]
};

Data data_of(const Case& c) {
  Data d;
  for (const std::int32_t n : c.lengths) d.tokens += n;
  for (const std::int64_t n : c.parts) d.out += n;
  const auto size = [](std::int64_t a, std::int64_t b) { return static_cast<std::size_t>(a * b); };
  d.x = reference::random_values(size(d.tokens, c.in), 1);
  d.w = reference::random_values(size(d.out, c.in), 2, 0.1);
  d.bias = reference::random_values(size(d.out, 1), 3);
  d.residual = reference::random_values(size(d.tokens, d.out), 4);
  d.dy = reference::random_values(size(d.tokens, d.out), 5);
  unsigned seed = 10;
  for (const Pair& pair : c.pairs) {
    d.a.push_back(reference::random_values(size(pair.r, c.in), seed++, 0.2));
    d.b.push_back(reference::random_values(size(c.parts[static_cast<std::size_t>(pair.part)], pair.r), seed++, 0.2));
    d.inner += pair.r;
  }
  return d;
}

std::int64_t first_of(const Case& c, std::int64_t part) {
  return std::accumulate(c.parts.begin(), c.parts.begin() + part, std::int64_t{0});
}

constexpr DropoutKey kKey{99, 5};

Values expected_forward(const Case& c, const Data& d, const Sequences& s, bool dropout) {
  const auto t = static_cast<std::size_t>(d.tokens), in = static_cast<std::size_t>(c.in), out = static_cast<std::size_t>(d.out);
  Values y = reference::product(d.x, d.w, t, in, out);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] += d.residual[i] + (c.bias ? d.bias[i % out] : 0.0);
  for (std::size_t p = 0; p < c.pairs.size(); ++p) {
    const Pair& pair = c.pairs[p];
    Values dropped = d.x;
    if (dropout && pair.dropout > 0)
      for (std::size_t i = 0; i < dropped.size(); ++i) {
        const std::size_t token = i / in;
        const auto element = static_cast<std::uint64_t>(s.position.host[token]) * in + i % in;
        const bool stays = reference::kept(kKey, static_cast<std::uint32_t>(s.row.host[token]), pair.module, element, pair.dropout);
        dropped[i] = stays ? dropped[i] / (1.0 - static_cast<double>(pair.dropout)) : 0.0;
      }
    const auto r = static_cast<std::size_t>(pair.r), n = static_cast<std::size_t>(c.parts[static_cast<std::size_t>(pair.part)]);
    const Values low = reference::product(reference::product(dropped, d.a[p], t, in, r), d.b[p], t, r, n);
    const auto first = static_cast<std::size_t>(first_of(c, pair.part));
    for (std::size_t i = 0; i < t; ++i)
      for (std::size_t j = 0; j < n; ++j) y[i * out + first + j] += static_cast<double>(pair.scale) * low[i * n + j];
  }
  return y;
}

struct Run {
  Values y, again, dx;  // again: y from inner vectors that are known
  std::vector<Values> grad_a, grad_b;
};

Run run(const Case& c, const Data& d, DType dtype, int threads, bool dropout) {
  Device device(dtype, threads);
  const Sequences s = make_sequences(*device.ops, c.lengths);
  const auto weight = device.ops->create_linear(c.in, c.parts, c.bias);
  const auto floats = [](const Values& v) { return std::vector<float>(v.begin(), v.end()); };
  const std::vector<float> w = floats(d.w), bias = floats(d.bias);
  for (std::size_t p = 0; p < c.parts.size(); ++p) {
    const std::int64_t first = first_of(c, static_cast<std::int64_t>(p));
    weight->load(p, {w.data() + first * c.in, DType::f32, c.parts[p], c.in}, HoldSpec{DType::f32});
    if (c.bias) weight->load_bias(p, {bias.data() + first, DType::f32, 1, c.parts[p]});
  }
  std::vector<Buffer> held;
  std::vector<LoraView> views;
  std::int64_t inner_at = 0;
  for (std::size_t p = 0; p < c.pairs.size(); ++p) {
    const Pair& pair = c.pairs[p];
    const std::int64_t n = c.parts[static_cast<std::size_t>(pair.part)];
    Values bt(d.b[p].size());
    for (std::int64_t o = 0; o < n; ++o)
      for (std::int64_t r = 0; r < pair.r; ++r) bt[static_cast<std::size_t>(r * n + o)] = d.b[p][static_cast<std::size_t>(o * pair.r + r)];
    LoraView view;
    const auto keep = [&](Buffer buffer) {
      held.push_back(std::move(buffer));
      return held.back().tensor();
    };
    view.a = keep(device.put(d.a[p], pair.r, DType::f32));
    view.bt = keep(device.put(bt, pair.r, DType::f32));
    view.grad_a = keep(device.make(pair.r, c.in, DType::f32));
    view.grad_bt = keep(device.make(pair.r, n, DType::f32));
    device.ops->zero(view.grad_a);
    device.ops->zero(view.grad_bt);
    view.scale = pair.scale;
    view.dropout = pair.dropout;
    view.module_id = pair.module;
    view.first_column = first_of(c, pair.part);
    view.first_inner = inner_at;
    inner_at += pair.r;
    views.push_back(view);
  }
  const DropoutKey key = kKey;
  const LoraSet lora{views, d.inner, dropout ? &key : nullptr};
  const std::int64_t t = d.tokens;
  const Buffer x = device.put(d.x, t), residual = device.put(d.residual, t), dy = device.put(d.dy, t);
  const Buffer y = device.make(t, d.out), dx = device.make(t, c.in);
  Buffer inner, inner_grad;
  if (d.inner > 0) {
    inner = device.make(t, d.inner, DType::f32);
    inner_grad = device.make(t, d.inner, DType::f32);
  }
  device.ops->linear_forward({x, weight.get(), lora, inner, residual, y, &s});
  const Buffer again = device.make(t, d.out);
  device.ops->linear_forward({x, weight.get(), lora, inner, residual, again, &s, false, true});
  device.ops->linear_input_grad({dy, weight.get(), lora, inner, inner_grad, dx, &s});
  if (d.inner > 0) device.ops->lora_a_grad({x, inner_grad, lora, &s});
  Run result{Device::get(y), Device::get(again), Device::get(dx), {}, {}};
  for (const LoraView& view : views) {
    result.grad_a.push_back(Device::get(view.grad_a));
    const Values bt = Device::get(view.grad_bt);
    Values b(bt.size());
    for (std::int64_t r = 0; r < view.bt.rows; ++r)
      for (std::int64_t o = 0; o < view.bt.cols; ++o) b[static_cast<std::size_t>(o * view.bt.rows + r)] = bt[static_cast<std::size_t>(r * view.bt.cols + o)];
    result.grad_b.push_back(b);
  }
  return result;
}

}  // namespace

TEST_CASE("a linear with bias, residual and LoRA equals the plain computation") {
  Device keys;
  for (const Case& c : kCases)
    for (const bool dropout : {false, true}) {
      const Data d = data_of(c);
      const Values expected = expected_forward(c, d, make_sequences(*keys.ops, c.lengths), dropout);
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const Run result = run(c, d, dtype, 1, dropout);
        CHECK(distance(result.y, expected) < (dtype == DType::f32 ? 2e-6 : 1e-2));
        CHECK(result.again == result.y);
      }
    }
}

TEST_CASE("gradients of a linear with LoRA equal finite differences") {
  Device keys;
  for (const Case& c : kCases)
    for (const bool dropout : {false, true}) {
      Data d = data_of(c);
      const Sequences s = make_sequences(*keys.ops, c.lengths);
      const Run got = run(c, d, DType::f32, 1, dropout);
      const auto loss = [&] { return reference::dot(expected_forward(c, d, s, dropout), d.dy); };
      const std::size_t count = d.x.size() > 10000 ? 3 : 25;
      const auto check = [&](Values& values, const Values& gradient) {
        const auto at = reference::spread(values.size(), count);
        CHECK(distance(pick(gradient, at), reference::derivatives(values, at, loss, 1e-3)) < 2e-5);
      };
      check(d.x, got.dx);
      for (std::size_t p = 0; p < c.pairs.size(); ++p) {
        check(d.a[p], got.grad_a[p]);
        check(d.b[p], got.grad_b[p]);
      }
    }
}

TEST_CASE("bfloat16 gradients are close to float32's") {
  for (const Case& c : kCases) {
    const Data d = data_of(c);
    const Run wide = run(c, d, DType::f32, 1, true), narrow = run(c, d, DType::bf16, 1, true);
    CHECK(distance(narrow.dx, wide.dx) < 1e-2);
    for (std::size_t p = 0; p < c.pairs.size(); ++p) {
      CHECK(distance(narrow.grad_a[p], wide.grad_a[p]) < 1e-2);
      CHECK(distance(narrow.grad_b[p], wide.grad_b[p]) < 1e-2);
    }
  }
}

TEST_CASE("a linear's bits do not depend on threads") {
  for (const Case& c : kCases)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Data d = data_of(c);
      const Run one = run(c, d, dtype, 1, true), three = run(c, d, dtype, 3, true);
      CHECK(one.y == three.y);
      CHECK(one.dx == three.dx);
      CHECK(one.grad_a == three.grad_a);
      CHECK(one.grad_b == three.grad_b);
    }
}

TEST_CASE("a held dtype rounds the weight once") {
  Device device;
  const std::vector<float> w{1.0f + 0x1p-10f, 2.0f, 3.0f, 4.0f};
  const auto weight = device.ops->create_linear(2, {2}, false);
  weight->load(0, {w.data(), DType::f32, 2, 2}, HoldSpec{DType::bf16});
  const Buffer x = device.put({1, 0}, 1), y = device.make(1, 2);
  device.ops->linear_forward({x, weight.get(), {}, Tensor(), Tensor(), y, nullptr});
  CHECK(Device::get(y) == Values{1, 3});
}
