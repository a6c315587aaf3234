// The gate of an expert's MLP, rows times their routing weights.
#include "ops/cpu/kernels/activations.h"
#include "ops/cpu/kernels/kernel_parts.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// Where gate and up of a row stand.
template <class T>
struct Pair {
  T* gate;
  T* up;
  std::int64_t step;

  Pair(const Tensor& gate_up, std::int64_t r, bool interleaved)
      : gate(row<T>(gate_up, r)), up(gate + (interleaved ? 1 : gate_up.cols / 2)), step(interleaved ? 2 : 1) {}

  vf read(const T* from, std::int64_t c, int n) const {
    if (step == 1) return load_some(from + c, n);
    alignas(64) T lanes[kLanes] = {};
    for (int i = 0; i < n; ++i) lanes[i] = from[2 * (c + i)];
    return load(lanes);
  }
  void write(T* to, std::int64_t c, vf v, int n) const {
    if (step == 1) return store_some(to + c, v, n);
    alignas(64) T lanes[kLanes];
    store(lanes, v);
    for (int i = 0; i < n; ++i) to[2 * (c + i)] = lanes[i];
  }
};

/// value = gate(g, u) and its derivatives by g and u.
struct GateAt {
  vf value, by_gate, by_up;
};
template <class A>
struct PlainGate {
  explicit PlainGate(const GateRule&) {}
  GateAt operator()(vf g, vf u) const {
    const A at(g);
    const vf value = g * at.share;
    return {value * u, u * (at.share + at.rest), value};
  }
};
struct ClampedGate {
  float limit, alpha;
  explicit ClampedGate(const GateRule& rule) : limit(rule.limit), alpha(rule.alpha) {}
  GateAt operator()(vf g, vf u) const {
    const vf x = g > limit ? splat(limit) : g, top = u > limit ? splat(limit) : u, y = top < -limit ? splat(-limit) : top;
    const vf share = sigmoid(x * alpha), value = x * share;
    const vf slope = (y + 1.0f) * share * (1.0f + alpha * x * (1.0f - share));
    return {value * (y + 1.0f), g > limit ? splat(0) : slope, (u > limit) | (u < -limit) ? splat(0) : value};
  }
};

template <class F>
void with_gate(const GateRule& rule, F&& f) {
  if (rule.limit > 0) return f(ClampedGate(rule));
  switch (rule.activation) {
    case Activation::gelu_tanh: return f(PlainGate<GeluTanh>(rule));
    case Activation::gelu: return f(PlainGate<Gelu>(rule));
    default: return f(PlainGate<Silu>(rule));
  }
}

std::int64_t choice(const Tensor& order, std::int64_t r) { return order ? order.as<std::int32_t>()[r] : r; }

/// A row's weight, on what the gate takes and on what it gives.
struct RowWeight {
  float before, behind;
};
RowWeight row_weight(const Tensor& weights, const Tensor& order, const GateRule& rule, std::int64_t r) {
  const float weight = weights ? weights.as<float>()[choice(order, r)] : 1.0f;
  return rule.weight_before ? RowWeight{weight, 1} : RowWeight{1, weight};
}

void gate_forward(const GateForward& call, std::int64_t first, std::int64_t count) {
  with_gate(call.rule, [&](auto gate) {
    with_float(call.act.dtype, [&]<class T>() {
      for (std::int64_t r = first; r < first + count; ++r) {
        const Pair<T> in(call.gate_up, r, call.rule.interleaved);
        T* act = row<T>(call.act, r);
        const RowWeight weight = row_weight(call.weights, call.order, call.rule, r);
        for_lanes(0, call.act.cols, [&](std::int64_t c, int n) {
          store_some(act + c, gate(in.read(in.gate, c, n) * weight.before, in.read(in.up, c, n) * weight.before).value * weight.behind, n);
        });
      }
    });
  });
}

void gate_backward(const GateBackward& call, std::int64_t first, std::int64_t count) {
  with_gate(call.rule, [&](auto gate) {
    with_float(call.dact.dtype, [&]<class T>() {
      for (std::int64_t r = first; r < first + count; ++r) {
        const Pair<T> io(call.gate_up, r, call.rule.interleaved);
        T* dact = row<T>(call.dact, r);
        const RowWeight weight = row_weight(call.weights, call.order, call.rule, r);
        const float slope = weight.before * weight.behind;
        vf total = splat(0);
        for_lanes(0, call.dact.cols, [&](std::int64_t c, int n) {
          const vf g = io.read(io.gate, c, n), u = io.read(io.up, c, n);
          const GateAt at = gate(g * weight.before, u * weight.before);
          const vf d = load_some(dact + c, n);
          total += (call.rule.weight_before ? at.by_gate * g + at.by_up * u : at.value) * d;
          io.write(io.gate, c, at.by_gate * d * slope, n);
          io.write(io.up, c, at.by_up * d * slope, n);
          store_some(dact + c, at.value * weight.behind, n);
        });
        if (call.weight_grads) call.weight_grads.as<float>()[choice(call.order, r)] = sum(total);
      }
    });
  });
}

float dot(const void* a, const float* b, DType dtype, std::int64_t count) {
  vf total = splat(0);
  with_float(dtype, [&]<class T>() {
    for_lanes(0, count, [&](std::int64_t c, int n) { total += load_some(static_cast<const T*>(a) + c, n) * load_some(b + c, n); });
  });
  return sum(total);
}

}  // namespace

void fill_gate(Kernels& table) {
  table.gate_forward = gate_forward;
  table.gate_backward = gate_backward;
  table.dot = dot;
}

}  // namespace pipelora::PIPELORA_ISA
