// The GPU's element-wise operations, norms, rotary, attention, cross entropy and optimizer against plain references in float64.
#include <algorithm>
#include <limits>
#include <string_view>

#include "tests/cuda_fixture.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

std::string label(const char* op, DType dtype, const std::string& shape) {
  return std::string(op) + " " + dtype_name(dtype) + " " + shape;
}

void elementwise(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols);
  const std::int64_t n = rows * cols;
  const Values gate = random_values(n, 1.5, dtype, 1), up = random_values(n, 1, dtype, 2), dact = random_values(n, 1, dtype, 3);
  Values act(gate.size()), dgate(gate.size()), dup(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double s = 1 / (1 + std::exp(-gate[i]));
    act[i] = gate[i] * s * up[i];
    dup[i] = dact[i] * gate[i] * s;
    dgate[i] = dact[i] * up[i] * s * (1 + gate[i] * (1 - s));
  }
  auto both = gpu.empty(dtype, rows, 2 * cols);
  const Tensor g = both.view.columns(0, cols), u = both.view.columns(cols, cols);
  gpu.ops->copy(gpu.put(gate, dtype, rows, cols), g);
  gpu.ops->copy(gpu.put(up, dtype, rows, cols), u);
  auto out = gpu.empty(dtype, rows, cols);
  gpu.ops->swiglu_forward(g, u, out);
  compare(label("swiglu_forward", dtype, shape), gpu.get(out), act, limit_of(dtype));
  auto d = gpu.put(dact, dtype, rows, cols);
  gpu.ops->swiglu_backward(g, u, d, g, u, d);
  compare(label("swiglu_backward act", dtype, shape), gpu.get(d), act, limit_of(dtype));
  compare(label("swiglu_backward dgate", dtype, shape), gpu.get(g), dgate, limit_of(dtype));
  compare(label("swiglu_backward dup", dtype, shape), gpu.get(u), dup, limit_of(dtype));

  Indices picked;
  for (std::int64_t i = 0; i < rows; ++i) picked.host.push_back(static_cast<std::int32_t>((i * 7 + 3) % rows));
  std::vector<std::int32_t> unique(picked.host);
  gpu.upload(picked);
  auto gathered = gpu.empty(DType::f32, rows, cols);
  gpu.ops->gather_rows(gpu.put(up, dtype, rows, cols), picked, gathered);
  Values expected(up.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      expected[static_cast<std::size_t>(r * cols + c)] =
          up[static_cast<std::size_t>(picked.host[static_cast<std::size_t>(r)] * cols + c)];
  compare(label("gather_rows to float32", dtype, shape), gpu.get(gathered), expected, 1e-7);
  if (rows % 7 != 0) {  // the indices are a permutation
    auto scattered = gpu.empty(dtype, rows, cols);
    gpu.ops->scatter_rows(gathered, picked, 0.5f, scattered);
    Values half(up);
    for (double& v : half) v *= 0.5;
    compare(label("scatter_rows from float32", dtype, shape), gpu.get(scattered), half, 1e-2);
  }
}

void add(Gpu& gpu, std::int64_t rows, std::int64_t cols) {
  const Values a = random_values(rows * cols, 1, DType::f32, 4), b = random_values(rows * cols, 1, DType::f32, 5);
  auto to = gpu.put(b, DType::f32, rows, cols);
  gpu.ops->add_scaled(gpu.put(a, DType::f32, rows, cols), 0.3f, to);
  Values expected(b);
  for (std::size_t i = 0; i < b.size(); ++i) expected[i] += static_cast<double>(0.3f) * a[i];
  compare("add_scaled " + shape_text(rows, cols), gpu.get(to), expected, 1e-6);
}

void norm(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols);
  const Values x = random_values(rows * cols, 2, dtype, 6), dy = random_values(rows * cols, 1, dtype, 7),
               residual = random_values(rows * cols, 1, dtype, 8), w = random_values(cols, 1, DType::f32, 9);
  const double eps = 1e-6;
  Values y(x.size()), dx(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r * cols);
    double squares = 0, dot = 0;
    for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
      squares += x[at + c] * x[at + c];
      dot += w[c] * dy[at + c] * x[at + c];
    }
    const double n = static_cast<double>(cols), inverse = 1 / std::sqrt(squares / n + eps);
    for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
      y[at + c] = x[at + c] * inverse * w[c];
      dx[at + c] = inverse * w[c] * dy[at + c] - x[at + c] * inverse * inverse * inverse * dot / n + residual[at + c];
    }
  }
  auto x_held = gpu.put(x, dtype, rows, cols), weight = gpu.put(w, DType::f32, 1, cols), out = gpu.empty(dtype, rows, cols);
  gpu.ops->rmsnorm_forward(x_held, weight, static_cast<float>(eps), out);
  compare(label("rmsnorm_forward", dtype, shape), gpu.get(out), y, limit_of(dtype));
  auto gradient = gpu.put(dy, dtype, rows, cols), rest = gpu.put(residual, dtype, rows, cols);
  gpu.ops->rmsnorm_backward({x_held, weight, gradient, rest, rest, gradient, static_cast<float>(eps)});
  compare(label("rmsnorm_backward dx", dtype, shape), gpu.get(rest), dx, limit_of(dtype));
  compare(label("rmsnorm_backward y", dtype, shape), gpu.get(gradient), y, limit_of(dtype));
}

struct HeadMath {
  std::int64_t e;
  const double* norm;  // or null
  double eps;

  void forward(const double* x, const double* cosine, const double* sine, double scale, double* y) const {
    const std::int64_t half = e / 2;
    const double r = inverse(x);
    for (std::int64_t c = 0; c < half; ++c) {
      const double a = x[c] * (norm ? r * norm[c] : 1), b = x[half + c] * (norm ? r * norm[half + c] : 1);
      y[c] = (a * cosine[c] - b * sine[c]) * scale;
      y[half + c] = (b * cosine[c] + a * sine[c]) * scale;
    }
  }
  void backward(const double* x, const double* dy, const double* cosine, const double* sine, double* dx) const {
    const std::int64_t half = e / 2;
    Values turned(static_cast<std::size_t>(e));
    for (std::int64_t c = 0; c < half; ++c) {
      turned[static_cast<std::size_t>(c)] = dy[c] * cosine[c] + dy[half + c] * sine[c];
      turned[static_cast<std::size_t>(half + c)] = dy[half + c] * cosine[c] - dy[c] * sine[c];
    }
    const double r = inverse(x);
    double dot = 0;
    for (std::int64_t c = 0; c < e; ++c) dot += norm ? norm[c] * turned[static_cast<std::size_t>(c)] * x[c] : 0;
    for (std::int64_t c = 0; c < e; ++c) {
      const double t = turned[static_cast<std::size_t>(c)];
      dx[c] = norm ? r * norm[c] * t - x[c] * r * r * r * dot / static_cast<double>(e) : t;
    }
  }
  double inverse(const double* x) const {
    double squares = 0;
    for (std::int64_t c = 0; c < e; ++c) squares += x[c] * x[c];
    return 1 / std::sqrt(squares / static_cast<double>(e) + eps);
  }
};

constexpr std::int64_t kPositions = 50;

/// [kPositions, e]
Values rotary_table(std::int64_t e) {
  Values table(static_cast<std::size_t>(kPositions * e));
  for (std::int64_t p = 0; p < kPositions; ++p)
    for (std::int64_t c = 0; c < e / 2; ++c) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(c) / static_cast<double>(e));
      table[static_cast<std::size_t>(p * e + c)] = rounded(std::cos(angle), DType::f32);
      table[static_cast<std::size_t>(p * e + e / 2 + c)] = rounded(std::sin(angle), DType::f32);
    }
  return table;
}
Indices rotary_rows(Gpu& gpu, std::int64_t tokens) {
  Indices rows;
  for (std::int64_t t = 0; t < tokens; ++t) rows.host.push_back(static_cast<std::int32_t>(t * 7 % kPositions));
  gpu.upload(rows);
  return rows;
}

void rope(Gpu& gpu, DType dtype, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, std::int64_t e, bool normed) {
  const std::string shape = std::to_string(tokens) + " tokens, " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " +
                            std::to_string(e) + (normed ? ", normed" : "");
  const std::int64_t cols = (heads + 2 * kv_heads) * e, all = heads + kv_heads;
  const Values x = random_values(tokens * cols, 1, dtype, 10), dy = random_values(tokens * cols, 1, dtype, 11);
  const Values qn = random_values(e, 1, DType::f32, 12), kn = random_values(e, 1, DType::f32, 13);
  const Values table = rotary_table(e);
  const Indices rows = rotary_rows(gpu, tokens);
  Values scale(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) scale[static_cast<std::size_t>(t)] = rounded(1.0 + 0.01 * static_cast<double>(t % 5), DType::f32);
  Values forward(x), backward(dy);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double* cosine = table.data() + rows.host[static_cast<std::size_t>(t)] * e;
    for (std::int64_t h = 0; h < all; ++h) {
      const HeadMath math{e, normed ? (h < heads ? qn.data() : kn.data()) : nullptr, 1e-6};
      const std::int64_t at = t * cols + h * e;
      math.forward(x.data() + at, cosine, cosine + e / 2, h < heads ? scale[static_cast<std::size_t>(t)] : 1.0, forward.data() + at);
      math.backward(x.data() + at, dy.data() + at, cosine, cosine + e / 2, backward.data() + at);
    }
  }
  auto held = gpu.put(x, dtype, tokens, cols), before = gpu.put(x, dtype, tokens, cols), grad = gpu.put(dy, dtype, tokens, cols);
  auto q_norm = gpu.put(qn, DType::f32, 1, e), k_norm = gpu.put(kn, DType::f32, 1, e), rope_table = gpu.put(table, DType::f32, kPositions, e),
       q_scale = gpu.put(scale, DType::f32, 1, tokens);
  const auto q_of = [&](const Gpu::Held& t) { return t.view.columns(0, heads * e); };
  const auto k_of = [&](const Gpu::Held& t) { return t.view.columns(heads * e, kv_heads * e); };
  const Tensor qw = normed ? q_norm.view : Tensor(), kw = normed ? k_norm.view : Tensor();
  gpu.ops->qk_rope_forward({q_of(held), k_of(held), q_of(held), k_of(held), qw, kw, 1e-6f, rope_table, &rows, q_scale, e});
  compare(label("qk_rope_forward", dtype, shape), gpu.get(held), forward, limit_of(dtype));
  gpu.ops->qk_rope_backward({q_of(grad), k_of(grad), q_of(before), k_of(before), qw, kw, 1e-6f, rope_table, &rows, e});
  compare(label("qk_rope_backward", dtype, shape), gpu.get(grad), backward, limit_of(dtype));
}

struct AttentionCase {
  std::vector<int> lengths, past;
  std::int64_t heads, kv_heads, e, window;
};

void attention(Gpu& gpu, DType dtype, const AttentionCase& c) {
  std::string shape = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.e) +
                      (c.window ? ", window " + std::to_string(c.window) : "") + (c.past.empty() ? "" : ", cached") + ", rows";
  for (int n : c.lengths) shape += " " + std::to_string(n);
  const bool cached = !c.past.empty();
  int capacity = 0;
  for (std::size_t i = 0; i < c.lengths.size(); ++i) capacity = std::max(capacity, c.lengths[i] + (cached ? c.past[i] : 0) + 3);
  const auto sequences = gpu.sequences(c.lengths, c.past, cached ? capacity : 0);
  const std::int64_t tokens = sequences->tokens, e = c.e, group = c.heads / c.kv_heads;
  const std::int64_t keys = cached ? capacity * static_cast<std::int64_t>(c.lengths.size()) : tokens;
  const std::int64_t q_cols = c.heads * e, k_cols = c.kv_heads * e;
  const Values q = random_values(tokens * q_cols, 1, dtype, 20), k = random_values(keys * k_cols, 1, dtype, 21),
               v = random_values(keys * k_cols, 1, dtype, 22), dout = random_values(tokens * q_cols, 1, dtype, 23);
  const double scale = 1 / std::sqrt(static_cast<double>(e));
  Values out(q.size(), 0), lse(static_cast<std::size_t>(c.heads * tokens)), delta(lse), dq(q.size(), 0), dk(k.size(), 0), dv(k.size(), 0);
  const auto dot = [e](const double* a, const double* b) {
    double sum = 0;
    for (std::int64_t x = 0; x < e; ++x) sum += a[x] * b[x];
    return sum;
  };
  const auto add = [e](double* to, double factor, const double* a) {
    for (std::int64_t x = 0; x < e; ++x) to[x] += factor * a[x];
  };
  for (std::size_t s = 0; s < c.lengths.size(); ++s) {
    const std::int64_t first = sequences->cu_queries.host[s], start = sequences->key_start.host[s], queries = c.lengths[s];
    const std::int64_t length = sequences->key_length.host[s], offset = length - queries;
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
    for (std::int64_t h = 0; h < c.heads; ++h)
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t position = offset + i, low = c.window ? std::max<std::int64_t>(0, position - c.window + 1) : 0;
        const std::int64_t own = (first + i) * q_cols + h * e, keys_of = start * k_cols + h / group * e;
        Values p(static_cast<std::size_t>(position - low + 1)), dp(p.size());
        double top = -1e300, total = 0;
        for (std::int64_t j = low; j <= position; ++j) {
          const double score = dot(&q[static_cast<std::size_t>(own)], &k[static_cast<std::size_t>(keys_of + j * k_cols)]) * scale;
          p[static_cast<std::size_t>(j - low)] = score;
          top = std::max(top, score);
        }
        for (double& w : p) total += w = std::exp(w - top);
        const auto at_row = static_cast<std::size_t>(h * tokens + first + i);
        lse[at_row] = top + std::log(total);
        for (std::int64_t j = low; j <= position; ++j) {
          const auto at = static_cast<std::size_t>(j - low);
          const double* value = &v[static_cast<std::size_t>(keys_of + j * k_cols)];
          p[at] /= total;
          add(&out[static_cast<std::size_t>(own)], p[at], value);
          dp[at] = dot(&dout[static_cast<std::size_t>(own)], value);
          delta[at_row] += p[at] * dp[at];
        }
        for (std::int64_t j = low; j <= position; ++j) {
          const auto at = static_cast<std::size_t>(j - low);
          add(&dq[static_cast<std::size_t>(own)], p[at] * (dp[at] - delta[at_row]) * scale, &k[static_cast<std::size_t>(keys_of + j * k_cols)]);
        }
      }
#pragma omp parallel for collapse(2) schedule(dynamic, 8)
    for (std::int64_t kv = 0; kv < c.kv_heads; ++kv)
      for (std::int64_t j = 0; j < length; ++j) {
        const auto own = static_cast<std::size_t>((start + j) * k_cols + kv * e);
        const std::int64_t last = c.window ? std::min(queries, j + c.window - offset) : queries;
        for (std::int64_t h = kv * group; h < (kv + 1) * group; ++h)
          for (std::int64_t i = std::max<std::int64_t>(0, j - offset); i < last; ++i) {
            const auto row = static_cast<std::size_t>((first + i) * q_cols + h * e), at_row = static_cast<std::size_t>(h * tokens + first + i);
            const double p = std::exp(dot(&q[row], &k[own]) * scale - lse[at_row]);
            add(&dv[own], p, &dout[row]);
            add(&dk[own], p * (dot(&dout[row], &v[own]) - delta[at_row]) * scale, &q[row]);
          }
      }
  }
  auto qd = gpu.put(q, dtype, tokens, q_cols, 16), kd = gpu.put(k, dtype, keys, k_cols, 8), vd = gpu.put(v, dtype, keys, k_cols),
       gd = gpu.put(dout, dtype, tokens, q_cols);
  const auto scale_f = static_cast<float>(scale);
  const Values table = rotary_table(e);
  const Indices rows = rotary_rows(gpu, tokens);
  const auto table_held = gpu.put(table, DType::f32, kPositions, e, 8);
  // out, lse, dq, dk, dv; no gradient of the cache's rows behind a sequence's keys is written. `spare`: the arena was fuller
  // before, so that attention may take room that it can do without. `rotary`: gradients are those before it.
  const auto run = [&](bool spare, bool rotary = false) {
    gpu.arena->reset_peak();
    if (spare) gpu.arena->workspace("what was there before", DType::i8, 1, std::int64_t{600} << 20);
    auto od = gpu.empty(dtype, tokens, q_cols), ld = gpu.empty(DType::f32, c.heads, tokens), dqd = gpu.empty(dtype, tokens, q_cols),
         dkd = gpu.put(Values(k.size(), 0), dtype, keys, k_cols, 8), dvd = gpu.put(Values(k.size(), 0), dtype, keys, k_cols);
    gpu.ops->attention_forward({qd, kd, vd, od, ld, sequences.get(), e, c.window, scale_f});
    if (!spare) gpu.arena->reset_peak();
    gpu.ops->attention_backward({qd, kd, vd, od, ld, gd, dqd, dkd, dvd, sequences.get(), e, c.window, scale_f,
                                 rotary ? table_held.view : Tensor(), &rows});
    return std::vector<Values>{gpu.get(od), gpu.get(ld), gpu.get(dqd), gpu.get(dkd), gpu.get(dvd)};
  };
  const std::vector<Values> got = run(true);
  const Values* expected[] = {&out, &lse, &dq, &dk, &dv};
  const char* names[] = {"attention_forward", "attention_forward lse", "attention_backward dq", "attention_backward dk", "attention_backward dv"};
  for (std::size_t i = 0; i < got.size(); ++i) compare(label(names[i], dtype, shape), got[i], *expected[i], limit_of(dtype));
  require(label("attention twice, same bits", dtype, shape), run(true) == got);
  require(label("attention without spare room, same bits", dtype, shape), run(false) == got);
  if (cached) return;
  const auto turn_back = [&](const Values& before, Values& gradient, std::int64_t cols) {
    for (std::int64_t at = 0; at < tokens * cols; at += e) {
      const double* cosine = &table[static_cast<std::size_t>(rows.host[static_cast<std::size_t>(at / cols)] * e)];
      HeadMath{e, nullptr, 0}.backward(&before[static_cast<std::size_t>(at)], &gradient[static_cast<std::size_t>(at)], cosine, cosine + e / 2,
                                       &gradient[static_cast<std::size_t>(at)]);
    }
  };
  turn_back(q, dq, q_cols);
  turn_back(k, dk, k_cols);
  const std::vector<Values> turned = run(true, true);
  compare(label("attention_backward dq before rotary", dtype, shape), turned[2], dq, limit_of(dtype));
  compare(label("attention_backward dk before rotary", dtype, shape), turned[3], dk, limit_of(dtype));
  require(label("attention_backward with rotary, same dv", dtype, shape), turned[4] == got[4]);
  require(label("attention_backward with rotary, without spare room, same bits", dtype, shape), run(false, true) == turned);
}

/// `in_place`: the gradient's rows begin where their logits do.
void cross_entropy(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t vocab, bool in_place) {
  const std::string shape = shape_text(rows, vocab) + (in_place ? " in place" : "");
  const Values z = random_values(rows * vocab, 3, DType::f32, 30);
  Values targets, weights, loss, correct, gradient(z.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const double* row = z.data() + r * vocab;
    const std::int64_t best = std::max_element(row, row + vocab) - row, target = r % 3 == 0 ? best : r * 37 % vocab;
    double total = 0;
    for (std::int64_t c = 0; c < vocab; ++c) total += std::exp(row[c] - row[best]);
    targets.push_back(static_cast<double>(target));
    weights.push_back(rounded(0.25 + 0.1 * static_cast<double>(r % 4), DType::f32));
    loss.push_back(std::log(total) + row[best] - row[target]);
    correct.push_back(target == best ? 1 : 0);
    for (std::int64_t c = 0; c < vocab; ++c)
      gradient[static_cast<std::size_t>(r * vocab + c)] = weights.back() * (std::exp(row[c] - row[best]) / total - (c == target ? 1 : 0));
  }
  auto logits = gpu.put(z, DType::f32, rows, vocab), t = gpu.put(targets, DType::i32, 1, rows), w = gpu.put(weights, DType::f32, 1, rows),
       l = gpu.empty(DType::f32, 1, rows), hit = gpu.empty(DType::i32, 1, rows);
  Gpu::Held apart;
  if (!in_place) apart = gpu.empty(dtype, rows, vocab);
  const auto stride = vocab * static_cast<std::int64_t>(sizeof(float) / dtype_bytes(dtype));
  const Tensor d = in_place ? Tensor(logits.view.data, dtype, rows, vocab, stride) : apart.view;
  gpu.ops->cross_entropy({logits, d, t, w, l, hit});
  compare(label("cross_entropy loss", dtype, shape), gpu.get(l), loss, 1e-5);
  compare(label("cross_entropy correct", dtype, shape), gpu.get(hit), correct, 0);
  compare(label("cross_entropy gradient", dtype, shape), gpu.get(d), gradient, limit_of(dtype));
}

void optimizer(Gpu& gpu) {
  std::vector<Gpu::Held> held;
  std::vector<AdamTarget> targets;
  std::vector<Tensor> grads;
  std::vector<Values> expected;
  Values norms;
  const AdamSettings s{3, 1e-3, 0.5, 0.9, 0.999, 1e-8, 0.01};
  for (std::int64_t n : {1, 8191, 8193, 50000}) {
    const auto seed = static_cast<std::uint64_t>(n);
    const Values w = random_values(n, 1, DType::f32, seed), g = random_values(n, 1, DType::f32, seed + 1),
                 m = random_values(n, 0.1, DType::f32, seed + 2);
    Values v = random_values(n, 0.1, DType::f32, seed + 3), after(w.size());
    double squares = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      v[i] = rounded(v[i] * v[i], DType::f32);
      squares += g[i] * g[i];
      const double grad = g[i] * s.grad_scale, m1 = s.beta1 * m[i] + (1 - s.beta1) * grad, v1 = s.beta2 * v[i] + (1 - s.beta2) * grad * grad;
      const double step = s.learning_rate / (1 - std::pow(s.beta1, 3)), root = std::sqrt(1 - std::pow(s.beta2, 3));
      after[i] = w[i] * (1 - s.learning_rate * s.weight_decay) - step * m1 / (std::sqrt(v1) / root + s.epsilon);
    }
    norms.push_back(squares);
    expected.push_back(after);
    for (const Values* values : {&w, &g, &m, static_cast<const Values*>(&v)}) held.push_back(gpu.put(*values, DType::f32, 1, n));
    const std::size_t at = held.size() - 4;
    targets.push_back({held[at].view, held[at + 1].view, held[at + 2].view, held[at + 3].view});
    grads.push_back(held[at + 1].view);
  }
  compare("squared_norms", gpu.ops->squared_norms(grads), norms, 1e-12);
  gpu.ops->adamw(targets, s);
  for (std::size_t i = 0; i < targets.size(); ++i) compare("adamw weight " + std::to_string(targets[i].weight.size()), gpu.get(targets[i].weight), expected[i], 1e-6);
  const std::vector<double> after = gpu.ops->squared_norms(grads);
  require("adamw leaves gradients zero", std::all_of(after.begin(), after.end(), [](double x) { return x == 0; }));
}

}  // namespace

/// All kernels' paths: short rows, long rows, narrow and wide heads, shared keys, windows, keys of a cache before the queries.
void attention(Gpu& gpu, DType dtype, bool small) {
  for (const std::int64_t e : {64, 128}) {
    attention(gpu, dtype, {{1}, {}, 2, 2, e, 0});
    attention(gpu, dtype, {{64}, {}, 2, 2, e, 0});
    attention(gpu, dtype, {{100}, {}, 2, 1, e, 0});
    attention(gpu, dtype, {{5, 64, 65, 1, 3}, {}, 8, 1, e, 0});
    attention(gpu, dtype, {{300}, {}, 2, 1, e, 0});
    attention(gpu, dtype, {{257, 129, 128, 1, 320}, {}, 4, 2, e, 0});
    attention(gpu, dtype, {{130}, {}, 2, 1, e, 16});
    attention(gpu, dtype, {{333}, {}, 2, 1, e, 50});
    attention(gpu, dtype, {{1, 9, 70}, {100, 0, 5}, 4, 2, e, 0});
    attention(gpu, dtype, {{200, 190}, {77, 300}, 4, 2, e, 0});
    attention(gpu, dtype, {{200, 190}, {77, 300}, 4, 2, e, 40});
    for (const std::int64_t kv_heads : {1, 8}) attention(gpu, dtype, {{1, 16, 63, 64, 65, 128, 129, 250}, {}, 8, kv_heads, e, 0});
    attention(gpu, dtype, {{1, 16, 63, 64, 65, 128, 129, 250}, {}, 2, 1, e, 20});
    attention(gpu, dtype, {{1, 16, 63, 64, 3, 40}, {}, 8, 1, e, 0});
    attention(gpu, dtype, {{1, 16, 63, 64, 3, 40}, {}, 2, 2, e, 10});
    attention(gpu, dtype, {{1, 9, 30, 63, 64, 1}, {63, 55, 5, 1, 0, 0}, 4, 2, e, 0});
    attention(gpu, dtype, {{1, 9, 30, 63, 64, 120}, {63, 55, 40, 2, 64, 100}, 4, 2, e, 7});
    if (small) continue;
    attention(gpu, dtype, {{1, 63, 64, 65, 127, 128, 129, 257, 1000, 2048}, {}, 8, 1, e, 0});
    attention(gpu, dtype, {{2048, 1000, 257, 129, 128, 127, 65, 64, 63, 1}, {}, 3, 3, e, 0});
    attention(gpu, dtype, {{2048, 700}, {}, 4, 2, e, 0});
    attention(gpu, dtype, {{1500}, {}, 2, 1, e, 300});
    attention(gpu, dtype, {{900, 260}, {}, 8, 1, e, 128});
    attention(gpu, dtype, {{1, 1}, {1500, 700}, 8, 1, e, 0});
    attention(gpu, dtype, {{600, 1, 257}, {1000, 2000, 31}, 8, 2, e, 0});
    attention(gpu, dtype, {std::vector<int>(40, 11), {}, 4, 4, e, 0});
    attention(gpu, dtype, {{384, 384, 300, 17}, {}, 4, 4, e, 0});
    if (dtype == DType::bf16) attention(gpu, dtype, {{8192}, {}, 2, 1, e, 0});
  }
  attention(gpu, dtype, {{33, 7}, {}, 4, 2, 80, 0});
  attention(gpu, dtype, {{400, 7, 260}, {}, 4, 2, 80, 0});
  attention(gpu, dtype, {{33, 7}, {}, 4, 2, 20, 5});
  attention(gpu, dtype, {{300}, {}, 4, 2, 40, 0});
}

/// usage: cuda_kernels [attention] [small] [DTYPE …]. "attention": nothing else; "small": shapes small enough for a checker that
/// runs every instruction under watch; DTYPE: float32, bfloat16, float16, without any all three.
int main(int argc, char** argv) {
  const auto asked = [&](const char* word) { return std::find(argv + 1, argv + argc, std::string_view(word)) != argv + argc; };
  const bool small = asked("small"), only_attention = asked("attention");
  const std::vector<DType> dtypes{DType::f32, DType::bf16, DType::f16};
  const bool named = std::any_of(dtypes.begin(), dtypes.end(), [&](DType dtype) { return asked(dtype_name(dtype)); });
  for (const DType dtype : dtypes) {
    if (named && !asked(dtype_name(dtype))) continue;
    Gpu gpu(dtype, std::size_t{1} << 30);
    attention(gpu, dtype, small);
    if (only_attention) continue;
    elementwise(gpu, dtype, 1, 8);
    elementwise(gpu, dtype, 13, 172);
    elementwise(gpu, dtype, 5, 33);
    norm(gpu, dtype, 1, 64);
    norm(gpu, dtype, 7, 4096);
    norm(gpu, dtype, 33, 172);
    norm(gpu, dtype, 3, 33);
    for (const bool normed : {false, true}) {
      rope(gpu, dtype, 1, 4, 4, 64, normed);
      rope(gpu, dtype, 19, 8, 1, 128, normed);
      rope(gpu, dtype, 11, 3, 1, 20, normed);
    }
    cross_entropy(gpu, dtype, 3, 1000, true);
    cross_entropy(gpu, dtype, 3, 1000, false);
    cross_entropy(gpu, dtype, 2, 151, true);
    cross_entropy(gpu, dtype, 2, 151, false);
    if (small) continue;
    elementwise(gpu, dtype, 1088, 4096);
    norm(gpu, dtype, 8192, 1024);
    rope(gpu, dtype, 8192, 4, 2, 128, false);
    cross_entropy(gpu, dtype, 17, 151936, true);
    cross_entropy(gpu, dtype, 17, 151936, false);
  }
  if (only_attention) return finish();
  Gpu gpu(DType::f32, std::size_t{64} << 20);
  add(gpu, 3, 40);
  add(gpu, 17, 33);
  optimizer(gpu);
  return finish();
}
