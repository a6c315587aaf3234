// Conversions, SwiGLU, cross entropy, AdamW, sums of squares.
#include <type_traits>

#include "ops/cpu/kernels/activations.h"
#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

void convert_row(const void* from, DType from_dtype, void* to, DType to_dtype, float factor, std::int64_t count) {
  with_float(from_dtype, [&]<class From>() {
    with_float(to_dtype, [&]<class To>() {
      const From* source = static_cast<const From*>(from);
      To* target = static_cast<To*>(to);
      for_lanes(0, count, [&](std::int64_t c, int n) {
        const vf v = load_some(source + c, n);
        store_some(target + c, factor == 1.0f ? v : v * factor, n);
      });
    });
  });
}

void add_scaled(const float* from, float factor, float* to, std::int64_t count) {
  for_lanes(0, count, [&](std::int64_t c, int n) {
    store_some(to + c, load_some(to + c, n) + load_some(from + c, n) * factor, n);
  });
}

void add_rows(const void* a, const void* b, float factor, void* out, DType dtype, std::int64_t count) {
  with_float(dtype, [&]<class T>() {
    const T *left = static_cast<const T*>(a), *right = static_cast<const T*>(b);
    T* to = static_cast<T*>(out);
    for_lanes(0, count, [&](std::int64_t c, int n) {
      const vf added = load_some(right + c, n) * factor;
      store_some(to + c, left != nullptr ? load_some(left + c, n) + added : added, n);
    });
  });
}

void shape_logits(float* logits, float factor, float cap, std::int64_t count) {
  for_lanes(0, count, [&](std::int64_t c, int n) {
    const vf z = load_some(logits + c, n) * factor;
    store_some(logits + c, cap > 0 ? tanh(z / cap) * cap : z, n);
  });
}

void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) {
  with_activation(activation, [&]<class A>() {
    with_float(gate.dtype, [&]<class T>() {
      for (std::int64_t t = 0; t < gate.rows; ++t) {
        const T *g = row<T>(gate, t), *u = row<T>(up, t);
        T* a = row<T>(act, t);
        for_lanes(0, gate.cols, [&](std::int64_t c, int n) {
          const vf x = load_some(g + c, n);
          store_some(a + c, x * A(x).share * load_some(u + c, n), n);
        });
      }
    });
  });
}

// act = f(g) u; dup = dact f(g); dgate = dact u f'(g).
void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                     const Tensor& act, Activation activation) {
  with_activation(activation, [&]<class A>() {
    with_float(gate.dtype, [&]<class T>() {
      for (std::int64_t t = 0; t < gate.rows; ++t) {
        const T *g = row<T>(gate, t), *u = row<T>(up, t), *d = row<T>(dact, t);
        T *dg = row<T>(dgate, t), *du = row<T>(dup, t), *a = act ? row<T>(act, t) : nullptr;
        for_lanes(0, gate.cols, [&](std::int64_t c, int n) {
          const vf x = load_some(g + c, n), y = load_some(u + c, n), dy = load_some(d + c, n);
          const A at(x);
          const vf value = x * at.share;
          if (a != nullptr) store_some(a + c, value * y, n);
          store_some(du + c, dy * value, n);
          if constexpr (std::is_same_v<A, Silu>)
            store_some(dg + c, dy * y * at.share * (1.0f + x * (1.0f - at.share)), n);
          else
            store_some(dg + c, dy * y * (at.share + at.rest), n);
        });
      }
    });
  });
}

// loss = log(sum exp(z - max)) - (1 - s) (z[target] - max) - s mean(z - max); gradient = weight * (softmax - (1 - s) onehot - s / V) times the
// slope of the logits' shape.
void cross_entropy_row(const CrossEntropy& call, std::int64_t row_number) {
  const float* logits = row<float>(call.logits, row_number);
  const std::int64_t vocab = call.logits.cols;
  const std::int32_t target = call.targets.as<std::int32_t>()[row_number];
  const float weight = call.weights.as<float>()[row_number], slope = call.factor, cap = call.cap, smoothing = call.smoothing;
  const float lowest = -std::numeric_limits<float>::infinity();
  vf largest = splat(lowest);
  for_lanes(0, vocab, [&](std::int64_t c, int n) {
    vf v = load_some(logits + c, n);
    if (n < kLanes)
      for (int i = n; i < kLanes; ++i) v[i] = lowest;
    largest = max(v, largest);
  });
  const float top = max_lane(largest);
  vf total = splat(0);
  for_lanes(0, vocab, [&](std::int64_t c, int n) {
    vf e = exp(load_some(logits + c, n) - top);
    if (n < kLanes)
      for (int i = n; i < kLanes; ++i) e[i] = 0;
    total += e;
  });
  const float z = sum(total);
  const float at_target = logits[target];
  float& loss = call.loss.as<float>()[row_number];
  if (smoothing == 0.0f) {
    loss = std::log(z) + top - at_target;
  } else {
    vf below = splat(0);
    for_lanes(0, vocab, [&](std::int64_t c, int n) {
      vf v = load_some(logits + c, n) - top;
      if (n < kLanes)
        for (int i = n; i < kLanes; ++i) v[i] = 0;
      below += v;
    });
    loss = std::log(z) - (1.0f - smoothing) * (at_target - top) - smoothing * (sum(below) / static_cast<float>(vocab));
  }
  bool first = at_target == top;
  for (std::int64_t c = 0; first && c < target; ++c) first = logits[c] != top;
  call.correct.as<std::int32_t>()[row_number] = first ? 1 : 0;
  if (!call.dlogits) return;
  const float factor = weight / z;
  const float shared = weight * (smoothing / static_cast<float>(vocab));
  const float target_grad = weight * (std::exp(at_target - top) / z - (1.0f - smoothing)) - shared;
  with_float(call.dlogits.dtype, [&]<class T>() {
    T* out = row<T>(call.dlogits, row_number);
    if (slope == 1.0f && cap == 0.0f && smoothing == 0.0f) {
      for_lanes(0, vocab, [&](std::int64_t c, int n) { store_some(out + c, exp(load_some(logits + c, n) - top) * factor, n); });
      store_first(out + target, splat(target_grad), 1);
      return;
    }
    const auto shaped = [&](vf at, vf grad) { return grad * slope * (cap > 0 ? 1.0f - (at / cap) * (at / cap) : splat(1)); };
    const vf of_target = shaped(splat(logits[target]), splat(target_grad));
    for_lanes(0, vocab, [&](std::int64_t c, int n) {
      const vf at = load_some(logits + c, n);
      store_some(out + c, shaped(at, exp(at - top) * factor - shared), n);
    });
    store_first(out + target, of_target, 1);
  });
}

void adamw(float* weight, float* grad, float* exp_avg, float* exp_avg_sq, std::int64_t count, const AdamSettings& s) {
  const float beta2 = static_cast<float>(s.beta2);
  const float rest1 = static_cast<float>(1.0 - s.beta1), rest2 = static_cast<float>(1.0 - s.beta2);
  const float decay = static_cast<float>(1.0 - s.learning_rate * s.weight_decay);
  const double correction1 = 1.0 - std::pow(s.beta1, static_cast<double>(s.step));
  const double correction2 = std::sqrt(1.0 - std::pow(s.beta2, static_cast<double>(s.step)));
  const float step_size = static_cast<float>(s.learning_rate / correction1);
  const float root = static_cast<float>(correction2), eps = static_cast<float>(s.epsilon);
  const float scale = static_cast<float>(s.grad_scale);
  for (std::int64_t i = 0; i < count; ++i) {
    const float g = grad[i] * scale;
    const float m = exp_avg[i] + (g - exp_avg[i]) * rest1;
    const float v = exp_avg_sq[i] * beta2 + g * g * rest2;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weight[i] = weight[i] * decay - step_size * m / (std::sqrt(v) / root + eps);
    grad[i] = 0;
  }
}

double sum_squares(const float* values, std::int64_t count) {
  double lanes[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; ++k) lanes[k] += static_cast<double>(values[i + k]) * static_cast<double>(values[i + k]);
  for (; i < count; ++i) lanes[0] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  double total = 0;
  for (double lane : lanes) total += lane;
  return total;
}

}  // namespace

void fill_elementwise(Kernels& table) {
  table.convert_row = convert_row;
  table.add_scaled = add_scaled;
  table.add_rows = add_rows;
  table.shape_logits = shape_logits;
  table.swiglu_forward = swiglu_forward;
  table.swiglu_backward = swiglu_backward;
  table.cross_entropy_row = cross_entropy_row;
  table.adamw = adamw;
  table.sum_squares = sum_squares;
}

}  // namespace pipelora::PIPELORA_ISA
