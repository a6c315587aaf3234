// Operations of the kinds of attention beyond softmax over heads of one width, against float64: any sizes, rows packed, states behind them.
#include "tests/support/bench_device.h"
#include "tests/support/mixer_reference.h"

using namespace testing;

namespace {

Sequences rows(Device& device, const std::vector<std::int32_t>& lengths, const std::vector<std::int32_t>& past = {}) {
  Sequences s = make_sequences(*device.ops, lengths);
  for (std::size_t i = 0; i < past.size(); ++i) s.key_length.host[i] += past[i];
  return s;
}
Values row_of(const Values& x, const Sequences& s, std::size_t i) {
  return reference::rows_of(x, s.cu_queries.host, i, x.size() / static_cast<std::size_t>(s.tokens));
}

const std::vector<std::vector<std::int32_t>> kRows{{1}, {2, 1, 5}, {40, 3}, {17, 100, 1, 9}};
const std::vector<DeltaShape> kShapes{{1, 1, 1, 1, 2}, {1, 3, 5, 2, 4}, {2, 4, 16, 16, 4}, {2, 2, 33, 70, 3}, {1, 2, 130, 20, 16}};

struct Delta {
  Values qkv, b, a, a_log, dt_bias, g;
};
Delta inputs_of(const DeltaShape& shape, std::int64_t tokens) {
  const auto n = [&](std::int64_t each) { return static_cast<std::size_t>(tokens * each); };
  return {reference::random_values(n(shape.mixed()), 1), reference::random_values(n(shape.value_heads), 2), reference::random_values(n(shape.value_heads), 3, 1.5),
          reference::random_values(static_cast<std::size_t>(shape.value_heads), 4), reference::random_values(static_cast<std::size_t>(shape.value_heads), 5),
          reference::random_values(n(shape.values()), 6)};
}

Values delta_forward(Device& device, const Delta& in, const Sequences& s, const DeltaShape& shape, const Tensor& state = {}) {
  const Buffer out = device.make(s.tokens, shape.values());
  device.ops->delta_rule_forward({device.put(in.qkv, s.tokens), device.put(in.b, s.tokens), device.put(in.a, s.tokens), device.put(in.a_log, 1, DType::f32),
                                  device.put(in.dt_bias, 1, DType::f32), out, state, &s, shape});
  return Device::get(out);
}

/// Tokens [first, first + count) of the only row.
Delta piece(const Delta& in, std::size_t tokens, std::size_t first, std::size_t count) {
  const auto cut = [&](const Values& x) {
    const std::size_t width = x.size() / tokens;
    return Values(x.begin() + static_cast<std::ptrdiff_t>(first * width), x.begin() + static_cast<std::ptrdiff_t>((first + count) * width));
  };
  return {cut(in.qkv), cut(in.b), cut(in.a), in.a_log, in.dt_bias, cut(in.g)};
}

}  // namespace

TEST_CASE("the gated delta rule and its way back equal the recurrence in float64, whatever the threads") {
  for (const DeltaShape& shape : kShapes)
    for (const auto& lengths : kRows) {
      Device device(DType::f32, 1), other(DType::f32, 3);
      const Sequences s = rows(device, lengths);
      const Delta in = inputs_of(shape, s.tokens);
      Values expected;
      reference::DeltaGradients grads;
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const auto own = [&](const Values& x) { return row_of(x, s, i); };
        reference::append(expected, reference::delta_rule(own(in.qkv), own(in.b), own(in.a), in.a_log, in.dt_bias, shape));
        const auto back = reference::delta_rule_backward(own(in.qkv), own(in.b), own(in.a), in.a_log, in.dt_bias, shape, own(in.g));
        reference::append(grads.qkv, back.qkv);
        reference::append(grads.b, back.b);
        reference::append(grads.a, back.a);
      }
      const Values got = delta_forward(device, in, s, shape);
      CHECK(distance(got, expected) < 2e-6);
      CHECK(delta_forward(other, in, s, shape) == got);
      std::vector<Values> first;
      for (Device* on : {&device, &other}) {
        const Buffer dqkv = on->make(s.tokens, shape.mixed()), db = on->make(s.tokens, shape.value_heads), da = on->make(s.tokens, shape.value_heads);
        on->ops->delta_rule_backward({on->put(in.qkv, s.tokens), on->put(in.b, s.tokens), on->put(in.a, s.tokens), on->put(in.a_log, 1, DType::f32),
                                      on->put(in.dt_bias, 1, DType::f32), on->put(in.g, s.tokens), dqkv, db, da, &s, shape});
        const std::vector<Values> all{Device::get(dqkv), Device::get(db), Device::get(da)};
        if (first.empty()) first = all;
        CHECK(all == first);
      }
      CHECK(distance(first[0], grads.qkv) < 1e-5);
      CHECK(distance(first[1], grads.b) < 1e-5);
      // In rows of one token nothing decays.
      if (s.tokens > s.count()) CHECK(distance(first[2], grads.a) < 1e-5);
    }
}

TEST_CASE("the reference's own way back equals finite differences") {
  const DeltaShape shape{1, 2, 5, 3, 4};
  Delta in = inputs_of(shape, 7);
  const auto loss = [&] { return reference::dot(reference::delta_rule(in.qkv, in.b, in.a, in.a_log, in.dt_bias, shape), in.g); };
  const auto grads = reference::delta_rule_backward(in.qkv, in.b, in.a, in.a_log, in.dt_bias, shape, in.g);
  const auto held = [&](Values& values, const Values& gradient) {
    const auto at = reference::spread(values.size(), 20);
    CHECK(distance(pick(gradient, at), reference::derivatives(values, at, loss)) < 1e-7);
  };
  held(in.qkv, grads.qkv);
  held(in.b, grads.b);
  held(in.a, grads.a);
}

TEST_CASE("a row's numbers do not depend on its neighbours, nor on how it arrives") {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const DeltaShape& shape : kShapes) {
      Device device(dtype, 2);
      const std::vector<std::int32_t> lengths{9, 31, 4};
      const Sequences s = rows(device, lengths);
      const Delta in = inputs_of(shape, s.tokens);
      const Values together = delta_forward(device, in, s, shape);
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const Delta own = piece(in, static_cast<std::size_t>(s.tokens), static_cast<std::size_t>(s.cu_queries.host[i]), static_cast<std::size_t>(lengths[i]));
        const Values alone = delta_forward(device, own, rows(device, {lengths[i]}), shape);
        CHECK(alone == row_of(together, s, i));
        // Behind a state, which a fresh row must not read.
        const Buffer state = device.put(Values(static_cast<std::size_t>(shape.state()), 1e30), 1, DType::f32);
        Values stepped;
        for (std::int32_t done = 0; done < lengths[i];) {
          const std::int32_t count = std::min<std::int32_t>(lengths[i] - done, 1 + done % 4);
          const Delta next = piece(own, static_cast<std::size_t>(lengths[i]), static_cast<std::size_t>(done), static_cast<std::size_t>(count));
          reference::append(stepped, delta_forward(device, next, rows(device, {count}, {done}), shape, state));
          done += count;
        }
        CHECK(stepped == alone);
      }
    }
}

TEST_CASE("the short convolution and its way back, packed, alone and behind a state") {
  for (const std::int64_t taps : {2, 3, 4, 16})
    for (const std::int64_t channels : {1, 7, 40, 300})
      for (const auto& lengths : kRows) {
        Device device(DType::f32, 2);
        const Sequences s = rows(device, lengths);
        const auto c = static_cast<std::size_t>(channels), n = static_cast<std::size_t>(taps);
        const Values x = reference::random_values(static_cast<std::size_t>(s.tokens) * c, 1), w = reference::random_values(c * n, 2, 0.5), g = reference::random_values(x.size(), 3);
        Values y, dx;
        for (std::size_t i = 0; i < lengths.size(); ++i) {
          reference::append(y, reference::short_conv(row_of(x, s, i), w, c, n));
          reference::append(dx, reference::short_conv_backward(row_of(x, s, i), w, row_of(g, s, i), c, n));
        }
        const Buffer weight = device.put(w, channels, DType::f32), out = device.make(s.tokens, channels), grad = device.make(s.tokens, channels);
        device.ops->short_conv_forward({device.put(x, s.tokens), weight, out, Tensor(), &s});
        device.ops->short_conv_backward({device.put(x, s.tokens), weight, device.put(g, s.tokens), grad, &s});
        const Values got = Device::get(out);
        CHECK(distance(got, y) < 2e-6);
        CHECK(distance(Device::get(grad), dx) < 2e-6);
        const Values first = row_of(x, s, 0);
        const Buffer state = device.put(Values((n - 1) * c, 1e30), 1, DType::f32);
        Values stepped;
        for (std::int32_t done = 0; done < lengths[0];) {
          const std::int32_t count = std::min<std::int32_t>(lengths[0] - done, 1 + done % 3);
          const Sequences part = rows(device, {count}, {done});
          const Values next(first.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(done) * c), first.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(done + count) * c));
          const Buffer to = device.make(count, channels);
          device.ops->short_conv_forward({device.put(next, count), weight, to, state, &part});
          reference::append(stepped, Device::get(to));
          done += count;
        }
        CHECK(stepped == row_of(got, s, 0));
      }
}

TEST_CASE("gates on heads, with and without a norm") {
  for (const std::int64_t e : {1, 5, 16, 130})
    for (const bool normed : {false, true}) {
      Device device(DType::f32, 2);
      const std::int64_t tokens = 37, cols = 3 * e;
      const auto n = static_cast<std::size_t>(tokens * cols);
      const Values x = reference::random_values(n, 1), gate = reference::random_values(n, 2, 2), g = reference::random_values(n, 3);
      const Values w = normed ? reference::random_values(static_cast<std::size_t>(e), 4) : Values();
      const Buffer weight = normed ? device.put(w, 1, DType::f32) : Buffer(), y = device.make(tokens, cols), grad = device.put(g, tokens), dgate = device.make(tokens, cols);
      device.ops->head_gate_forward({device.put(x, tokens), device.put(gate, tokens), weight, NormRule(1e-6f), e, y});
      CHECK(distance(Device::get(y), reference::head_gate(x, gate, w, 1e-6)) < 2e-6);
      device.ops->head_gate_backward({device.put(x, tokens), device.put(gate, tokens), weight, NormRule(1e-6f), e, grad, grad, dgate});
      const auto expected = reference::head_gate_backward(x, gate, w, 1e-6, g);
      if (!normed || e > 1) CHECK(distance(Device::get(grad), expected.x) < 2e-5);  // the norm of one number is its sign
      CHECK(distance(Device::get(dgate), expected.gate) < 2e-6);
    }
}

TEST_CASE("attention whose heads of v have a width of their own") {
  for (const auto& [e, ev] : std::vector<std::pair<std::size_t, std::size_t>>{{2, 1}, {20, 12}, {16, 16}, {8, 33}, {192, 128}, {40, 100}})
    for (const auto& lengths : kRows) {
      Device device(DType::f32, 2);
      const Sequences s = rows(device, lengths);
      const std::size_t heads = 2, t = static_cast<std::size_t>(s.tokens);
      const double scale = 1.2 / std::sqrt(static_cast<double>(e));
      const Values q = reference::random_values(t * heads * e, 1), k = reference::random_values(t * heads * e, 2), v = reference::random_values(t * heads * ev, 3),
                   g = reference::random_values(t * heads * ev, 4);
      Values y;
      reference::AttentionGradients grads;
      for (std::size_t i = 0; i < lengths.size(); ++i) {
        const auto own = [&](const Values& x) { return row_of(x, s, i); };
        reference::append(y, reference::wide_attention(own(q), own(k), own(v), heads, e, ev, scale));
        const auto back = reference::wide_attention_backward(own(q), own(k), own(v), heads, e, ev, scale, own(g));
        reference::append(grads.q, back.q);
        reference::append(grads.k, back.k);
        reference::append(grads.v, back.v);
      }
      const auto cols = static_cast<std::int64_t>(heads * e), v_cols = static_cast<std::int64_t>(heads * ev);
      const Buffer qd = device.put(q, s.tokens), kd = device.put(k, s.tokens), vd = device.put(v, s.tokens), gd = device.put(g, s.tokens), out = device.make(s.tokens, v_cols),
                   lse = device.make(static_cast<std::int64_t>(heads), s.tokens, DType::f32), dq = device.make(s.tokens, cols), dk = device.make(s.tokens, cols),
                   dv = device.make(s.tokens, v_cols);
      AttentionForward forward{qd, kd, vd, out, lse, &s, static_cast<std::int64_t>(e), 0, static_cast<float>(scale)};
      forward.value_dim = static_cast<std::int64_t>(ev);
      device.ops->attention_forward(forward);
      AttentionBackward backward{qd, kd, vd, out, lse, gd, dq, dk, dv, &s, static_cast<std::int64_t>(e), 0, static_cast<float>(scale)};
      backward.value_dim = static_cast<std::int64_t>(ev);
      device.ops->attention_backward(backward);
      CHECK(distance(Device::get(out), y) < 2e-6);
      CHECK(distance(Device::get(dv), grads.v) < 5e-6);
      if (s.tokens == s.count()) continue;  // rows of one token: nothing to choose between
      CHECK(distance(Device::get(dq), grads.q) < 5e-6);
      CHECK(distance(Device::get(dk), grads.k) < 5e-6);
    }
}
