// RMSNorm, rotary with per-head norms, SwiGLU, cross entropy, AdamW, rows moved about.
#include "tests/support/bench_device.h"

using namespace testing;

namespace {
constexpr double kTight = 2e-6;
}

TEST_CASE("RMSNorm and its gradient") {
  for (const std::size_t d : {16u, 33u, 128u}) {
    const std::size_t t = 5;
    Device device;
    Values x = reference::random_values(t * d, 1), w = reference::random_values(d, 2), g = reference::random_values(t * d, 3);
    const Values r = reference::random_values(t * d, 4);
    const Buffer dx = device.make(t, static_cast<std::int64_t>(d)), y = device.make(t, static_cast<std::int64_t>(d));
    const Buffer bx = device.put(x, t), bw = device.put(w, 1), bg = device.put(g, t), br = device.put(r, t);
    device.ops->rmsnorm_forward(bx, bw, 1e-5f, y);
    CHECK(distance(Device::get(y), reference::rmsnorm(x, w, 1e-5)) < kTight);
    const Values forward = Device::get(y);

    const auto loss = [&] { return reference::dot(reference::rmsnorm(x, w, 1e-5), g); };
    const auto at = reference::spread(x.size(), 60);
    Values expected = reference::derivatives(x, at, loss);
    for (std::size_t i = 0; i < at.size(); ++i) expected[i] += r[at[i]];
    // Into a tensor of its own, then in place with the norm's output over dy.
    device.ops->rmsnorm_backward({bx, bw, bg, br, dx, Tensor(), 1e-5f});
    CHECK(distance(pick(Device::get(dx), at), expected) < 1e-5);
    device.ops->rmsnorm_backward({bx, bw, bg, br, br, bg, 1e-5f});
    CHECK(Device::get(br) == Device::get(dx));
    CHECK(Device::get(bg) == forward);
  }
}

TEST_CASE("rotary and per-head norms, and their gradients") {
  const std::size_t e = 32, heads = 3, kv = 1, t = 7, q_cols = heads * e, k_cols = kv * e;
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 0, 1, 9};
  Values inv_freq;
  for (std::size_t i = 0; i < e / 2; ++i) inv_freq.push_back(std::pow(10000.0, -2.0 * static_cast<double>(i) / e));
  for (const bool norms : {false, true}) {
    Device device;
    Values q = reference::random_values(t * q_cols, 1), k = reference::random_values(t * k_cols, 2);
    const Values qw = reference::random_values(e, 3), kw = reference::random_values(e, 4);
    const Values gq = reference::random_values(t * q_cols, 5), gk = reference::random_values(t * k_cols, 6);
    Values table;
    for (int p = 0; p < 10; ++p) {
      for (const double f : inv_freq) table.push_back(std::cos(p * f));
      for (const double f : inv_freq) table.push_back(std::sin(p * f));
    }
    const auto turned = [&](const Values& x, const Values& w, std::size_t width) {
      return reference::rotary(norms ? reference::rmsnorm(x, w, 1e-6) : x, positions, inv_freq, width, e);
    };
    Indices rows;
    rows.host = positions;
    device.ops->upload(rows);
    const Buffer rope = device.put(table, 10), bqw = device.put(qw, 1), bkw = device.put(kw, 1);
    const Buffer bq = device.put(q, t), bk = device.put(k, t);
    const Buffer oq = device.make(t, q_cols), ok = device.make(t, k_cols);
    const Values scale{1, 1, 2, 1, 1, 1, 0.5};
    const Buffer q_scale = device.put(scale, 1);
    const Tensor nq = norms ? bqw.tensor() : Tensor(), nk = norms ? bkw.tensor() : Tensor();
    device.ops->qk_rope_forward({bq, bk, oq, ok, nq, nk, 1e-6f, rope, &rows, q_scale, static_cast<std::int64_t>(e)});
    Values expected = turned(q, qw, q_cols);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] *= scale[i / q_cols];
    CHECK(distance(Device::get(oq), expected) < kTight);
    CHECK(distance(Device::get(ok), turned(k, kw, k_cols)) < kTight);

    const Buffer dq = device.put(gq, t), dk = device.put(gk, t);
    device.ops->qk_rope_backward({dq, dk, bq, bk, nq, nk, 1e-6f, rope, &rows, static_cast<std::int64_t>(e)});
    const auto at_q = reference::spread(q.size(), 80), at_k = reference::spread(k.size(), 80);
    CHECK(distance(pick(Device::get(dq), at_q), reference::derivatives(q, at_q, [&] { return reference::dot(turned(q, qw, q_cols), gq); })) < 1e-5);
    CHECK(distance(pick(Device::get(dk), at_k), reference::derivatives(k, at_k, [&] { return reference::dot(turned(k, kw, k_cols), gk); })) < 1e-5);
  }
}

TEST_CASE("SwiGLU and its gradient, also in place over gate, up and the incoming gradient") {
  const std::size_t t = 3, f = 37;
  Device device;
  Values gate = reference::random_values(t * f, 1, 3.0), up = reference::random_values(t * f, 2);
  const Values g = reference::random_values(t * f, 3);
  const Buffer bg = device.put(gate, t), bu = device.put(up, t), bd = device.put(g, t), act = device.make(t, f);
  device.ops->swiglu_forward(bg, bu, act, Activation::silu);
  CHECK(distance(Device::get(act), reference::swiglu(gate, up)) < kTight);
  const Values forward = Device::get(act);
  device.ops->swiglu_backward(bg, bu, bd, bg, bu, bd, Activation::silu);
  CHECK(Device::get(bd) == forward);
  const auto at = reference::spread(gate.size(), 111);
  const auto loss = [&] { return reference::dot(reference::swiglu(gate, up), g); };
  CHECK(distance(pick(Device::get(bg), at), reference::derivatives(gate, at, loss)) < 1e-5);
  CHECK(distance(pick(Device::get(bu), at), reference::derivatives(up, at, loss)) < 1e-5);
}

TEST_CASE("SwiGLU stays finite for extreme gates") {
  Device device;
  const Values gate{-1000, -88, 88, 1000}, up{1, 1, 1, 1};
  const Buffer bg = device.put(gate, 1), bu = device.put(up, 1), act = device.make(1, 4);
  device.ops->swiglu_forward(bg, bu, act, Activation::silu);
  const Values got = Device::get(act);
  CHECK(std::abs(got[0]) < 1e-30);
  CHECK(std::abs(got[1]) < 1e-30);
  CHECK(got[2] == doctest::Approx(88));
  CHECK(got[3] == doctest::Approx(1000));
}

TEST_CASE("cross entropy, its gradient and its hits") {
  for (const auto& [v, smoothing] : {std::pair{7u, 0.0f}, {40u, 0.0f}, {129u, 0.0f}, {7u, 0.1f}, {40u, 1.0f}, {129u, 0.25f}}) {
    const std::size_t rows = 4;
    Device device;
    Values z = reference::random_values(rows * v, 1, 4.0);
    std::vector<std::int32_t> targets{0, static_cast<std::int32_t>(v) - 1, 3, 5};
    z[2 * v + 3] = 50;  // a hit
    z[3 * v + 5] = z[3 * v + 2] = 60;  // a tie: the first index is the prediction
    const Values weights{0.5, 2, 1, 0};
    const Buffer logits = device.put(z, rows), target = device.make(1, rows, DType::i32), weight = device.put(weights, 1, DType::f32);
    const Buffer loss = device.make(1, rows, DType::f32), correct = device.make(1, rows, DType::i32);
    device.ops->upload(target, targets.data());
    device.ops->cross_entropy({logits, logits, target, weight, loss, correct, 1, 0, smoothing});
    const auto of_row = [&](std::size_t r) { return reference::cross_entropy(z.data() + r * v, v, targets[r], static_cast<double>(smoothing)); };
    const auto total = [&] {
      double sum = 0;
      for (std::size_t r = 0; r < rows; ++r) sum += weights[r] * of_row(r);
      return sum;
    };
    for (std::size_t r = 0; r < rows; ++r)
      CHECK(loss.tensor().as<float>()[r] == doctest::Approx(of_row(r)).epsilon(1e-5));
    CHECK(correct.tensor().as<std::int32_t>()[2] == 1);
    CHECK(correct.tensor().as<std::int32_t>()[3] == 0);
    const auto at = reference::spread(z.size(), 200);
    const Values expected = reference::derivatives(z, at, total);
    CHECK(distance(pick(Device::get(logits), at), expected) < 1e-5);
  }
}

TEST_CASE("AdamW follows its definition over several steps, with decay, and leaves gradients zero") {
  const std::size_t n = 70001;
  Device device(DType::f32, 2);
  Values w = reference::random_values(n, 1), m(n, 0.0), v(n, 0.0);
  const Buffer bw = device.put(w, 1), bm = device.put(m, 1), bv = device.put(v, 1);
  Buffer bg = device.make(1, static_cast<std::int64_t>(n));
  for (int step = 1; step <= 3; ++step) {
    const Values g = reference::random_values(n, 10u + static_cast<unsigned>(step));
    for (std::size_t i = 0; i < n; ++i) bg.tensor().as<float>()[i] = static_cast<float>(g[i]);
    const AdamTarget target{bw, bg, bm, bv};
    device.ops->adamw({&target, 1}, {step, 1e-2, 0.5, 0.9, 0.99, 1e-8, 0.1});
    for (std::size_t i = 0; i < n; ++i) {
      const double scaled = 0.5 * g[i];
      m[i] = 0.9 * m[i] + 0.1 * scaled;
      v[i] = 0.99 * v[i] + 0.01 * scaled * scaled;
      const double m_hat = m[i] / (1 - std::pow(0.9, step)), v_hat = v[i] / (1 - std::pow(0.99, step));
      w[i] = w[i] * (1 - 1e-2 * 0.1) - 1e-2 * m_hat / (std::sqrt(v_hat) + 1e-8);
    }
    CHECK(distance(Device::get(bg), Values(n, 0.0)) == 0);
  }
  CHECK(distance(Device::get(bw), w) < 1e-6);
  CHECK(distance(Device::get(bm), m) < 1e-6);
  CHECK(distance(Device::get(bv), v) < 1e-6);
}

TEST_CASE("sums of squares") {
  Device one(DType::f32, 1), two(DType::f32, 2);
  const Values a = reference::random_values(100003, 1), b = reference::random_values(5, 2);
  std::vector<double> got[2];
  int i = 0;
  for (Device* device : {&one, &two}) {
    const Buffer ba = device->put(a, 1), bb = device->put(b, 1);
    const Tensor tensors[] = {ba, bb};
    got[i++] = device->ops->squared_norms(tensors);
  }
  CHECK(got[0] == got[1]);
  CHECK(got[0][0] == doctest::Approx(reference::dot(a, a)).epsilon(1e-12));
  CHECK(got[0][1] == doctest::Approx(reference::dot(b, b)).epsilon(1e-12));
}

TEST_CASE("rows are gathered, scattered and converted") {
  Device device(DType::bf16);
  const Values table = reference::random_values(6 * 19, 1);
  const Buffer from = device.put(table, 6, DType::f32), to = device.make(3, 19), back = device.make(6, 19);
  Indices rows;
  rows.host = {5, 0, 2};
  device.ops->upload(rows);
  device.ops->gather_rows(from, rows, to);
  for (std::size_t r = 0; r < 3; ++r)
    for (std::size_t c = 0; c < 19; ++c)
      CHECK(to.tensor().as<bf16>()[r * 19 + c].bits == to_bf16(static_cast<float>(table[static_cast<std::size_t>(rows.host[r]) * 19 + c])).bits);
  device.ops->zero(back);
  device.ops->scatter_rows(to, rows, 2.0f, back);
  CHECK(to_float(back.tensor().as<bf16>()[5 * 19]) == 2.0f * to_float(to.tensor().as<bf16>()[0]));
  CHECK(back.tensor().as<bf16>()[1 * 19].bits == 0);
}
