#include "tests/support/bench_device.h"

using namespace testing;

namespace {

struct Case {
  std::vector<std::int32_t> lengths;
  std::size_t heads, kv_heads, e;
  std::int64_t window;
};

// One block and several, ends inside a block, windows within and across blocks, grouped heads, odd head widths.
const std::vector<Case> kCases{{{5}, 2, 2, 16, 0},        {{1, 64, 70}, 2, 1, 32, 0}, {{130, 3}, 4, 2, 8, 0},
                               {{150}, 2, 2, 16, 7},      {{200, 20}, 2, 1, 16, 100}, {{67}, 3, 1, 20, 2},
                               {{90}, 1, 1, 72, 0}};

struct Inputs {
  Values q, k, v, g;
  std::int64_t tokens = 0;
};

Inputs inputs_of(const Case& c) {
  Inputs in;
  for (const std::int32_t n : c.lengths) in.tokens += n;
  const auto t = static_cast<std::size_t>(in.tokens);
  in.q = reference::random_values(t * c.heads * c.e, 1, 1.5);
  in.k = reference::random_values(t * c.kv_heads * c.e, 2, 1.5);
  in.v = reference::random_values(t * c.kv_heads * c.e, 3);
  in.g = reference::random_values(t * c.heads * c.e, 4);
  return in;
}

/// q, k and v side by side, as a block holds them.
struct Run {
  Values out, dq, dk, dv;
};
Run run(const Case& c, const Inputs& in, DType dtype, int threads) {
  Device device(dtype, threads);
  const auto q_cols = static_cast<std::int64_t>(c.heads * c.e), kv_cols = static_cast<std::int64_t>(c.kv_heads * c.e);
  const Buffer qkv = device.make(in.tokens, q_cols + 2 * kv_cols), grads = device.make(in.tokens, q_cols + 2 * kv_cols);
  const auto part = [&](const Tensor& t, int i) {
    return i == 0 ? t.columns(0, q_cols) : t.columns(q_cols + (i - 1) * kv_cols, kv_cols);
  };
  const Buffer sources[] = {device.put(in.q, in.tokens), device.put(in.k, in.tokens), device.put(in.v, in.tokens)};
  for (int i = 0; i < 3; ++i) device.ops->copy(sources[i], part(qkv, i));
  const Buffer out = device.make(in.tokens, q_cols), lse = device.make(static_cast<std::int64_t>(c.heads), in.tokens, DType::f32);
  const Buffer g = device.put(in.g, in.tokens);
  const Sequences s = make_sequences(*device.ops, c.lengths);
  const auto e = static_cast<std::int64_t>(c.e);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.e));
  device.ops->attention_forward({part(qkv, 0), part(qkv, 1), part(qkv, 2), out, lse, &s, e, c.window, scale});
  device.ops->attention_backward({part(qkv, 0), part(qkv, 1), part(qkv, 2), out, lse, g, part(grads, 0), part(grads, 1), part(grads, 2), &s, e, c.window, scale});
  return {Device::get(out), Device::get(part(grads, 0)), Device::get(part(grads, 1)), Device::get(part(grads, 2))};
}

std::vector<std::int32_t> cumulative(const std::vector<std::int32_t>& lengths) {
  std::vector<std::int32_t> cu{0};
  for (const std::int32_t n : lengths) cu.push_back(cu.back() + n);
  return cu;
}

}  // namespace

TEST_CASE("attention equals the plain computation") {
  for (const Case& c : kCases) {
    const Inputs in = inputs_of(c);
    const Values expected = reference::attention(in.q, in.k, in.v, cumulative(c.lengths), c.heads, c.kv_heads, c.e, c.window);
    CHECK(distance(run(c, in, DType::f32, 1).out, expected) < 5e-6);
    CHECK(distance(run(c, in, DType::bf16, 1).out, expected) < 2e-2);
  }
}

TEST_CASE("attention's gradients equal finite differences") {
  for (const Case& c : kCases) {
    Inputs in = inputs_of(c);
    const Run got = run(c, in, DType::f32, 1);
    const auto cu = cumulative(c.lengths);
    const auto loss = [&] { return reference::dot(reference::attention(in.q, in.k, in.v, cu, c.heads, c.kv_heads, c.e, c.window), in.g); };
    const auto check = [&](Values& values, const Values& gradient) {
      const auto at = reference::spread(values.size(), 14);
      CHECK(distance(pick(gradient, at), reference::derivatives(values, at, loss)) < 5e-5);
    };
    check(in.q, got.dq);
    check(in.k, got.dk);
    check(in.v, got.dv);
  }
}

TEST_CASE("attention's bits do not depend on threads") {
  const Case c{{100, 3, 77}, 4, 2, 16, 0};
  const Inputs in = inputs_of(c);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Run one = run(c, in, dtype, 1), three = run(c, in, dtype, 3);
    CHECK(one.out == three.out);
    CHECK(one.dq == three.dq);
    CHECK(one.dk == three.dk);
    CHECK(one.dv == three.dv);
  }
}

TEST_CASE("queries behind cached keys see what they would see in the whole sequence") {
  const Case c{{150}, 4, 2, 16, 40};
  const Inputs in = inputs_of(c);
  const Values whole = run(c, in, DType::f32, 1).out;
  Device device;
  const std::int64_t fresh = 5, past = in.tokens - fresh, capacity = 200, q_cols = 64, kv_cols = 32;
  const Buffer k = device.make(2 * capacity, kv_cols), v = device.make(2 * capacity, kv_cols);
  device.ops->copy(device.put(in.k, in.tokens), k.tensor().row_range(capacity, in.tokens));
  device.ops->copy(device.put(in.v, in.tokens), v.tensor().row_range(capacity, in.tokens));
  const Buffer q = device.put(in.q, in.tokens), out = device.make(fresh, q_cols);
  Sequences s = make_sequences(*device.ops, {static_cast<std::int32_t>(fresh)});
  s.key_start.host = {static_cast<std::int32_t>(capacity)};
  s.key_length.host = {static_cast<std::int32_t>(in.tokens)};
  device.ops->attention_forward({q.tensor().row_range(past, fresh), k, v, out, Tensor(), &s, 16, c.window, 0.25f});
  CHECK(distance(Device::get(out), Values(whole.end() - fresh * q_cols, whole.end())) < 1e-6);
}
