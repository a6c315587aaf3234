// A mixture of experts around its products, plainly and in float64, and the rules to try it with: for the CPU's tests and the GPU's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora::test {

namespace experts_reference {

using Values = std::vector<double>;

inline double sigma(double x) { return 1 / (1 + std::exp(-x)); }
inline Values shares(const Values& z) {
  const double top = *std::max_element(z.begin(), z.end());
  Values all(z);
  double total = 0;
  for (double& x : all) total += x = std::exp(x - top);
  for (double& x : all) x /= total;
  return all;
}

/// Numbers of the `count` largest, the largest first, equal ones by number.
inline std::vector<std::int32_t> largest(const Values& values, std::int64_t count) {
  std::vector<std::int32_t> numbers(values.size());
  std::iota(numbers.begin(), numbers.end(), 0);
  std::stable_sort(numbers.begin(), numbers.end(), [&](std::int32_t a, std::int32_t b) { return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)]; });
  numbers.resize(static_cast<std::size_t>(count));
  return numbers;
}

inline Values scores(const RouteRule& rule, const Values& logits) {
  if (rule.score == RouteScore::softmax) return shares(logits);
  Values all(logits);
  if (rule.score == RouteScore::sigmoid)
    for (double& x : all) x = sigma(x);
  return all;
}

inline std::vector<std::int32_t> choose(const RouteRule& rule, const Values& logits, const Values& correction) {
  Values values = scores(rule, logits);
  for (std::size_t i = 0; i < correction.size(); ++i) values[i] += correction[i];
  const auto size = static_cast<std::size_t>(rule.experts / rule.groups);
  Values groups;
  for (std::size_t g = 0; g < static_cast<std::size_t>(rule.groups); ++g) {
    Values own(values.begin() + static_cast<std::ptrdiff_t>(g * size), values.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(own.rbegin(), own.rend());
    groups.push_back(rule.group_score == GroupScore::best ? own[0] : own[0] + own[1]);
  }
  const std::vector<std::int32_t> kept = largest(groups, rule.chosen_groups);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (std::find(kept.begin(), kept.end(), static_cast<std::int32_t>(i / size)) == kept.end()) values[i] = -std::numeric_limits<double>::infinity();
  return largest(values, rule.chosen);
}

inline Values weights(const RouteRule& rule, const Values& logits, const std::vector<std::int32_t>& chosen) {
  const Values all = scores(rule, logits);
  Values own;
  for (const std::int32_t e : chosen) own.push_back(all[static_cast<std::size_t>(e)]);
  if (rule.score == RouteScore::softmax_of_chosen) own = shares(own);
  if (rule.score == RouteScore::sigmoid_of_chosen)
    for (double& w : own) w = sigma(w);
  const double total = rule.normalise ? std::accumulate(own.begin(), own.end(), is_sigmoid(rule.score) ? 1e-20 : 0.0) : 1;
  for (double& w : own) w = w / total * static_cast<double>(rule.factor);
  return own;
}

/// d(sum_c grads[c] weights[c]) / dlogits, the choice being what it is.
inline Values slopes(const RouteRule& rule, const Values& logits, const std::vector<std::int32_t>& chosen, const Values& grads) {
  Values found;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto at = [&](double by) {
      Values moved(logits);
      moved[i] += by;
      const Values w = weights(rule, moved, chosen);
      return std::inner_product(w.begin(), w.end(), grads.begin(), 0.0);
    };
    found.push_back((at(1e-5) - at(-1e-5)) / 2e-5);
  }
  return found;
}

struct Gate {
  double value, by_gate, by_up;
};
inline double gated(const GateRule& rule, double g, double u) {
  if (rule.limit > 0) {
    const double limit = static_cast<double>(rule.limit), x = std::min(g, limit);
    return x * sigma(static_cast<double>(rule.alpha) * x) * (std::clamp(u, -limit, limit) + 1);
  }
  if (rule.activation == Activation::gelu) return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u;
  if (rule.activation == Activation::gelu_tanh) return 0.5 * g * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g))) * u;
  return g * sigma(g) * u;
}
/// Differences are taken towards the inside where a value stands on the limit itself (a 16-bit value does): torch's clamp lets the gradient
/// through there.
inline Gate gate(const GateRule& rule, double g, double u) {
  const double by = 1e-6, limit = static_cast<double>(rule.limit);
  const auto over = [&](double x) { return rule.limit > 0 && x >= limit ? 0.0 : by; };
  const auto under = [&](double x) { return rule.limit > 0 && x <= -limit ? 0.0 : by; };
  const double up_g = over(g), up_u = over(u), down_u = under(u);
  return {gated(rule, g, u), (gated(rule, g + up_g, u) - gated(rule, g - by, u)) / (up_g + by),
          (gated(rule, g, u + up_u) - gated(rule, g, u - down_u)) / (up_u + down_u)};
}

struct Case {
  std::string name;
  RouteRule rule;
  bool corrected;
};

inline const char* score_name(RouteScore score) {
  switch (score) {
    case RouteScore::softmax: return "softmax";
    case RouteScore::sigmoid: return "sigmoid";
    case RouteScore::softmax_of_chosen: return "softmax of chosen";
    default: return "sigmoid of chosen";
  }
}

/// Every score with and without shares, factors, corrections and groups, over counts that fill a warp, halve it and overrun it.
inline std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::int64_t experts : {4, 32, 60, 128, 264, 1024})
    for (const RouteScore score : {RouteScore::softmax, RouteScore::sigmoid, RouteScore::softmax_of_chosen, RouteScore::sigmoid_of_chosen})
      for (const bool normalise : {false, true})
        for (const int groups : {1, 4, 8}) {
          if (experts / groups < 2 || experts % groups != 0) continue;
          if (score == RouteScore::softmax_of_chosen && (normalise || groups > 1)) continue;
          Case one;
          one.rule.experts = experts;
          one.rule.score = score;
          one.rule.normalise = normalise;
          one.rule.groups = groups;
          one.rule.chosen_groups = groups == 1 ? 1 : groups / 2;
          one.rule.group_score = (groups == 8) == normalise ? GroupScore::best : GroupScore::two_best;
          one.rule.chosen = std::min<std::int64_t>(experts == 1024 ? 32 : experts == 4 ? 2 : 6, experts / groups * one.rule.chosen_groups);
          one.rule.factor = is_sigmoid(score) ? 2.5f : 1.0f;
          one.corrected = score == RouteScore::sigmoid;
          one.name = std::to_string(one.rule.chosen) + " of " + std::to_string(experts) + " experts, " +
                     score_name(score) +
                     (normalise ? ", normalised" : "") + ", " + std::to_string(one.rule.chosen_groups) + " of " + std::to_string(groups) + " groups by " +
                     (one.rule.group_score == GroupScore::best ? "the best" : "the two best");
          all.push_back(one);
        }
  return all;
}

/// Whether order, place and starts are those of a stable sort of the experts.
inline bool sorted(const Values& experts, const Values& order, const Values& place, const Values& starts) {
  std::vector<std::size_t> expected(experts.size());
  std::iota(expected.begin(), expected.end(), std::size_t{0});
  std::stable_sort(expected.begin(), expected.end(), [&](std::size_t a, std::size_t b) { return experts[a] < experts[b]; });
  for (std::size_t row = 0; row < expected.size(); ++row)
    if (order[row] != static_cast<double>(expected[row]) || place[expected[row]] != static_cast<double>(row)) return false;
  for (std::size_t e = 0; e < starts.size(); ++e)
    if (starts[e] != static_cast<double>(std::count_if(experts.begin(), experts.end(), [&](double x) { return x < static_cast<double>(e); }))) return false;
  return true;
}

inline std::vector<std::pair<std::string, GateRule>> gates() {
  return {{"silu", {Activation::silu, false, 0, 1}},
          {"gelu", {Activation::gelu, false, 0, 1}},
          {"gelu_tanh, in turn", {Activation::gelu_tanh, true, 0, 1}},
          {"clamped", {Activation::silu, true, 1.5f, 1.702f}},
          {"clamped, apart", {Activation::silu, false, 1.5f, 1.702f}},
          {"silu, weights before", {Activation::silu, false, 0, 1, true}},
          {"gelu in turn, weights before", {Activation::gelu, true, 0, 1, true}},
          {"clamped, weights before", {Activation::silu, false, 1.5f, 1.702f, true}}};
}

}  // namespace experts_reference

/// Every operation against float64. `bench` has ops, put(values, dtype, rows, cols) and empty(dtype, rows, cols) of something that is a
/// Tensor, and get(tensor); `compare(what, got, expected, loose)` and `require(what, good)` say what was found, `random(count, scale, seed)`
/// gives numbers that `dtype` has.
template <class Bench, class Compare, class Require, class Random>
void try_experts(Bench& bench, DType dtype, bool small, Compare&& compare, Require&& require, Random&& random) {
  using namespace experts_reference;
  Ops& ops = *bench.ops;
  unsigned seed = 1;
  int number = 0;
  for (const Case& one : cases()) {
    const RouteRule& rule = one.rule;
    const std::int64_t n = rule.experts, chosen = rule.chosen, tokens = small || n > 200 ? 9 : 75, rows = tokens * chosen, width = 40;
    const Values logits = random(tokens * n, 2.0, ++seed), correction = one.corrected ? random(n, 0.2, ++seed) : Values();
    // Every other case has a part of its logits as a bias.
    const Values shift = random(n, ++number % 2 == 0 ? 1 : 0, ++seed);
    Values unshifted(logits);
    for (std::size_t i = 0; i < unshifted.size(); ++i) unshifted[i] -= shift[i % static_cast<std::size_t>(n)];
    const auto z = bench.put(unshifted, DType::f32, tokens, n), shifts = bench.put(shift, DType::f32, 1, n);
    const Tensor bias_of_logits = number % 2 == 0 ? Tensor(shifts) : Tensor();
    const auto added = bench.put(one.corrected ? correction : Values(static_cast<std::size_t>(n)), DType::f32, 1, n);
    const auto experts = bench.empty(DType::i32, tokens, chosen), weight = bench.empty(DType::f32, tokens, chosen), order = bench.empty(DType::i32, 1, rows),
               place = bench.empty(DType::i32, 1, rows), starts = bench.empty(DType::i32, 1, n + 1);
    const Routes routes{experts, weight, order, place, starts};
    ops.route({z, bias_of_logits, one.corrected ? Tensor(added) : Tensor(), rule, routes});
    const auto token = [&](const Values& all, std::int64_t t, std::int64_t count) {
      return Values(all.begin() + t * count, all.begin() + (t + 1) * count);
    };
    Values expected, expected_weights, expected_slopes, with_bias;
    const Values grads = random(rows, 1, ++seed), dout = random(tokens * width, 1, ++seed), bias = random(n * width, 1, ++seed);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const Values own = token(logits, t, n);
      const std::vector<std::int32_t> numbers = choose(rule, own, correction);
      expected.insert(expected.end(), numbers.begin(), numbers.end());
      const Values w = weights(rule, own, numbers);
      expected_weights.insert(expected_weights.end(), w.begin(), w.end());
      Values wanted = token(grads, t, chosen);
      const Values plain = slopes(rule, own, numbers, wanted);
      expected_slopes.insert(expected_slopes.end(), plain.begin(), plain.end());
      for (std::size_t c = 0; c < wanted.size(); ++c)
        for (std::int64_t i = 0; i < width; ++i)
          wanted[c] += dout[static_cast<std::size_t>(t * width + i)] * bias[static_cast<std::size_t>(numbers[c] * width + i)];
      const Values biased = slopes(rule, own, numbers, wanted);
      with_bias.insert(with_bias.end(), biased.begin(), biased.end());
    }
    require("experts: " + one.name, bench.get(experts) == expected);
    compare("weights: " + one.name, bench.get(weight), expected_weights, false);
    require("sort: " + one.name, sorted(bench.get(experts), bench.get(order), bench.get(place), bench.get(starts)));
    const auto dlogits = bench.empty(dtype, tokens, n);
    const auto weight_grads = bench.put(grads, DType::f32, 1, rows), d = bench.put(dout, dtype, tokens, width), b = bench.put(bias, DType::f32, n, width);
    ops.route_backward({z, bias_of_logits, weight_grads, Tensor(), Tensor(), rule, routes, dlogits});
    compare("dlogits: " + one.name, bench.get(dlogits), expected_slopes, true);
    ops.route_backward({z, bias_of_logits, weight_grads, d, b, rule, routes, dlogits});
    compare("dlogits with biases: " + one.name, bench.get(dlogits), with_bias, true);

    // Rows by expert, and back with a residual, in place, and biases.
    const std::int64_t cols = seed % 2 == 0 ? 24 : 37;
    const Values x = random(tokens * cols, 1, ++seed), biases = random(n * cols, 1, ++seed);
    const auto held = bench.put(x, dtype, tokens, cols), sorted_rows = bench.empty(dtype, rows, cols), out_bias = bench.put(biases, DType::f32, n, cols);
    ops.gather_choices(held, routes, sorted_rows);
    const Values by_expert = bench.get(sorted_rows), at = bench.get(place);
    Values wanted_rows(by_expert.size()), sums(x), sums_with_bias(x);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t c = 0; c < cols; ++c) {
        const auto from = static_cast<std::size_t>(i / chosen * cols + c);
        wanted_rows[static_cast<std::size_t>(at[static_cast<std::size_t>(i)]) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(c)] = x[from];
        sums[from] += x[from];
        sums_with_bias[from] += x[from] + expected_weights[static_cast<std::size_t>(i)] *
                                              biases[static_cast<std::size_t>(expected[static_cast<std::size_t>(i)]) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(c)];
      }
    require("gather: " + one.name, by_expert == wanted_rows);
    const auto summed = bench.empty(dtype, tokens, cols);
    ops.combine({sorted_rows, routes, held, out_bias, summed});
    compare("combine with biases: " + one.name, bench.get(summed), sums_with_bias, true);
    ops.combine({sorted_rows, routes, held, Tensor(), held});
    compare("combine in place: " + one.name, bench.get(held), sums, true);
  }

  for (const auto& [name, rule] : gates())
    for (const std::int64_t cols : {8, 33, 300, 1288}) {
      const std::int64_t rows = 11;
      const Values both = random(rows * 2 * cols, 1.5, ++seed), d = random(rows * cols, 1, ++seed), w = random(rows, 1, ++seed);
      Values numbers;  // row r is choice 3 r + 1 modulo the rows
      for (std::int64_t r = 0; r < rows; ++r) numbers.push_back(static_cast<double>((3 * r + 1) % rows));
      Values act, act_plain, grads(both.size()), weight_grads(static_cast<std::size_t>(rows), 0.0);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < cols; ++c) {
          const auto g = static_cast<std::size_t>(r * 2 * cols + (rule.interleaved ? 2 * c : c)), u = g + static_cast<std::size_t>(rule.interleaved ? 1 : cols);
          const auto at = static_cast<std::size_t>(r * cols + c), choice = static_cast<std::size_t>(numbers[static_cast<std::size_t>(r)]);
          const double before = rule.weight_before ? w[choice] : 1, behind = rule.weight_before ? 1 : w[choice];
          const Gate found = gate(rule, both[g] * before, both[u] * before);
          act.push_back(found.value * behind);
          act_plain.push_back(gate(rule, both[g], both[u]).value);
          grads[g] = found.by_gate * d[at] * w[choice];
          grads[u] = found.by_up * d[at] * w[choice];
          weight_grads[choice] += (rule.weight_before ? found.by_gate * both[g] + found.by_up * both[u] : found.value) * d[at];
        }
      const auto held = bench.put(both, dtype, rows, 2 * cols), out = bench.empty(dtype, rows, cols), dact = bench.put(d, dtype, rows, cols);
      const auto weight = bench.put(w, DType::f32, 1, rows), order = bench.put(numbers, DType::i32, 1, rows), found = bench.empty(DType::f32, 1, rows);
      const std::string what = name + " of " + std::to_string(cols);
      ops.gate_forward({held, Tensor(), Tensor(), rule, out});
      compare("gate " + what, bench.get(out), act_plain, true);
      ops.gate_forward({held, weight, order, rule, out});
      compare("gate with weights " + what, bench.get(out), act, true);
      ops.gate_backward({held, weight, order, rule, dact, found});
      compare("gate back, " + what, bench.get(held), grads, true);
      compare("gate back, act, " + what, bench.get(dact), act, true);
      compare("gate back, weights, " + what, bench.get(found), weight_grads, true);
    }

  for (const std::int64_t e : {8, 20, 128}) {
    const std::int64_t tokens = 13, heads = 5;
    const Values out = random(tokens * heads * e, 1, ++seed), lse = random(heads * tokens, 3, ++seed), sinks = random(heads, 3, ++seed);
    Values scaled(out), all(lse);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        const auto at = static_cast<std::size_t>(h * tokens + t);
        all[at] = std::log(std::exp(lse[at]) + std::exp(sinks[static_cast<std::size_t>(h)]));
        for (std::int64_t c = 0; c < e; ++c) scaled[static_cast<std::size_t>((t * heads + h) * e + c)] *= std::exp(lse[at] - all[at]);
      }
    const auto held = bench.put(out, dtype, tokens, heads * e), sums = bench.put(lse, DType::f32, heads, tokens), sink = bench.put(sinks, DType::f32, 1, heads);
    ops.attention_sinks({held, sums, sink, e});
    compare("attention's sinks, heads of " + std::to_string(e), bench.get(held), scaled, true);
    compare("log-sum-exp with sinks, heads of " + std::to_string(e), bench.get(sums), all, false);
  }

  const Values x = random(77, 3, ++seed), d = random(77, 1, ++seed);
  Values shares_of(x), back(d);
  for (std::size_t i = 0; i < x.size(); ++i) {
    shares_of[i] = sigma(x[i]);
    back[i] *= shares_of[i] * (1 - shares_of[i]);
  }
  const auto held = bench.put(x, DType::f32, 77, 1), grad = bench.put(d, DType::f32, 77, 1);
  ops.sigmoid(held);
  compare("sigmoid", bench.get(held), shares_of, false);
  ops.sigmoid_backward(held, grad);
  compare("sigmoid back", bench.get(grad), back, false);
}

}  // namespace pipelora::test
