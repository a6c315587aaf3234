// The GPU's attention, forward and back, against a plain reference in float64.
#include <algorithm>
#include <limits>

#include "tests/support/mixer_reference.h"
#include "tests/gpu/rotary_reference.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

struct AttentionCase {
  std::vector<int> lengths, past;
  std::int64_t heads, kv_heads, e, window;
  double cap = 0;  // of scores; 0: none
};

void attention(Gpu& gpu, DType dtype, const AttentionCase& c) {
  const bool cached = !c.past.empty();
  std::string shape = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.e);
  if (c.window > 0) shape.append(", window ").append(std::to_string(c.window));
  if (c.cap > 0) shape.append(", cap ").append(std::to_string(c.cap));
  shape += cached ? ", cached, rows" : ", rows";
  for (int n : c.lengths) shape.append(" ").append(std::to_string(n));
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
  const auto capped = [cap = c.cap](double score) { return cap > 0 ? cap * std::tanh(score / cap) : score; };
  const auto derivative = [cap = c.cap](double score) { return cap > 0 ? 1 - std::pow(std::tanh(score / cap), 2) : 1.0; };
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
        Values p(static_cast<std::size_t>(position - low + 1)), dp(p.size()), derivatives(p.size());
        double top = -1e300, total = 0;
        for (std::int64_t j = low; j <= position; ++j) {
          const double score = dot(&q[static_cast<std::size_t>(own)], &k[static_cast<std::size_t>(keys_of + j * k_cols)]) * scale;
          p[static_cast<std::size_t>(j - low)] = capped(score);
          derivatives[static_cast<std::size_t>(j - low)] = derivative(score);
          top = std::max(top, capped(score));
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
          add(&dq[static_cast<std::size_t>(own)], p[at] * (dp[at] - delta[at_row]) * derivatives[at] * scale, &k[static_cast<std::size_t>(keys_of + j * k_cols)]);
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
            const double score = dot(&q[row], &k[own]) * scale, p = std::exp(capped(score) - lse[at_row]);
            add(&dv[own], p, &dout[row]);
            add(&dk[own], p * (dot(&dout[row], &v[own]) - delta[at_row]) * derivative(score) * scale, &q[row]);
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
    gpu.ops->attention_forward({qd, kd, vd, od, ld, sequences.get(), e, c.window, scale_f, static_cast<float>(c.cap)});
    if (!spare) gpu.arena->reset_peak();
    gpu.ops->attention_backward({qd, kd, vd, od, ld, gd, dqd, dkd, dvd, sequences.get(), e, c.window, scale_f,
                                 rotary ? table_held.view : Tensor(), &rows, static_cast<float>(c.cap)});
    return std::vector<Values>{gpu.get(od), gpu.get(ld), gpu.get(dqd), gpu.get(dkd), gpu.get(dvd)};
  };
  const std::vector<Values> got = run(true);
  const Values* expected[] = {&out, &lse, &dq, &dk, &dv};
  const char* names[] = {"attention_forward", "attention_forward lse", "attention_backward dq", "attention_backward dk", "attention_backward dv"};
  for (std::size_t i = 0; i < got.size(); ++i) compare(label(names[i], dtype, shape), got[i], *expected[i], limit_of(dtype));
  require(label("attention twice, same bits", dtype, shape), run(true) == got);
  require(label("attention without spare room, same bits", dtype, shape), run(false) == got);
  if (cached) return;
  const auto inverse_rotary = [&](const Values& before, Values& gradient, std::int64_t cols) {
    for (std::int64_t at = 0; at < tokens * cols; at += e) {
      const double* cosine = &table[static_cast<std::size_t>(rows.host[static_cast<std::size_t>(at / cols)] * e)];
      HeadMath{e, nullptr, 0}.backward(&before[static_cast<std::size_t>(at)], &gradient[static_cast<std::size_t>(at)], cosine, cosine + e / 2,
                                       &gradient[static_cast<std::size_t>(at)]);
    }
  };
  inverse_rotary(q, dq, q_cols);
  inverse_rotary(k, dk, k_cols);
  const std::vector<Values> turned = run(true, true);
  compare(label("attention_backward dq before rotary", dtype, shape), turned[2], dq, limit_of(dtype));
  compare(label("attention_backward dk before rotary", dtype, shape), turned[3], dk, limit_of(dtype));
  require(label("attention_backward with rotary, same dv", dtype, shape), turned[4] == got[4]);
  require(label("attention_backward with rotary, without spare room, same bits", dtype, shape), run(false, true) == turned);
}

/// A few queries a sequence behind keys of a cache, without log-sum-exp: right, and the same bits for a sequence alone. Rows of the
/// cache that hold no key are NaN.
void decode(Gpu& gpu, DType dtype, const AttentionCase& c) {
  std::string shape = std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.e);
  if (c.window > 0) shape.append(", window ").append(std::to_string(c.window));
  int capacity = 0;
  for (std::size_t i = 0; i < c.lengths.size(); ++i) {
    shape.append(", ").append(std::to_string(c.lengths[i])).append(" behind ").append(std::to_string(c.past[i]));
    capacity = std::max(capacity, c.lengths[i] + c.past[i] + 3);
  }
  const auto sequences = gpu.sequences(c.lengths, c.past, capacity);
  const std::int64_t tokens = sequences->tokens, e = c.e, group = c.heads / c.kv_heads, keys = capacity * sequences->count();
  const std::int64_t q_cols = c.heads * e, k_cols = c.kv_heads * e;
  const Values q = random_values(tokens * q_cols, 1, dtype, 30);
  Values k = random_values(keys * k_cols, 1, dtype, 31), v = random_values(keys * k_cols, 1, dtype, 32), expected(q.size(), 0);
  const double scale = 1 / std::sqrt(static_cast<double>(e));
  for (std::size_t s = 0; s < c.lengths.size(); ++s) {
    const std::int64_t start = static_cast<std::int64_t>(s) * capacity, length = c.lengths[s] + c.past[s];
    for (Values* side : {&k, &v})
      std::fill(side->begin() + (start + length) * k_cols, side->begin() + (start + capacity) * k_cols, std::numeric_limits<double>::quiet_NaN());
#pragma omp parallel for collapse(2)
    for (std::int64_t h = 0; h < c.heads; ++h)
      for (std::int64_t i = 0; i < c.lengths[s]; ++i) {
        const std::int64_t position = c.past[s] + i, low = c.window ? std::max<std::int64_t>(0, position - c.window + 1) : 0;
        const auto own = static_cast<std::size_t>((sequences->cu_queries.host[s] + i) * q_cols + h * e);
        const auto at = [&](std::int64_t j) { return static_cast<std::size_t>((start + j) * k_cols + h / group * e); };
        const auto width = static_cast<std::size_t>(e);
        double total = 0;  // scores are small enough for exponentials as they are
        for (std::int64_t j = low; j <= position; ++j) {
          double score = 0;
          for (std::size_t x = 0; x < width; ++x) score += q[own + x] * k[at(j) + x];
          const double weight = std::exp(score * scale);
          total += weight;
          for (std::size_t x = 0; x < width; ++x) expected[own + x] += weight * v[at(j) + x];
        }
        for (std::size_t x = 0; x < width; ++x) expected[own + x] /= total;
      }
  }
  const auto qd = gpu.put(q, dtype, tokens, q_cols, 16), kd = gpu.put(k, dtype, keys, k_cols, 8), vd = gpu.put(v, dtype, keys, k_cols);
  const auto scale_f = static_cast<float>(scale);
  const auto run = [&](const Tensor& queries, const Tensor& k_rows, const Tensor& v_rows, const Sequences& of) {
    const auto out = gpu.empty(dtype, queries.rows, q_cols, 8);
    gpu.ops->attention_forward({queries, k_rows, v_rows, out, {}, &of, e, c.window, scale_f});
    return gpu.get(out);
  };
  const Values got = run(qd, kd, vd, *sequences);
  compare(label("attention of a few queries", dtype, shape), got, expected, limit_of(dtype));
  require(label("attention of a few queries twice, same bits", dtype, shape), run(qd, kd, vd, *sequences) == got);
  if (c.lengths.size() == 1) return;
  bool same = true;
  for (std::size_t s = 0; s < c.lengths.size(); ++s) {
    const std::int64_t first = sequences->cu_queries.host[s], start = static_cast<std::int64_t>(s) * capacity;
    const auto alone = gpu.sequences({c.lengths[s]}, {c.past[s]}, capacity);
    const Values one = run(qd.view.row_range(first, c.lengths[s]), kd.view.row_range(start, capacity), vd.view.row_range(start, capacity), *alone);
    same = same && std::equal(one.begin(), one.end(), got.begin() + first * q_cols);
  }
  require(label("attention of a few queries alone and in a batch, same bits", dtype, shape), same);
}

void decode(Gpu& gpu, DType dtype, bool small) {
  const std::int64_t heads[][2] = {{32, 32}, {28, 4}, {8, 1}, {32, 2}};
  for (const std::int64_t e : {64, 96, 128, 256}) {
    for (const auto& [all, kv] : heads) {
      if (small && (all == 32 || e == 96)) continue;
      decode(gpu, dtype, {{1, 1, 1, 1, 1, 1, 1, 1}, {0, 62, 63, 254, 255, 256, 5, 300}, all, kv, e, 0});
      decode(gpu, dtype, {{1, 2, 3, 4, 1, 4, 3, 2}, {0, 61, 61, 252, 255, 254, 0, 511}, all, kv, e, 0});
      decode(gpu, dtype, {{4, 1, 3}, {300, 700, 254}, all, kv, e, 100});
    }
    decode(gpu, dtype, {{4, 1, 2}, {1200, 1300, 3}, 8, 2, e, 257});
    if (small) continue;
    for (const int context : {1, 63, 64, 255, 256, 257, 4096}) decode(gpu, dtype, {{1}, {context - 1}, 28, 4, e, 0});
    decode(gpu, dtype, {{4}, {4092}, 28, 4, e, 0});
    decode(gpu, dtype, {{1, 1, 4, 1, 1, 1, 2, 1}, {4095, 9, 4000, 0, 255, 3000, 1, 2047}, 8, 1, e, 0});
    decode(gpu, dtype, {{1, 3}, {4095, 2000}, 8, 1, e, 1000});
  }
  if (!small) decode(gpu, dtype, {{1}, {4095}, 32, 32, 128, 0});
  decode(gpu, dtype, {{1, 4}, {400, 30}, 4, 2, 72, 0});
  decode(gpu, dtype, {{1, 4}, {400, 30}, 4, 2, 20, 0});  // what it does not take
}

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
  // Scores under a cap, near it and far below.
  for (const std::int64_t e : {256, 128, 64, 90}) {
    for (const double cap : {1.5, 30.0}) {
      attention(gpu, dtype, {{5, 64, 65, 1, 3}, {}, 8, 2, e, 0, cap});
      attention(gpu, dtype, {{130, 300}, {}, 2, 1, e, 70, cap});
      attention(gpu, dtype, {{1, 9, 70}, {100, 0, 5}, 4, 2, e, 0, cap});
    }
  }
  // Wide heads, and heads whose rows are not aligned: every padded width, whole and partial tiles, windows, caches.
  for (const std::int64_t e : {256, 192, 136, 100, 250, 90, 36, 2}) {
    attention(gpu, dtype, {{1}, {}, 2, 1, e, 0});
    attention(gpu, dtype, {{5, 64, 65, 1, 3}, {}, 8, 2, e, 0});
    attention(gpu, dtype, {{130, 300}, {}, 2, 1, e, 70});
    attention(gpu, dtype, {{1, 9, 70}, {100, 0, 5}, 4, 2, e, 0});
    attention(gpu, dtype, {{1, 9, 70}, {100, 0, 5}, 4, 2, e, 33});
    attention(gpu, dtype, {{64, 128, 63, 129}, {}, 2, 2, e, 0});
    if (small || dtype != DType::bf16) continue;  // the reference takes long
    attention(gpu, dtype, {{257, 129, 128, 1, 320}, {}, 4, 4, e, 0});
    attention(gpu, dtype, {{1000, 17}, {}, 2, 1, e, 0});
    attention(gpu, dtype, {{700, 200}, {}, 4, 1, e, 257});
    attention(gpu, dtype, {{200, 190}, {77, 300}, 4, 2, e, 40});
  }
}

/// Heads of v of another width than those of q and k; behind a cache too.
void two_widths(Gpu& gpu, DType dtype, const std::vector<int>& lengths, std::int64_t heads, std::int64_t e, std::int64_t ev) {
  std::string shape = std::to_string(heads) + " heads of " + std::to_string(e) + " and " + std::to_string(ev) + ", rows";
  for (const int n : lengths) shape.append(" ").append(std::to_string(n));
  const auto s = gpu.sequences(lengths);
  const std::int64_t tokens = s->tokens, q_cols = heads * e, v_cols = heads * ev;
  const auto h = static_cast<std::size_t>(heads), w = static_cast<std::size_t>(e), wv = static_cast<std::size_t>(ev);
  const Values q = random_values(tokens * q_cols, 1, dtype, 40), k = random_values(tokens * q_cols, 1, dtype, 41), v = random_values(tokens * v_cols, 1, dtype, 42),
               dout = random_values(tokens * v_cols, 1, dtype, 43);
  const double scale = 1.3 / std::sqrt(static_cast<double>(e));
  Values out;
  reference::AttentionGradients expected;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto row = [&](const Values& values, std::size_t width) { return reference::rows_of(values, s->cu_queries.host, i, h * width); };
    reference::append(out, reference::wide_attention(row(q, w), row(k, w), row(v, wv), h, w, wv, scale));
    const reference::AttentionGradients own = reference::wide_attention_backward(row(q, w), row(k, w), row(v, wv), h, w, wv, scale, row(dout, wv));
    reference::append(expected.q, own.q);
    reference::append(expected.k, own.k);
    reference::append(expected.v, own.v);
  }
  const auto qd = gpu.put(q, dtype, tokens, q_cols), kd = gpu.put(k, dtype, tokens, q_cols, 8), vd = gpu.put(v, dtype, tokens, v_cols), gd = gpu.put(dout, dtype, tokens, v_cols);
  const auto od = gpu.empty(dtype, tokens, v_cols, 8), lse = gpu.empty(DType::f32, heads, tokens), dq = gpu.empty(dtype, tokens, q_cols), dk = gpu.empty(dtype, tokens, q_cols),
             dv = gpu.empty(dtype, tokens, v_cols, 8);
  AttentionForward forward{qd, kd, vd, od, lse, s.get(), e, 0, static_cast<float>(scale)};
  forward.value_dim = ev;
  gpu.ops->attention_forward(forward);
  compare(label("attention_forward", dtype, shape), gpu.get(od), out, limit_of(dtype));
  AttentionBackward backward{qd, kd, vd, od, lse, gd, dq, dk, dv, s.get(), e, 0, static_cast<float>(scale)};
  backward.value_dim = ev;
  gpu.ops->attention_backward(backward);
  compare(label("attention_backward dq", dtype, shape), gpu.get(dq), expected.q, 2 * limit_of(dtype));
  compare(label("attention_backward dk", dtype, shape), gpu.get(dk), expected.k, 2 * limit_of(dtype));
  compare(label("attention_backward dv", dtype, shape), gpu.get(dv), expected.v, 2 * limit_of(dtype));
}

}  // namespace

/// usage: cuda_attention [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{1} << 30);
    attention(gpu, dtype, asked.small);
    if (dtype != DType::f32) decode(gpu, dtype, asked.small);
    two_widths(gpu, dtype, {1}, 1, 16, 8);
    two_widths(gpu, dtype, {5, 64, 65, 1, 3}, 4, 192, 128);
    two_widths(gpu, dtype, {33, 130}, 3, 20, 36);
    two_widths(gpu, dtype, {40}, 2, 64, 250);
  }
  return finish();
}
