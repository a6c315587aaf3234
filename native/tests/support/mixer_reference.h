// Attention of other kinds than softmax over heads, plainly and in float64, a row at a time.
#pragma once

#include <algorithm>
#include <cmath>

#include "pipelora/ops/mixer_calls.h"
#include "reference.h"

namespace reference {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// Rows of [t, width] that belong to sequence s.
inline Values rows_of(const Values& x, const std::vector<std::int32_t>& cu, std::size_t s, std::size_t width) {
  const auto at = [&](std::int32_t row) { return x.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row) * width); };
  return Values(at(cu[s]), at(cu[s + 1]));
}
inline void append(Values& to, const Values& from) { to.insert(to.end(), from.begin(), from.end()); }

/// Columns [first, first + count) of [t, width].
inline Values columns(const Values& x, std::size_t width, std::size_t first, std::size_t count) {
  Values out;
  for (std::size_t r = 0; r < x.size() / width; ++r)
    for (std::size_t c = 0; c < count; ++c) out.push_back(x[r * width + first + c]);
  return out;
}

/// silu of the causal convolution of one row; weight [channels, taps].
inline Values short_conv(const Values& x, const Values& weight, std::size_t channels, std::size_t taps) {
  Values y(x.size());
  for (std::size_t t = 0; t < x.size() / channels; ++t)
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (std::size_t back = 0; back < taps && back <= t; ++back) sum += weight[c * taps + taps - 1 - back] * x[(t - back) * channels + c];
      y[t * channels + c] = sum * sigmoid(sum);
    }
  return y;
}

/// The gated delta rule of one row: qkv [t, mixed], b and a [t, value heads].
inline Values delta_rule(const Values& qkv, const Values& b, const Values& a, const Values& a_log, const Values& dt_bias, const pipelora::DeltaShape& shape) {
  const auto hv = static_cast<std::size_t>(shape.value_heads), hk = static_cast<std::size_t>(shape.key_heads), dk = static_cast<std::size_t>(shape.key_dim),
             dv = static_cast<std::size_t>(shape.value_dim), mixed = static_cast<std::size_t>(shape.mixed()), tokens = qkv.size() / mixed;
  const auto unit = [&](const double* x) {
    double squares = 1e-6;
    for (std::size_t i = 0; i < dk; ++i) squares += x[i] * x[i];
    Values y(x, x + dk);
    for (double& v : y) v /= std::sqrt(squares);
    return y;
  };
  Values out(tokens * hv * dv);
  for (std::size_t h = 0; h < hv; ++h) {
    const std::size_t key = h * hk / hv;
    Values state(dk * dv, 0.0);
    for (std::size_t t = 0; t < tokens; ++t) {
      const double* row = qkv.data() + t * mixed;
      const Values q = unit(row + key * dk), k = unit(row + hk * dk + key * dk);
      const double decay = std::exp(-std::exp(a_log[h]) * std::log1p(std::exp(a[t * hv + h] + dt_bias[h]))), beta = sigmoid(b[t * hv + h]);
      for (double& s : state) s *= decay;
      for (std::size_t j = 0; j < dv; ++j) {
        double held = 0, read = 0;
        for (std::size_t i = 0; i < dk; ++i) held += k[i] * state[i * dv + j];
        const double change = beta * (row[2 * hk * dk + h * dv + j] - held);
        for (std::size_t i = 0; i < dk; ++i) {
          state[i * dv + j] += k[i] * change;
          read += q[i] / std::sqrt(static_cast<double>(dk)) * state[i * dv + j];
        }
        out[t * hv * dv + h * dv + j] = read;
      }
    }
  }
  return out;
}

struct DeltaGradients {
  Values qkv, b, a;
};
/// Of one row, from the recurrence itself: every state is kept.
inline DeltaGradients delta_rule_backward(const Values& qkv, const Values& b, const Values& a, const Values& a_log, const Values& dt_bias,
                                          const pipelora::DeltaShape& shape, const Values& dout) {
  const auto hv = static_cast<std::size_t>(shape.value_heads), hk = static_cast<std::size_t>(shape.key_heads), dk = static_cast<std::size_t>(shape.key_dim),
             dv = static_cast<std::size_t>(shape.value_dim), mixed = static_cast<std::size_t>(shape.mixed()), tokens = qkv.size() / mixed;
  DeltaGradients grads{Values(qkv.size(), 0.0), Values(b.size()), Values(a.size())};
  const double root = std::sqrt(static_cast<double>(dk));
  for (std::size_t h = 0; h < hv; ++h) {
    const std::size_t key = h * hk / hv, q_at = key * dk, k_at = hk * dk + key * dk, v_at = 2 * hk * dk + h * dv;
    std::vector<Values> before(tokens), change(tokens), q(tokens), k(tokens);  // P, d
    Values decay(tokens), beta(tokens), q_norm(tokens), k_norm(tokens), state(dk * dv, 0.0);
    const auto unit = [&](std::size_t t, std::size_t at, double& norm) {
      double squares = 1e-6;
      for (std::size_t i = 0; i < dk; ++i) squares += qkv[t * mixed + at + i] * qkv[t * mixed + at + i];
      norm = std::sqrt(squares);
      Values y(dk);
      for (std::size_t i = 0; i < dk; ++i) y[i] = qkv[t * mixed + at + i] / norm;
      return y;
    };
    for (std::size_t t = 0; t < tokens; ++t) {
      q[t] = unit(t, q_at, q_norm[t]);
      k[t] = unit(t, k_at, k_norm[t]);
      decay[t] = std::exp(-std::exp(a_log[h]) * std::log1p(std::exp(a[t * hv + h] + dt_bias[h])));
      beta[t] = sigmoid(b[t * hv + h]);
      for (double& x : state) x *= decay[t];
      before[t] = state;
      change[t].assign(dv, 0.0);
      for (std::size_t j = 0; j < dv; ++j) {
        double held = 0;
        for (std::size_t i = 0; i < dk; ++i) held += k[t][i] * state[i * dv + j];
        change[t][j] = beta[t] * (qkv[t * mixed + v_at + j] - held);
        for (std::size_t i = 0; i < dk; ++i) state[i * dv + j] += k[t][i] * change[t][j];
      }
    }
    Values slope(dk * dv, 0.0);
    for (std::size_t t = tokens; t-- > 0;) {
      const double* d = dout.data() + t * hv * dv + h * dv;
      Values dq(dk, 0.0), dkey(dk, 0.0), dchange(dv, 0.0), dvalue(dv);
      for (std::size_t i = 0; i < dk; ++i)
        for (std::size_t j = 0; j < dv; ++j) {
          slope[i * dv + j] += q[t][i] / root * d[j];
          dq[i] += (before[t][i * dv + j] + k[t][i] * change[t][j]) * d[j] / root;
          dchange[j] += slope[i * dv + j] * k[t][i];
          dkey[i] += slope[i * dv + j] * change[t][j];
        }
      double dbeta = 0, dlog = 0;
      for (std::size_t j = 0; j < dv; ++j) {
        dbeta += dchange[j] * change[t][j] / beta[t];
        dvalue[j] = beta[t] * dchange[j];
        grads.qkv[t * mixed + v_at + j] = dvalue[j];
      }
      for (std::size_t i = 0; i < dk; ++i)
        for (std::size_t j = 0; j < dv; ++j) {
          dkey[i] -= before[t][i * dv + j] * dvalue[j];
          const double dp = slope[i * dv + j] - k[t][i] * dvalue[j];
          dlog += dp * before[t][i * dv + j];
          slope[i * dv + j] = decay[t] * dp;
        }
      grads.b[t * hv + h] = dbeta * beta[t] * (1 - beta[t]);
      grads.a[t * hv + h] = -dlog * std::exp(a_log[h]) * sigmoid(a[t * hv + h] + dt_bias[h]);
      const auto through = [&](const Values& y, const Values& dy, double norm, std::size_t at) {
        const double along = dot(y, dy);
        for (std::size_t i = 0; i < dk; ++i) grads.qkv[t * mixed + at + i] += (dy[i] - y[i] * along) / norm;
      };
      through(q[t], dq, q_norm[t], q_at);
      through(k[t], dkey, k_norm[t], k_at);
    }
  }
  return grads;
}

/// Of one row.
inline Values short_conv_backward(const Values& x, const Values& weight, const Values& dy, std::size_t channels, std::size_t taps) {
  Values dx(x.size(), 0.0);
  for (std::size_t t = 0; t < x.size() / channels; ++t)
    for (std::size_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (std::size_t back = 0; back < taps && back <= t; ++back) sum += weight[c * taps + taps - 1 - back] * x[(t - back) * channels + c];
      const double slope = dy[t * channels + c] * sigmoid(sum) * (1 + sum * (1 - sigmoid(sum)));
      for (std::size_t back = 0; back < taps && back <= t; ++back) dx[(t - back) * channels + c] += weight[c * taps + taps - 1 - back] * slope;
    }
  return dx;
}

/// rmsnorm of each head times silu(gate); an empty weight: x sigmoid(gate).
inline Values head_gate(const Values& x, const Values& gate, const Values& weight, double eps) {
  Values y = weight.empty() ? x : rmsnorm(x, weight, eps);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] *= sigmoid(gate[i]) * (weight.empty() ? 1.0 : gate[i]);
  return y;
}

struct GateGradients {
  Values x, gate;
};
inline GateGradients head_gate_backward(const Values& x, const Values& gate, const Values& weight, double eps, const Values& dy) {
  GateGradients grads{Values(x.size()), Values(x.size())};
  if (weight.empty()) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      grads.x[i] = dy[i] * sigmoid(gate[i]);
      grads.gate[i] = dy[i] * x[i] * sigmoid(gate[i]) * (1 - sigmoid(gate[i]));
    }
    return grads;
  }
  const std::size_t e = weight.size();
  for (std::size_t first = 0; first < x.size(); first += e) {
    double squares = 0, along = 0;
    for (std::size_t c = 0; c < e; ++c) squares += x[first + c] * x[first + c];
    const double r = 1 / std::sqrt(squares / static_cast<double>(e) + eps);
    for (std::size_t c = 0; c < e; ++c) along += dy[first + c] * weight[c] * gate[first + c] * sigmoid(gate[first + c]) * x[first + c];
    for (std::size_t c = 0; c < e; ++c) {
      const double g = gate[first + c], share = sigmoid(g);
      grads.x[first + c] = r * dy[first + c] * weight[c] * g * share - x[first + c] * r * r * r * along / static_cast<double>(e);
      grads.gate[first + c] = dy[first + c] * r * x[first + c] * weight[c] * share * (1 + g * (1 - share));
    }
  }
  return grads;
}

/// One row's product [q | k | v | z | b | a] (or, by key head, [q k v z]… then [b a]…) to what the output projection takes.
inline Values delta_net(const Values& product, bool by_key_head, const Values& conv, const Values& norm, const Values& a_log, const Values& dt_bias,
                        const pipelora::DeltaShape& shape, double eps) {
  const auto hv = static_cast<std::size_t>(shape.value_heads), hk = static_cast<std::size_t>(shape.key_heads), dk = static_cast<std::size_t>(shape.key_dim),
             dv = static_cast<std::size_t>(shape.value_dim), group = hv / hk, mixed = static_cast<std::size_t>(shape.mixed()), width = mixed + hv * dv + 2 * hv;
  Values qkv, z, b, a;
  for (std::size_t t = 0; t < product.size() / width; ++t) {
    const double* row = product.data() + t * width;
    if (!by_key_head) {
      qkv.insert(qkv.end(), row, row + mixed);
      z.insert(z.end(), row + mixed, row + mixed + hv * dv);
      b.insert(b.end(), row + mixed + hv * dv, row + mixed + hv * dv + hv);
      a.insert(a.end(), row + mixed + hv * dv + hv, row + width);
      continue;
    }
    Values part[4];
    const std::size_t counts[4] = {dk, dk, group * dv, group * dv};
    for (std::size_t h = 0; h < hk; ++h)
      for (std::size_t p = 0; p < 4; ++p)
        for (std::size_t c = 0; c < counts[p]; ++c) part[p].push_back(*row++);
    for (std::size_t p = 0; p < 3; ++p) append(qkv, part[p]);
    append(z, part[3]);
    for (std::size_t h = 0; h < hk; ++h) {
      for (std::size_t g = 0; g < group; ++g) b.push_back(*row++);
      for (std::size_t g = 0; g < group; ++g) a.push_back(*row++);
    }
  }
  const Values mixed_rows = short_conv(qkv, conv, mixed, static_cast<std::size_t>(shape.taps));
  return head_gate(delta_rule(mixed_rows, b, a, a_log, dt_bias, shape), z, norm, eps);
}

/// Causal attention of one row whose heads of v have a width of their own.
inline Values wide_attention(const Values& q, const Values& k, const Values& v, std::size_t heads, std::size_t e, std::size_t ev, double scale, double cap = 0) {
  const std::size_t tokens = q.size() / (heads * e);
  Values out(tokens * heads * ev, 0.0);
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t i = 0; i < tokens; ++i) {
      Values weights(i + 1);
      double total = 0;
      for (std::size_t j = 0; j <= i; ++j) {
        double score = 0;
        for (std::size_t c = 0; c < e; ++c) score += q[(i * heads + h) * e + c] * k[(j * heads + h) * e + c];
        weights[j] = std::exp(cap > 0 ? cap * std::tanh(scale * score / cap) : scale * score);
        total += weights[j];
      }
      for (std::size_t j = 0; j <= i; ++j)
        for (std::size_t c = 0; c < ev; ++c) out[(i * heads + h) * ev + c] += weights[j] / total * v[(j * heads + h) * ev + c];
    }
  return out;
}

struct AttentionGradients {
  Values q, k, v;
};
/// Of one row.
inline AttentionGradients wide_attention_backward(const Values& q, const Values& k, const Values& v, std::size_t heads, std::size_t e, std::size_t ev, double scale,
                                                  const Values& dout) {
  AttentionGradients grads{Values(q.size(), 0.0), Values(k.size(), 0.0), Values(v.size(), 0.0)};
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t i = 0; i < q.size() / (heads * e); ++i) {
      Values weights(i + 1), slopes(i + 1, 0.0);
      double total = 0, mean = 0;
      for (std::size_t j = 0; j <= i; ++j) {
        double score = 0;
        for (std::size_t c = 0; c < e; ++c) score += q[(i * heads + h) * e + c] * k[(j * heads + h) * e + c];
        weights[j] = std::exp(scale * score);
        total += weights[j];
      }
      for (std::size_t j = 0; j <= i; ++j) {
        weights[j] /= total;
        for (std::size_t c = 0; c < ev; ++c) {
          slopes[j] += dout[(i * heads + h) * ev + c] * v[(j * heads + h) * ev + c];
          grads.v[(j * heads + h) * ev + c] += weights[j] * dout[(i * heads + h) * ev + c];
        }
        mean += weights[j] * slopes[j];
      }
      for (std::size_t j = 0; j <= i; ++j)
        for (std::size_t c = 0; c < e; ++c) {
          const double slope = scale * weights[j] * (slopes[j] - mean);
          grads.q[(i * heads + h) * e + c] += slope * k[(j * heads + h) * e + c];
          grads.k[(j * heads + h) * e + c] += slope * q[(i * heads + h) * e + c];
        }
    }
  return grads;
}

/// One row of latent attention: q [t, H (plain + turning)], expanded [t, H (plain + value)], shared [t, turning].
inline Values latent_attention(const Values& q, const Values& expanded, const Values& shared, const pipelora::LatentShape& shape, const Values& inv_freq,
                               bool interleaved, double scale, double cap = 0) {
  const auto heads = static_cast<std::size_t>(shape.heads), plain = static_cast<std::size_t>(shape.plain), turning = static_cast<std::size_t>(shape.turning),
             value = static_cast<std::size_t>(shape.value), e = plain + turning, tokens = shared.size() / turning;
  std::vector<std::int32_t> positions(tokens);
  for (std::size_t t = 0; t < tokens; ++t) positions[t] = static_cast<std::int32_t>(t);
  const auto turned = [&](const Values& x, std::size_t width) { return inv_freq.empty() ? x : rotary(x, positions, inv_freq, width, turning, interleaved); };
  const Values shared_turned = turned(shared, turning);
  Values q_all, k_all, v_all, q_turning;
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t h = 0; h < heads; ++h)
      for (std::size_t c = 0; c < turning; ++c) q_turning.push_back(q[(t * heads + h) * e + plain + c]);
  q_turning = turned(q_turning, heads * turning);
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t h = 0; h < heads; ++h) {
      for (std::size_t c = 0; c < plain; ++c) q_all.push_back(q[(t * heads + h) * e + c]);
      for (std::size_t c = 0; c < turning; ++c) q_all.push_back(q_turning[(t * heads + h) * turning + c]);
      const double* own = expanded.data() + (t * heads + h) * (plain + value);
      k_all.insert(k_all.end(), own, own + plain);
      for (std::size_t c = 0; c < turning; ++c) k_all.push_back(shared_turned[t * turning + c]);
      v_all.insert(v_all.end(), own + plain, own + plain + value);
    }
  return wide_attention(q_all, k_all, v_all, heads, e, value, scale, cap);
}

}  // namespace reference
