// RMSNorm, and the per-head norm and rotary embedding of q and k.
#include "ops/cpu/kernel_parts.h"
#include "ops/cpu/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// 1 / sqrt(mean(x²) + eps)
template <class T>
float inverse_rms(const T* x, std::int64_t n, float eps) {
  vf squares = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) {
    const vf v = load_some(x + c, count);
    squares += v * v;
  });
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
}

void rmsnorm_forward(const Tensor& x, const float* weight, float eps, const Tensor& y) {
  with_float(x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const T* in = row<T>(x, t);
      T* out = row<T>(y, t);
      const float r = inverse_rms(in, x.cols, eps);
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

// y = r w x with r = 1 / rms(x): dx = r w dy - x r³ mean(w dy x) + residual.
void rmsnorm_backward(const RmsNormBackward& call) {
  const float* weight = call.weight.as<float>();
  const std::int64_t d = call.x.cols;
  with_float(call.x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < call.x.rows; ++t) {
      const T *x = row<T>(call.x, t), *dy = row<T>(call.dy, t);
      const T* residual = call.residual ? row<T>(call.residual, t) : nullptr;
      T *dx = row<T>(call.dx, t), *y = call.y ? row<T>(call.y, t) : nullptr;
      const float r = inverse_rms(x, d, call.eps);
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

// Half-split rotary: (a, b) of the two halves becomes (a cos - b sin, b cos + a sin).
void norm_rope_forward(const Tensor& x, const Tensor& out, const float* norm, float eps, const Tensor& rope,
                       const std::int32_t* rope_row, const float* q_scale, std::int64_t e) {
  const std::int64_t half = e / 2;
  with_float(x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < x.rows; ++t) {
      const float *cosine = row<float>(rope, rope_row[t]), *sine = cosine + half;
      const float scale = q_scale != nullptr ? q_scale[t] : 1.0f;
      for (std::int64_t head = 0; head < x.cols; head += e) {
        const T* in = row<T>(x, t) + head;
        T* to = row<T>(out, t) + head;
        const float r = norm != nullptr ? inverse_rms(in, e, eps) : 1.0f;
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

void norm_rope_backward(const Tensor& dx, const Tensor& x, const float* norm, float eps, const Tensor& rope,
                        const std::int32_t* rope_row, std::int64_t e) {
  const std::int64_t half = e / 2;
  with_float(dx.dtype, [&]<class T>() {
    float turned[1024];  // E is checked to be no larger
    for (std::int64_t t = 0; t < dx.rows; ++t) {
      const float *cosine = row<float>(rope, rope_row[t]), *sine = cosine + half;
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
        const float r = inverse_rms(in, e, eps);
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
