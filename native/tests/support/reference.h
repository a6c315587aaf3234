// The operations again, plainly and in float64: what the engine is held against. Matrices are row-major vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "pipelora/ops/ops.h"
#include "pipelora/core/rng.h"

namespace reference {

using Values = std::vector<double>;

inline Values random_values(std::size_t n, unsigned seed, double scale = 1.0) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0.0, scale);
  Values v(n);
  // Rounded to float32: the engine then starts from the same numbers.
  for (double& x : v) x = static_cast<double>(static_cast<float>(normal(generator)));
  return v;
}

/// x [t, k] w [n, k]ᵀ
inline Values product(const Values& x, const Values& w, std::size_t t, std::size_t k, std::size_t n) {
  Values y(t * n, 0.0);
  for (std::size_t i = 0; i < t; ++i)
    for (std::size_t j = 0; j < n; ++j)
      for (std::size_t p = 0; p < k; ++p) y[i * n + j] += x[i * k + p] * w[j * k + p];
  return y;
}

/// Times weight + offset; centred: LayerNorm.
inline Values rmsnorm(const Values& x, const Values& w, double eps, bool centred = false, double offset = 0) {
  const std::size_t d = w.size();
  Values y(x.size());
  for (std::size_t r = 0; r < x.size() / d; ++r) {
    double mean = 0, squares = 0;
    for (std::size_t c = 0; c < d && centred; ++c) mean += x[r * d + c] / static_cast<double>(d);
    for (std::size_t c = 0; c < d; ++c) squares += (x[r * d + c] - mean) * (x[r * d + c] - mean);
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(d) + eps);
    for (std::size_t c = 0; c < d; ++c) y[r * d + c] = (x[r * d + c] - mean) * inverse * (w[c] + offset);
  }
  return y;
}

/// Rotary of [t, heads * e] at the given positions: of the first columns of a head, in halves or neighbour with neighbour.
inline Values rotary(const Values& x, const std::vector<std::int32_t>& positions, const Values& inv_freq, std::size_t width, std::size_t e,
                     bool interleaved = false) {
  Values y = x;
  const std::size_t half = inv_freq.size();
  for (std::size_t t = 0; t < positions.size(); ++t)
    for (std::size_t head = 0; head < width; head += e)
      for (std::size_t i = 0; i < half; ++i) {
        const std::size_t first = t * width + head + (interleaved ? 2 * i : i), second = interleaved ? first + 1 : first + half;
        const double angle = positions[t] * inv_freq[i], a = x[first], b = x[second];
        y[first] = a * std::cos(angle) - b * std::sin(angle);
        y[second] = b * std::cos(angle) + a * std::sin(angle);
      }
  return y;
}

inline Values attention(const Values& q, const Values& k, const Values& v, const std::vector<std::int32_t>& cu, std::size_t heads,
                        std::size_t kv_heads, std::size_t e, std::int64_t window, double scale = 0, double cap = 0) {
  Values out(q.size(), 0.0);
  const std::size_t width = heads * e, kv_width = kv_heads * e;
  for (std::size_t s = 0; s + 1 < cu.size(); ++s)
    for (std::int32_t i = cu[s]; i < cu[s + 1]; ++i)
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t kv = h / (heads / kv_heads);
        Values weights;
        double total = 0;
        const std::int32_t first = window > 0 ? std::max<std::int32_t>(cu[s], i - static_cast<std::int32_t>(window) + 1) : cu[s];
        for (std::int32_t j = first; j <= i; ++j) {
          double score = 0;
          for (std::size_t c = 0; c < e; ++c)
            score += q[static_cast<std::size_t>(i) * width + h * e + c] * k[static_cast<std::size_t>(j) * kv_width + kv * e + c];
          score *= scale > 0 ? scale : 1 / std::sqrt(static_cast<double>(e));
          weights.push_back(std::exp(cap > 0 ? cap * std::tanh(score / cap) : score));
          total += weights.back();
        }
        for (std::int32_t j = first; j <= i; ++j)
          for (std::size_t c = 0; c < e; ++c)
            out[static_cast<std::size_t>(i) * width + h * e + c] +=
                weights[static_cast<std::size_t>(j - first)] / total * v[static_cast<std::size_t>(j) * kv_width + kv * e + c];
      }
  return out;
}

inline double activated(double x, pipelora::Activation activation) {
  switch (activation) {
    case pipelora::Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case pipelora::Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    default: return x / (1.0 + std::exp(-x));
  }
}
inline Values swiglu(const Values& gate, const Values& up, pipelora::Activation activation = pipelora::Activation::silu) {
  Values y(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) y[i] = activated(gate[i], activation) * up[i];
  return y;
}

/// -log softmax(row) at the target, and with smoothing its mean over all tokens in so much of the place.
inline double cross_entropy(const double* row, std::size_t vocab, std::int32_t target, double smoothing = 0) {
  double top = row[0], total = 0, sum = 0;
  for (std::size_t c = 1; c < vocab; ++c) top = std::max(top, row[c]);
  for (std::size_t c = 0; c < vocab; ++c) total += std::exp(row[c] - top);
  for (std::size_t c = 0; c < vocab; ++c) sum += row[c];
  const double lse = std::log(total) + top;
  return (1 - smoothing) * (lse - row[target]) + smoothing * (lse - sum / static_cast<double>(vocab));
}

/// What add_noise adds to an element, from the definition in rng.h.
inline double noise(pipelora::DropoutKey key, std::uint32_t row, std::uint64_t element, double alpha, std::size_t length, std::size_t width) {
  const std::uint32_t word = pipelora::noise_bits(key, row, element / 4).v[element % 4];
  return ((static_cast<double>(word >> 8) + 0.5) / 8388608.0 - 1.0) * alpha / std::sqrt(static_cast<double>(length * width));
}

/// Element by element from the definition in rng.h.
inline bool kept(pipelora::DropoutKey key, std::uint32_t row, std::uint32_t module, std::uint64_t element, float p) {
  const pipelora::Philox bits = pipelora::dropout_bits(key, row, module, element / 8);
  const std::uint32_t word = bits.v[element % 8 / 2];
  return (element % 2 == 0 ? word & 0xFFFFu : word >> 16) >= pipelora::dropout_threshold(p);
}

/// Derivatives of `loss` with respect to `values[i]` for the given indices, by central differences.
inline Values derivatives(Values& values, const std::vector<std::size_t>& indices, const std::function<double()>& loss, double h = 1e-5) {
  Values out;
  for (const std::size_t i : indices) {
    const double kept_value = values[i];
    values[i] = kept_value + h;
    const double above = loss();
    values[i] = kept_value - h;
    const double below = loss();
    values[i] = kept_value;
    out.push_back((above - below) / (2 * h));
  }
  return out;
}

inline double dot(const Values& a, const Values& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

/// About `count` indices spread over [0, n).
inline std::vector<std::size_t> spread(std::size_t n, std::size_t count) {
  std::vector<std::size_t> out;
  const std::size_t step = std::max<std::size_t>(1, n / count) | 1u;
  for (std::size_t i = 0; i < n; i += step) out.push_back(i);
  return out;
}

}  // namespace reference
