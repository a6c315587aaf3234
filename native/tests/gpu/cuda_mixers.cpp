// The kinds of attention beyond softmax over heads, on a GPU against float64: the short convolution, the gated delta rule, gates on heads, the heads
// of latent attention. The rule's backward pass is held against the recurrence that keeps every state.
#include <algorithm>

#include "tests/gpu/cuda_fixture.h"
#include "tests/support/mixer_reference.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

std::string rows_text(const std::vector<int>& lengths) {
  std::string text = " rows of";
  for (const int n : lengths) text += " " + std::to_string(n);
  return text;
}

/// [t, width] of each sequence through `body(row of values…)`, one below the other.
template <class Body>
Values by_row(const Sequences& s, Body&& body) {
  Values all;
  for (std::size_t i = 0; i + 1 < s.cu_queries.host.size(); ++i) reference::append(all, body(i));
  return all;
}

void short_conv(Gpu& gpu, DType dtype, const std::vector<int>& lengths, std::int64_t channels, std::int64_t taps) {
  const std::string shape = std::to_string(channels) + " channels, " + std::to_string(taps) + " taps," + rows_text(lengths);
  const auto s = gpu.sequences(lengths);
  const std::int64_t tokens = s->tokens;
  const auto c = static_cast<std::size_t>(channels), n = static_cast<std::size_t>(taps);
  const Values x = random_values(tokens * channels, 1, dtype, 1), w = random_values(channels * taps, 0.5, DType::f32, 2), dy = random_values(tokens * channels, 1, dtype, 3);
  const auto row = [&](const Values& values, std::size_t i) { return reference::rows_of(values, s->cu_queries.host, i, c); };
  const Values y = by_row(*s, [&](std::size_t i) { return reference::short_conv(row(x, i), w, c, n); });
  const Values dx = by_row(*s, [&](std::size_t i) { return reference::short_conv_backward(row(x, i), w, row(dy, i), c, n); });
  const auto held = gpu.put(x, dtype, tokens, channels, 3), weight = gpu.put(w, DType::f32, channels, taps), slope = gpu.put(dy, dtype, tokens, channels);
  const auto out = gpu.empty(dtype, tokens, channels, 5), gradient = gpu.empty(dtype, tokens, channels, 1);
  gpu.ops->short_conv_forward({held, weight, out, Tensor(), s.get()});
  compare(label("short_conv_forward", dtype, shape), gpu.get(out), y, limit_of(dtype));
  gpu.ops->short_conv_backward({held, weight, slope, gradient, s.get()});
  compare(label("short_conv_backward", dtype, shape), gpu.get(gradient), dx, limit_of(dtype));

  // In two pieces, the rest of each row behind its state.
  const auto state = gpu.empty(DType::f32, static_cast<std::int64_t>(lengths.size()), (taps - 1) * channels);
  std::vector<int> first, rest, none(lengths.size(), 0);
  for (const int length : lengths) {
    first.push_back((length + 1) / 2);
    rest.push_back(length - first.back());
  }
  if (std::find(rest.begin(), rest.end(), 0) != rest.end()) return;
  const auto piece = [&](const std::vector<int>& counts, const std::vector<int>& past) {
    const auto part = gpu.sequences(counts, past);
    Values in;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const auto from = x.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(s->cu_queries.host[i] + past[i]) * c);
      in.insert(in.end(), from, from + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(counts[i]) * c));
    }
    const auto to = gpu.empty(dtype, part->tokens, channels);
    gpu.ops->short_conv_forward({gpu.put(in, dtype, part->tokens, channels), weight, to, state, part.get()});
    return gpu.get(to);
  };
  const Values begun = piece(first, none), ended = piece(rest, first);
  Values joined;
  std::size_t a = 0, b = 0;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const std::size_t na = static_cast<std::size_t>(first[i]) * c, nb = static_cast<std::size_t>(rest[i]) * c;
    joined.insert(joined.end(), begun.begin() + static_cast<std::ptrdiff_t>(a), begun.begin() + static_cast<std::ptrdiff_t>(a + na));
    joined.insert(joined.end(), ended.begin() + static_cast<std::ptrdiff_t>(b), ended.begin() + static_cast<std::ptrdiff_t>(b + nb));
    a += na;
    b += nb;
  }
  compare(label("short_conv_forward in pieces", dtype, shape), joined, y, limit_of(dtype));
}

void delta_rule(Gpu& gpu, DType dtype, const std::vector<int>& lengths, const DeltaShape& shape) {
  const std::string text = std::to_string(shape.key_heads) + "/" + std::to_string(shape.value_heads) + " heads of " + std::to_string(shape.key_dim) + "x" +
                           std::to_string(shape.value_dim) + "," + rows_text(lengths);
  const auto s = gpu.sequences(lengths);
  const std::int64_t tokens = s->tokens, heads = shape.value_heads;
  const Values qkv = random_values(tokens * shape.mixed(), 1, dtype, 11), b = random_values(tokens * heads, 1, dtype, 12), a = random_values(tokens * heads, 1.5, dtype, 13),
               a_log = random_values(heads, 0.8, DType::f32, 14), bias = random_values(heads, 0.8, DType::f32, 15), dy = random_values(tokens * shape.values(), 1, dtype, 16);
  const auto row = [&](const Values& values, std::size_t i) { return reference::rows_of(values, s->cu_queries.host, i, values.size() / static_cast<std::size_t>(tokens)); };
  const Values y = by_row(*s, [&](std::size_t i) { return reference::delta_rule(row(qkv, i), row(b, i), row(a, i), a_log, bias, shape); });
  reference::DeltaGradients expected;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const reference::DeltaGradients own = reference::delta_rule_backward(row(qkv, i), row(b, i), row(a, i), a_log, bias, shape, row(dy, i));
    reference::append(expected.qkv, own.qkv);
    reference::append(expected.b, own.b);
    reference::append(expected.a, own.a);
  }
  const auto held = gpu.put(qkv, dtype, tokens, shape.mixed(), 2), beta = gpu.put(b, dtype, tokens, heads, 1), decay = gpu.put(a, dtype, tokens, heads),
             logs = gpu.put(a_log, DType::f32, 1, heads), biases = gpu.put(bias, DType::f32, 1, heads), slope = gpu.put(dy, dtype, tokens, shape.values());
  const auto out = gpu.empty(dtype, tokens, shape.values(), 3);
  gpu.ops->delta_rule_forward({held, beta, decay, logs, biases, out, Tensor(), s.get(), shape});
  compare(label("delta_rule_forward", dtype, text), gpu.get(out), y, limit_of(dtype));
  const auto dqkv = gpu.empty(dtype, tokens, shape.mixed(), 1), db = gpu.empty(dtype, tokens, heads, 2), da = gpu.empty(dtype, tokens, heads);
  const DeltaRuleBackward back{held, beta, decay, logs, biases, slope, dqkv, db, da, s.get(), shape};
  gpu.ops->delta_rule_backward(back);
  const Values got = gpu.get(dqkv);
  const auto width = static_cast<std::size_t>(shape.mixed()), keys = static_cast<std::size_t>(shape.keys()), values = static_cast<std::size_t>(shape.values());
  const auto part = [&](const Values& all, std::size_t first, std::size_t count) { return reference::columns(all, width, first, count); };
  compare(label("delta_rule_backward q", dtype, text), part(got, 0, keys), part(expected.qkv, 0, keys), limit_of(dtype));
  compare(label("delta_rule_backward k", dtype, text), part(got, keys, keys), part(expected.qkv, keys, keys), limit_of(dtype));
  compare(label("delta_rule_backward v", dtype, text), part(got, 2 * keys, values), part(expected.qkv, 2 * keys, values), limit_of(dtype));
  compare(label("delta_rule_backward b", dtype, text), gpu.get(db), expected.b, limit_of(dtype));
  compare(label("delta_rule_backward a", dtype, text), gpu.get(da), expected.a, limit_of(dtype));
  gpu.ops->delta_rule_backward(back);
  require(label("delta_rule_backward again, the same bits", dtype, text), gpu.get(dqkv) == got);

  // A row alone: the same bits as among others.
  const std::size_t last = lengths.size() - 1;
  const auto alone = gpu.sequences({lengths[last]});
  const Values own_qkv = row(qkv, last), own_b = row(b, last), own_a = row(a, last);
  const auto single = gpu.empty(dtype, lengths[last], shape.values());
  gpu.ops->delta_rule_forward({gpu.put(own_qkv, dtype, lengths[last], shape.mixed()), gpu.put(own_b, dtype, lengths[last], heads),
                               gpu.put(own_a, dtype, lengths[last], heads), logs, biases, single, Tensor(), alone.get(), shape});
  const Values together = gpu.get(out), apart = gpu.get(single);
  require(label("delta_rule_forward of a row alone, the same bits", dtype, text), std::equal(apart.begin(), apart.end(), together.end() - static_cast<std::ptrdiff_t>(apart.size())));

  // Token by token behind a state, the last row.
  const auto state = gpu.empty(DType::f32, 1, shape.state());
  Values stepped;
  const auto tokens_of = [&](const Values& all, int first, int count) {
    const std::size_t each = all.size() / static_cast<std::size_t>(lengths[last]);
    return Values(all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(first) * each), all.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(first + count) * each));
  };
  for (int done = 0; done < lengths[last];) {
    const int count = std::min(lengths[last] - done, done == 0 ? 3 : 1 + done % 5);
    const auto step = gpu.sequences({count}, {done});
    const auto to = gpu.empty(dtype, count, shape.values());
    gpu.ops->delta_rule_forward({gpu.put(tokens_of(own_qkv, done, count), dtype, count, shape.mixed()), gpu.put(tokens_of(own_b, done, count), dtype, count, heads),
                                 gpu.put(tokens_of(own_a, done, count), dtype, count, heads), logs, biases, to, state, step.get(), shape});
    reference::append(stepped, gpu.get(to));
    done += count;
  }
  require(label("delta_rule_forward behind a state, the same bits", dtype, text), stepped == apart);
}

void head_gate(Gpu& gpu, DType dtype, std::int64_t tokens, std::int64_t heads, std::int64_t e, bool normed) {
  const std::string text = std::to_string(tokens) + " tokens, " + std::to_string(heads) + " heads of " + std::to_string(e) + (normed ? ", normed" : "");
  const std::int64_t cols = heads * e;
  const Values x = random_values(tokens * cols, 1.5, dtype, 21), gate = random_values(tokens * cols, 1.5, dtype, 22), dy = random_values(tokens * cols, 1, dtype, 23);
  const Values w = normed ? random_values(e, 1, DType::f32, 24) : Values();
  const auto held = gpu.put(x, dtype, tokens, cols, 1), gates = gpu.put(gate, dtype, tokens, cols), weight = normed ? gpu.put(w, DType::f32, 1, e) : Gpu::Held();
  const auto y = gpu.empty(dtype, tokens, cols, 7), slope = gpu.put(dy, dtype, tokens, cols), dgate = gpu.empty(dtype, tokens, cols);
  gpu.ops->head_gate_forward({held, gates, weight, NormRule(1e-6f), e, y});
  compare(label("head_gate_forward", dtype, text), gpu.get(y), reference::head_gate(x, gate, w, 1e-6), limit_of(dtype));
  gpu.ops->head_gate_backward({held, gates, weight, NormRule(1e-6f), e, slope, slope, dgate});
  const reference::GateGradients expected = reference::head_gate_backward(x, gate, w, 1e-6, dy);
  compare(label("head_gate_backward dx", dtype, text), gpu.get(slope), expected.x, limit_of(dtype));
  compare(label("head_gate_backward dgate", dtype, text), gpu.get(dgate), expected.gate, limit_of(dtype));
}

void latent_heads(Gpu& gpu, DType dtype, std::int64_t tokens, const LatentShape& shape, bool interleaved, bool turns) {
  const std::string text = std::to_string(tokens) + " tokens, " + std::to_string(shape.heads) + " heads of " + std::to_string(shape.plain) + "+" +
                           std::to_string(shape.turning) + " and " + std::to_string(shape.value) + (interleaved ? ", neighbours" : "") + (turns ? "" : ", no positions");
  const std::int64_t e = shape.head_dim(), q_cols = shape.heads * e, kv_cols = shape.heads * (shape.plain + shape.value), v_cols = shape.heads * shape.value, half = shape.turning / 2;
  Values table;
  Indices rows;
  for (std::int64_t p = 0; p < tokens + 5; ++p)
    for (std::int64_t i = 0; i < shape.turning; ++i) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i % half) / static_cast<double>(shape.turning));
      table.push_back(rounded(i < half ? std::cos(angle) : std::sin(angle), DType::f32));
    }
  for (std::int64_t t = 0; t < tokens; ++t) rows.host.push_back(static_cast<int>((t * 3 + 2) % (tokens + 5)));
  gpu.upload(rows);
  const Values q = random_values(tokens * q_cols, 1, dtype, 31), expanded = random_values(tokens * kv_cols, 1, dtype, 32), shared = random_values(tokens * shape.turning, 1, dtype, 33),
               dq = random_values(tokens * q_cols, 1, dtype, 34), dk = random_values(tokens * q_cols, 1, dtype, 35), dv = random_values(tokens * v_cols, 1, dtype, 36);
  const auto turn = [&](const double* from, std::int64_t t, bool back) {
    Values to(from, from + shape.turning);
    if (!turns) return to;
    const double* row = table.data() + rows.host[static_cast<std::size_t>(t)] * shape.turning;
    for (std::int64_t i = 0; i < half; ++i) {
      const std::int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
      const double sine = back ? -row[half + i] : row[half + i];
      to[static_cast<std::size_t>(first)] = from[first] * row[i] - from[second] * sine;
      to[static_cast<std::size_t>(second)] = from[second] * row[i] + from[first] * sine;
    }
    return to;
  };
  Values q_out, k_out, v_out, dq_in, dexpanded, dshared;
  for (std::int64_t t = 0; t < tokens; ++t) {
    Values sum(static_cast<std::size_t>(shape.turning), 0.0);
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t at = t * q_cols + h * e, own = t * kv_cols + h * (shape.plain + shape.value), value = t * v_cols + h * shape.value;
      q_out.insert(q_out.end(), q.begin() + at, q.begin() + at + shape.plain);
      reference::append(q_out, turn(q.data() + at + shape.plain, t, false));
      k_out.insert(k_out.end(), expanded.begin() + own, expanded.begin() + own + shape.plain);
      reference::append(k_out, turn(shared.data() + t * shape.turning, t, false));
      v_out.insert(v_out.end(), expanded.begin() + own + shape.plain, expanded.begin() + own + shape.plain + shape.value);
      dq_in.insert(dq_in.end(), dq.begin() + at, dq.begin() + at + shape.plain);
      reference::append(dq_in, turn(dq.data() + at + shape.plain, t, true));
      dexpanded.insert(dexpanded.end(), dk.begin() + at, dk.begin() + at + shape.plain);
      dexpanded.insert(dexpanded.end(), dv.begin() + value, dv.begin() + value + shape.value);
      for (std::int64_t c = 0; c < shape.turning; ++c) sum[static_cast<std::size_t>(c)] += dk[static_cast<std::size_t>(at + shape.plain + c)];
    }
    reference::append(dshared, turn(sum.data(), t, true));
  }
  const auto rope = gpu.put(table, DType::f32, tokens + 5, shape.turning);
  const Tensor used = turns ? rope.view : Tensor();
  const auto q_to = gpu.empty(dtype, tokens, q_cols), k_to = gpu.empty(dtype, tokens, q_cols, 4), v_to = gpu.empty(dtype, tokens, v_cols, 1);
  gpu.ops->latent_heads_forward({gpu.put(q, dtype, tokens, q_cols, 3), gpu.put(expanded, dtype, tokens, kv_cols), gpu.put(shared, dtype, tokens, shape.turning, 5), q_to, k_to, v_to, used,
                                 &rows, interleaved, shape});
  compare(label("latent_heads_forward q", dtype, text), gpu.get(q_to), q_out, limit_of(dtype));
  compare(label("latent_heads_forward k", dtype, text), gpu.get(k_to), k_out, limit_of(dtype));
  compare(label("latent_heads_forward v", dtype, text), gpu.get(v_to), v_out, limit_of(dtype));
  const auto grad_q = gpu.put(dq, dtype, tokens, q_cols), grad_expanded = gpu.empty(dtype, tokens, kv_cols, 2), grad_shared = gpu.empty(dtype, tokens, shape.turning, 1);
  gpu.ops->latent_heads_backward({grad_q, gpu.put(dk, dtype, tokens, q_cols), gpu.put(dv, dtype, tokens, v_cols), grad_q, grad_expanded, grad_shared, used, &rows, interleaved, shape});
  compare(label("latent_heads_backward q", dtype, text), gpu.get(grad_q), dq_in, limit_of(dtype));
  compare(label("latent_heads_backward expanded", dtype, text), gpu.get(grad_expanded), dexpanded, limit_of(dtype));
  compare(label("latent_heads_backward shared", dtype, text), gpu.get(grad_shared), dshared, limit_of(dtype));
}

}  // namespace

/// usage: cuda_mixers [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{2} << 30);
    short_conv(gpu, dtype, {1}, 1, 2);
    short_conv(gpu, dtype, {9, 2, 33}, 300, 4);
    short_conv(gpu, dtype, {5, 20}, 257, 16);
    short_conv(gpu, dtype, {6, 3}, 40, 3);
    for (const std::vector<int>& lengths : {std::vector<int>{1, 3}, std::vector<int>{33, 1, 64}, std::vector<int>{20, 32, 31, 7}}) {
      delta_rule(gpu, dtype, lengths, {1, 1, 8, 8, 4});
      delta_rule(gpu, dtype, lengths, {2, 4, 12, 12, 4});
      delta_rule(gpu, dtype, lengths, {2, 2, 33, 17, 4});
      delta_rule(gpu, dtype, lengths, {3, 6, 64, 100, 4});
      delta_rule(gpu, dtype, lengths, {1, 2, 128, 128, 4});
      delta_rule(gpu, dtype, lengths, {2, 2, 2, 1, 4});
    }
    for (const bool normed : {false, true}) {
      head_gate(gpu, dtype, 1, 1, 8, normed);
      head_gate(gpu, dtype, 13, 3, 33, normed);
      head_gate(gpu, dtype, 6, 4, 256, normed);
    }
    for (const bool interleaved : {false, true})
      for (const bool turns : {false, true}) {
        latent_heads(gpu, dtype, 1, {1, 2, 2, 1}, interleaved, turns);
        latent_heads(gpu, dtype, 11, {4, 12, 8, 12}, interleaved, turns);
        latent_heads(gpu, dtype, 7, {16, 128, 64, 128}, interleaved, turns);
      }
    if (asked.small) continue;
    short_conv(gpu, dtype, {700, 324}, 1024, 4);
    delta_rule(gpu, dtype, {700, 324}, {2, 4, 128, 128, 4});
    head_gate(gpu, dtype, 1024, 32, 128, true);
  }
  return finish();
}
