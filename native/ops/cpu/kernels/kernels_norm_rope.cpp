// RMSNorm, and the per-head norm and rotary embedding of q and k.
#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// The mean of one row.
template <class T>
float mean_of(const T* x, std::int64_t n) {
  vf total = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) { total += load_some(x + c, count); });
  return sum(total) / static_cast<float>(n);
}

/// 1 / sqrt(mean((x - mean)²) + eps)
template <class T>
float inverse_deviation(const T* x, float mean, std::int64_t n, float eps) {
  vf squares = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) {
    vf v = load_some(x + c, count) - mean;
    for (int i = count; i < kLanes; ++i) v[i] = 0;
    squares += v * v;
  });
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
}

void rmsnorm_forward(const Tensor& x, const float* weight, NormRule rule, const Tensor& y) {
  with_float(x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const T* in = row<T>(x, t);
      T* out = row<T>(y, t);
      if (rule.centred) {
        const float mean = mean_of(in, x.cols), r = inverse_deviation(in, mean, x.cols, rule.eps);
        for_lanes(0, x.cols, [&](std::int64_t c, int n) {
          store_some(out + c, (load_some(in + c, n) - mean) * r * load_some(weight + c, n), n);
        });
        continue;
      }
      const float r = inverse_rms(in, x.cols, rule.eps);
      for_lanes(0, x.cols, [&](std::int64_t c, int n) {
        store_some(out + c, load_some(in + c, n) * r * load_some(weight + c, n), n);
      });
    }
  });
}

/// sum(w dy x) of one row.
template <class T, class D>
float weighted_dot(const T* x, const D* dy, const float* weight, std::int64_t n) {
  vf dot = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) {
    dot += load_some(weight + c, count) * load_some(dy + c, count) * load_some(x + c, count);
  });
  return sum(dot);
}

// y = r w (x - m): dx = r (w dy - mean(w dy)) - (x - m) r³ mean(w dy (x - m)) + residual.
void centred_backward(const RmsNormBackward& call) {
  const float* weight = call.weight.as<float>();
  const std::int64_t d = call.x.cols;
  const float count = static_cast<float>(d);
  with_float(call.x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < call.x.rows; ++t) {
      const T *x = row<T>(call.x, t), *dy = row<T>(call.dy, t);
      const T* residual = call.residual ? row<T>(call.residual, t) : nullptr;
      T *dx = row<T>(call.dx, t), *y = call.y ? row<T>(call.y, t) : nullptr;
      const float mean = mean_of(x, d), r = inverse_deviation(x, mean, d, call.rule.eps);
      vf level = splat(0), dot = splat(0);
      for_lanes(0, d, [&](std::int64_t c, int n) {
        const vf g = load_some(weight + c, n) * load_some(dy + c, n);  // zeros behind the end
        level += g;
        dot += g * (load_some(x + c, n) - mean);
      });
      const float lift = sum(level) / count, pull = r * r * r * sum(dot) / count;
      for_lanes(0, d, [&](std::int64_t c, int n) {
        const vf in = load_some(x + c, n) - mean, w = load_some(weight + c, n);
        vf grad = r * (w * load_some(dy + c, n) - lift) - in * pull;
        if (residual != nullptr) grad += load_some(residual + c, n);
        if (y != nullptr) store_some(y + c, in * r * w, n);
        store_some(dx + c, grad, n);
      });
    }
  });
}

// y = r w x with r = 1 / rms(x): dx = r w dy - x r³ mean(w dy x) + residual.
void rmsnorm_backward(const RmsNormBackward& call) {
  if (call.rule.centred) return centred_backward(call);
  const float* weight = call.weight.as<float>();
  const std::int64_t d = call.x.cols;
  with_float(call.x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < call.x.rows; ++t) {
      const T *x = row<T>(call.x, t), *dy = row<T>(call.dy, t);
      const T* residual = call.residual ? row<T>(call.residual, t) : nullptr;
      T *dx = row<T>(call.dx, t), *y = call.y ? row<T>(call.y, t) : nullptr;
      const float r = inverse_rms(x, d, call.rule.eps);
      const float pull = r * r * r * weighted_dot(x, dy, weight, d) / static_cast<float>(d);
      for_lanes(0, d, [&](std::int64_t c, int n) {
        const vf in = load_some(x + c, n), w = load_some(weight + c, n);
        vf grad = r * w * load_some(dy + c, n) - in * pull;
        if (residual != nullptr) grad += load_some(residual + c, n);
        if (y != nullptr) store_some(y + c, in * r * w, n);
        store_some(dx + c, grad, n);
      });
    }
  });
}

/// Pairs of a head that turn: columns first(i) and second(i), i < R / 2.
struct Pairs {
  std::int64_t half;
  bool interleaved;
  std::int64_t first(std::int64_t i) const { return interleaved ? 2 * i : i; }
  std::int64_t second(std::int64_t i) const { return interleaved ? 2 * i + 1 : half + i; }
};

constexpr std::int64_t kMostColumns = 1024;  // E is checked to be no larger

/// (a, b) of each pair becomes (a cos - b sin, b cos + a sin), `way` 1, or turns back, -1.
void turn(float* head, const float* cosine, const Pairs& pairs, float way) {
  const float* sine = cosine + pairs.half;
  for (std::int64_t i = 0; i < pairs.half; ++i) {
    float &a = head[pairs.first(i)], &b = head[pairs.second(i)];
    const float before = a, s = way * sine[i];
    a = before * cosine[i] - b * s;
    b = b * cosine[i] + before * s;
  }
}

/// x, or its norm, of one head in float32.
template <class T>
void widen_head(const T* in, const float* norm, NormRule rule, std::int64_t e, float* to) {
  const float mean = norm != nullptr && rule.centred ? mean_of(in, e) : 0.0f;
  const float r = norm == nullptr ? 1.0f : rule.centred ? inverse_deviation(in, mean, e, rule.eps) : inverse_rms(in, e, rule.eps);
  for_lanes(0, e, [&](std::int64_t c, int n) {
    vf v = load_some(in + c, n);
    if (norm != nullptr) v = (v - mean) * r * load_some(norm + c, n);
    store_some(to + c, v, n);
  });
}

// Heads of which a part turns, or none, or pairs of neighbours.
template <class T>
void turn_forward(const Tensor& x, const Tensor& out, const float* norm, const RopeHeads& heads) {
  const std::int64_t e = heads.head_dim;
  const Pairs pairs{heads.rope.cols / 2, heads.interleaved};
  float head[kMostColumns];
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const float* cosine = heads.rope ? row<float>(heads.rope, heads.rope_row[t]) : nullptr;
    const float scale = heads.q_scale != nullptr ? heads.q_scale[t] : 1.0f;
    for (std::int64_t first = 0; first < x.cols; first += e) {
      widen_head(row<T>(x, t) + first, norm, heads.rule, e, head);
      if (cosine != nullptr) turn(head, cosine, pairs, 1);
      T* to = row<T>(out, t) + first;
      for_lanes(0, e, [&](std::int64_t c, int n) { store_some(to + c, load_some(head + c, n) * scale, n); });
    }
  }
}

template <class T>
void turn_backward(const Tensor& dx, const Tensor& x, const float* norm, const RopeHeads& heads) {
  const std::int64_t e = heads.head_dim;
  const Pairs pairs{heads.rope.cols / 2, heads.interleaved};
  float head[kMostColumns];
  for (std::int64_t t = 0; t < dx.rows; ++t) {
    const float* cosine = heads.rope ? row<float>(heads.rope, heads.rope_row[t]) : nullptr;
    const float scale = heads.q_scale != nullptr ? heads.q_scale[t] : 1.0f;
    for (std::int64_t first = 0; first < dx.cols; first += e) {
      T* grad = row<T>(dx, t) + first;
      for_lanes(0, e, [&](std::int64_t c, int n) { store_some(head + c, load_some(grad + c, n) * scale, n); });
      if (cosine != nullptr) turn(head, cosine, pairs, -1);
      if (norm == nullptr) {
        for_lanes(0, e, [&](std::int64_t c, int n) { store_some(grad + c, load_some(head + c, n), n); });
        continue;
      }
      const T* in = row<T>(x, t) + first;
      const float mean = heads.rule.centred ? mean_of(in, e) : 0.0f, count = static_cast<float>(e);
      const float r = heads.rule.centred ? inverse_deviation(in, mean, e, heads.rule.eps) : inverse_rms(in, e, heads.rule.eps);
      vf level = splat(0), dot = splat(0);
      for_lanes(0, e, [&](std::int64_t c, int n) {
        const vf g = load_some(norm + c, n) * load_some(head + c, n);
        level += g;
        dot += g * (load_some(in + c, n) - mean);
      });
      const float lift = heads.rule.centred ? sum(level) / count : 0.0f, pull = r * r * r * sum(dot) / count;
      for_lanes(0, e, [&](std::int64_t c, int n) {
        store_some(grad + c, r * (load_some(norm + c, n) * load_some(head + c, n) - lift) - (load_some(in + c, n) - mean) * pull, n);
      });
    }
  }
}

bool plain_halves(const RopeHeads& heads) { return heads.rope.cols == heads.head_dim && !heads.interleaved && !heads.rule.centred; }

// Half-split rotary: (a, b) of the two halves becomes (a cos - b sin, b cos + a sin).
void norm_rope_forward(const Tensor& x, const Tensor& out, const float* norm, const RopeHeads& heads) {
  const std::int64_t e = heads.head_dim, half = e / 2;
  with_float(x.dtype, [&]<class T>() {
    if (!plain_halves(heads)) return turn_forward<T>(x, out, norm, heads);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const float *cosine = row<float>(heads.rope, heads.rope_row[t]), *sine = cosine + half;
      const float scale = heads.q_scale != nullptr ? heads.q_scale[t] : 1.0f;
      for (std::int64_t head = 0; head < x.cols; head += e) {
        const T* in = row<T>(x, t) + head;
        T* to = row<T>(out, t) + head;
        const float r = norm != nullptr ? inverse_rms(in, e, heads.rule.eps) : 1.0f;
        for_lanes(0, half, [&](std::int64_t c, int n) {
          vf a = load_some(in + c, n), b = load_some(in + half + c, n);
          if (norm != nullptr) {
            a = a * r * load_some(norm + c, n);
            b = b * r * load_some(norm + half + c, n);
          }
          const vf co = load_some(cosine + c, n), si = load_some(sine + c, n);
          store_some(to + c, (a * co - b * si) * scale, n);
          store_some(to + half + c, (b * co + a * si) * scale, n);
        });
      }
    }
  });
}

void norm_rope_backward(const Tensor& dx, const Tensor& x, const float* norm, const RopeHeads& heads) {
  const std::int64_t e = heads.head_dim, half = e / 2;
  with_float(dx.dtype, [&]<class T>() {
    if (!plain_halves(heads) || heads.q_scale != nullptr) return turn_backward<T>(dx, x, norm, heads);
    float turned[kMostColumns];
    for (std::int64_t t = 0; t < dx.rows; ++t) {
      const float *cosine = row<float>(heads.rope, heads.rope_row[t]), *sine = cosine + half;
      for (std::int64_t head = 0; head < dx.cols; head += e) {
        T* grad = row<T>(dx, t) + head;
        for_lanes(0, half, [&](std::int64_t c, int n) {
          const vf a = load_some(grad + c, n), b = load_some(grad + half + c, n);
          const vf co = load_some(cosine + c, n), si = load_some(sine + c, n);
          const vf da = a * co + b * si, db = b * co - a * si;
          if (norm == nullptr) {
            store_some(grad + c, da, n);
            store_some(grad + half + c, db, n);
          } else {
            store_some(turned + c, da, n);
            store_some(turned + half + c, db, n);
          }
        });
        if (norm == nullptr) continue;
        const T* in = row<T>(x, t) + head;
        const float r = inverse_rms(in, e, heads.rule.eps);
        const float pull = r * r * r * weighted_dot(in, turned, norm, e) / static_cast<float>(e);
        for_lanes(0, e, [&](std::int64_t c, int n) {
          store_some(grad + c, r * load_some(norm + c, n) * load_some(turned + c, n) - load_some(in + c, n) * pull, n);
        });
      }
    }
  });
}

}  // namespace

void fill_norm_rope(Kernels& table) {
  table.rmsnorm_forward = rmsnorm_forward;
  table.rmsnorm_backward = rmsnorm_backward;
  table.norm_rope_forward = norm_rope_forward;
  table.norm_rope_backward = norm_rope_backward;
}

}  // namespace pipelora::PIPELORA_ISA
