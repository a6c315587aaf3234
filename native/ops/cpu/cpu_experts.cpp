// A mixture of experts around its products: routing, sorting, weighted sums. Also attention's sinks.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "ops/cpu/cpu_ops.h"

namespace pipelora {

namespace {

constexpr std::int64_t kRowsATask = 16;
constexpr float kLeast = -std::numeric_limits<float>::infinity();

std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

char* row_of(const Tensor& t, std::int64_t r) {
  return static_cast<char*>(t.data) + static_cast<std::size_t>(r * t.stride) * dtype_bytes(t.dtype);
}

/// logits -> shares of their sum. In place.
void softmax(float* z, std::int64_t count) {
  const float top = *std::max_element(z, z + count);
  float total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += z[i] = std::exp(z[i] - top);
  for (std::int64_t i = 0; i < count; ++i) z[i] /= total;
}

float sigma(float z) { return 1.0f / (1.0f + std::exp(-z)); }

/// The `count` largest of values [0, n), the largest first; equal ones by number. What stands at -infinity comes last.
void largest(const float* values, std::int64_t n, std::int64_t count, std::int32_t* chosen) {
  std::array<bool, kMostExperts> taken{};
  for (std::int64_t c = 0; c < count; ++c) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < n; ++i)
      if (!taken[static_cast<std::size_t>(i)] && (best < 0 || values[i] > values[best])) best = i;
    taken[static_cast<std::size_t>(best)] = true;
    chosen[c] = static_cast<std::int32_t>(best);
  }
}

/// Experts outside the best groups can't be chosen.
void keep_groups(const RouteRule& rule, float* values) {
  if (rule.chosen_groups >= rule.groups) return;
  const std::int64_t size = rule.experts / rule.groups;
  std::array<float, kMostExperts> scores{};
  std::array<std::int32_t, kMostExperts> kept{};
  for (std::int64_t g = 0; g < rule.groups; ++g) {
    float best = kLeast, second = kLeast;
    for (std::int64_t i = g * size; i < (g + 1) * size; ++i) {
      second = std::max(second, std::min(best, values[i]));
      best = std::max(best, values[i]);
    }
    scores[static_cast<std::size_t>(g)] = rule.group_score == GroupScore::best ? best : best + second;
  }
  largest(scores.data(), rule.groups, rule.chosen_groups, kept.data());
  std::sort(kept.begin(), kept.begin() + rule.chosen_groups);
  std::int64_t next = 0;
  for (std::int64_t g = 0; g < rule.groups; ++g) {
    if (next < rule.chosen_groups && kept[static_cast<std::size_t>(next)] == g)
      ++next;
    else
      std::fill(values + g * size, values + (g + 1) * size, kLeast);
  }
}

/// A token's logits, with their bias where there is one.
std::array<float, kMostExperts> logits_of(const Tensor& logits, const Tensor& bias, std::int64_t t) {
  std::array<float, kMostExperts> all{};
  const float* own = reinterpret_cast<const float*>(row_of(logits, t));
  std::copy(own, own + logits.cols, all.begin());
  if (bias)
    for (std::int64_t i = 0; i < logits.cols; ++i) all[static_cast<std::size_t>(i)] += bias.as<float>()[i];
  return all;
}

void route_token(const Route& call, std::int64_t t) {
  const RouteRule& rule = call.rule;
  const std::int64_t n = rule.experts;
  auto* chosen = reinterpret_cast<std::int32_t*>(row_of(call.routes.experts, t));
  auto* weights = reinterpret_cast<float*>(row_of(call.routes.weights, t));
  std::array<float, kMostExperts> scores = logits_of(call.logits, call.bias, t), values{};
  if (rule.score == RouteScore::softmax) softmax(scores.data(), n);
  if (rule.score == RouteScore::sigmoid)
    for (std::int64_t i = 0; i < n; ++i) scores[static_cast<std::size_t>(i)] = sigma(scores[static_cast<std::size_t>(i)]);
  std::copy(scores.begin(), scores.begin() + n, values.begin());
  if (call.correction)
    for (std::int64_t i = 0; i < n; ++i) values[static_cast<std::size_t>(i)] += call.correction.as<float>()[i];
  keep_groups(rule, values.data());
  largest(values.data(), n, rule.chosen, chosen);
  for (std::int64_t c = 0; c < rule.chosen; ++c) weights[c] = scores[static_cast<std::size_t>(chosen[c])];
  if (rule.score == RouteScore::softmax_of_chosen) softmax(weights, rule.chosen);
  if (rule.score == RouteScore::sigmoid_of_chosen) std::transform(weights, weights + rule.chosen, weights, sigma);
  if (rule.normalise) {
    float total = is_sigmoid(rule.score) ? 1e-20f : 0.0f;
    for (std::int64_t c = 0; c < rule.chosen; ++c) total += weights[c];
    for (std::int64_t c = 0; c < rule.chosen; ++c) weights[c] /= total;
  }
  for (std::int64_t c = 0; c < rule.chosen; ++c) weights[c] *= rule.factor;
}

/// By counting: a choice's row is its expert's first one, and those of its expert before it.
void sort_choices(const RouteRule& rule, const Routes& routes) {
  const std::int64_t choices = routes.order.cols;
  const auto* experts = routes.experts.as<std::int32_t>();
  auto *order = routes.order.as<std::int32_t>(), *place = routes.place.as<std::int32_t>(), *starts = routes.starts.as<std::int32_t>();
  std::fill(starts, starts + rule.experts + 1, 0);
  for (std::int64_t i = 0; i < choices; ++i) ++starts[experts[i] + 1];
  for (std::int64_t e = 0; e < rule.experts; ++e) starts[e + 1] += starts[e];
  std::array<std::int32_t, kMostExperts> next;
  std::copy(starts, starts + rule.experts, next.begin());
  for (std::int64_t i = 0; i < choices; ++i) {
    const std::int32_t row = next[static_cast<std::size_t>(experts[i])]++;
    place[i] = row;
    order[row] = static_cast<std::int32_t>(i);
  }
}

}  // namespace

void CpuOps::route(const Route& call) {
  pool_.run(pieces(call.logits.rows, kRowsATask), [&](std::int64_t task, int) {
    for (std::int64_t t = task * kRowsATask; t < std::min(call.logits.rows, (task + 1) * kRowsATask); ++t) route_token(call, t);
  });
  sort_choices(call.rule, call.routes);
}

void CpuOps::route_backward(const RouteBackward& call) {
  const RouteRule& rule = call.rule;
  const std::int64_t n = rule.experts, chosen = rule.chosen;
  pool_.run(pieces(call.logits.rows, kRowsATask), [&](std::int64_t task, int) {
    std::array<float, kMostExperts> slopes;
    std::array<float, kMostChosen> grads;
    for (std::int64_t t = task * kRowsATask; t < std::min(call.logits.rows, (task + 1) * kRowsATask); ++t) {
      std::array<float, kMostExperts> scores = logits_of(call.logits, call.bias, t);
      const auto* experts = reinterpret_cast<const std::int32_t*>(row_of(call.routes.experts, t));
      for (std::int64_t c = 0; c < chosen; ++c) {
        float grad = call.weight_grads.as<float>()[t * chosen + c];
        if (call.out_bias)
          grad += kernels_.dot(row_of(call.dout, t), reinterpret_cast<const float*>(row_of(call.out_bias, experts[c])), call.dout.dtype, call.dout.cols);
        grads[static_cast<std::size_t>(c)] = grad * rule.factor;
      }
      const auto score_of = [&](std::int64_t c) { return scores[static_cast<std::size_t>(experts[c])]; };
      std::fill(slopes.begin(), slopes.begin() + n, 0.0f);
      if (rule.score == RouteScore::softmax_of_chosen) {
        std::array<float, kMostChosen> shares;
        for (std::int64_t c = 0; c < chosen; ++c) shares[static_cast<std::size_t>(c)] = score_of(c);
        softmax(shares.data(), chosen);
        float mean = 0;
        for (std::int64_t c = 0; c < chosen; ++c) mean += shares[static_cast<std::size_t>(c)] * grads[static_cast<std::size_t>(c)];
        for (std::int64_t c = 0; c < chosen; ++c)
          slopes[static_cast<std::size_t>(experts[c])] = shares[static_cast<std::size_t>(c)] * (grads[static_cast<std::size_t>(c)] - mean);
      } else {
        if (rule.score == RouteScore::softmax) softmax(scores.data(), n);
        if (is_sigmoid(rule.score))
          for (std::int64_t i = 0; i < n; ++i) scores[static_cast<std::size_t>(i)] = sigma(scores[static_cast<std::size_t>(i)]);
        if (rule.normalise) {  // of shares w / sum w
          float total = is_sigmoid(rule.score) ? 1e-20f : 0.0f, mean = 0;
          for (std::int64_t c = 0; c < chosen; ++c) total += score_of(c);
          for (std::int64_t c = 0; c < chosen; ++c) mean += grads[static_cast<std::size_t>(c)] * score_of(c) / total;
          for (std::int64_t c = 0; c < chosen; ++c) grads[static_cast<std::size_t>(c)] = (grads[static_cast<std::size_t>(c)] - mean) / total;
        }
        if (is_sigmoid(rule.score)) {
          for (std::int64_t c = 0; c < chosen; ++c)
            slopes[static_cast<std::size_t>(experts[c])] = grads[static_cast<std::size_t>(c)] * score_of(c) * (1.0f - score_of(c));
        } else {
          float mean = 0;
          for (std::int64_t c = 0; c < chosen; ++c) mean += grads[static_cast<std::size_t>(c)] * score_of(c);
          for (std::int64_t c = 0; c < chosen; ++c) slopes[static_cast<std::size_t>(experts[c])] = grads[static_cast<std::size_t>(c)];
          for (std::int64_t i = 0; i < n; ++i)
            slopes[static_cast<std::size_t>(i)] = scores[static_cast<std::size_t>(i)] * (slopes[static_cast<std::size_t>(i)] - mean);
        }
      }
      kernels_.convert_row(slopes.data(), DType::f32, row_of(call.dlogits, t), call.dlogits.dtype, 1.0f, n);
    }
  });
}

void CpuOps::gather_choices(const Tensor& from, const Routes& routes, const Tensor& to) {
  const std::int64_t chosen = routes.experts.cols;
  const auto* order = routes.order.as<std::int32_t>();
  pool_.run(pieces(to.rows, kRowsATask), [&](std::int64_t task, int) {
    for (std::int64_t p = task * kRowsATask; p < std::min(to.rows, (task + 1) * kRowsATask); ++p)
      kernels_.convert_row(row_of(from, order[p] / chosen), from.dtype, row_of(to, p), to.dtype, 1.0f, to.cols);
  });
}

void CpuOps::gate_forward(const GateForward& call) {
  pool_.run(pieces(call.act.rows, kRowsATask), [&](std::int64_t task, int) {
    kernels_.gate_forward(call, task * kRowsATask, std::min(kRowsATask, call.act.rows - task * kRowsATask));
  });
}

void CpuOps::gate_backward(const GateBackward& call) {
  pool_.run(pieces(call.dact.rows, kRowsATask), [&](std::int64_t task, int) {
    kernels_.gate_backward(call, task * kRowsATask, std::min(kRowsATask, call.dact.rows - task * kRowsATask));
  });
}

void CpuOps::combine(const Combine& call) {
  const std::int64_t chosen = call.routes.experts.cols, cols = call.out.cols;
  const auto *place = call.routes.place.as<std::int32_t>(), *experts = call.routes.experts.as<std::int32_t>();
  const float* weights = call.routes.weights.as<float>();
  pool_.run(pieces(call.out.rows, kRowsATask), [&](std::int64_t task, int thread) {
    float* total = threads_[static_cast<std::size_t>(thread)]->scratch.floats(2, static_cast<std::size_t>(2 * cols));
    float* added = total + cols;
    for (std::int64_t t = task * kRowsATask; t < std::min(call.out.rows, (task + 1) * kRowsATask); ++t) {
      if (call.residual)
        kernels_.convert_row(row_of(call.residual, t), call.residual.dtype, total, DType::f32, 1.0f, cols);
      else
        std::fill(total, total + cols, 0.0f);
      for (std::int64_t c = 0; c < chosen; ++c) {
        const std::int64_t i = t * chosen + c;
        kernels_.convert_row(row_of(call.rows, place[i]), call.rows.dtype, added, DType::f32, 1.0f, cols);
        kernels_.add_scaled(added, 1.0f, total, cols);
        if (call.bias) kernels_.add_scaled(reinterpret_cast<const float*>(row_of(call.bias, experts[i])), weights[i], total, cols);
      }
      kernels_.convert_row(total, DType::f32, row_of(call.out, t), call.out.dtype, 1.0f, cols);
    }
  });
}

void CpuOps::attention_sinks(const AttentionSinks& call) {
  const std::int64_t heads = call.lse.rows, e = call.head_dim;
  pool_.run(pieces(call.out.rows, kRowsATask), [&](std::int64_t task, int) {
    for (std::int64_t t = task * kRowsATask; t < std::min(call.out.rows, (task + 1) * kRowsATask); ++t)
      for (std::int64_t h = 0; h < heads; ++h) {
        float& lse = reinterpret_cast<float*>(row_of(call.lse, h))[t];
        const float sink = call.sinks.as<float>()[h], top = std::max(lse, sink);
        const float all = top + std::log(std::exp(lse - top) + std::exp(sink - top));
        char* out = row_of(call.out.columns(h * e, e), t);
        kernels_.convert_row(out, call.out.dtype, out, call.out.dtype, std::exp(lse - all), e);
        lse = all;
      }
  });
}

void CpuOps::sigmoid(const Tensor& x) {
  float* z = x.as<float>();
  for (std::int64_t i = 0; i < x.size(); ++i) z[i] = sigma(z[i]);
}

void CpuOps::sigmoid_backward(const Tensor& shares, const Tensor& grads) {
  const float* s = shares.as<float>();
  float* d = grads.as<float>();
  for (std::int64_t i = 0; i < shares.size(); ++i) d[i] *= s[i] * (1.0f - s[i]);
}

}  // namespace pipelora
