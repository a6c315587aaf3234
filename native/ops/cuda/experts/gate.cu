// The gate of experts' MLPs, rows times their routing weights. A block a row: the weight's gradient is a sum over it.
#include "ops/cuda/device/alignment.h"
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/experts/experts.h"
#include "ops/cuda/pointwise/activation.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 128;

/// value = gate(g, u), and its slopes.
struct At {
  float value, by_gate, by_up;
};
template <class A>
struct PlainGate {
  __device__ At operator()(float g, float u) const {
    float slope;
    const float value = A::with_slope(g, slope);
    return {value * u, u * slope, value};
  }
};
struct ClampedGate {
  float limit, alpha;
  __device__ At operator()(float g, float u) const {
    const float x = fminf(g, limit), y = fmaxf(fminf(u, limit), -limit);
    const float share = sigmoid(alpha * x), value = x * share;
    const float slope = (y + 1.0f) * share * (1.0f + alpha * x * (1.0f - share));
    return {value * (y + 1.0f), g > limit ? 0.0f : slope, u > limit || u < -limit ? 0.0f : value};
  }
};

template <class F>
void with_gate(const GateRule& rule, F&& f) {
  if (rule.limit > 0) return f(ClampedGate{rule.limit, rule.alpha});
  with_activation(rule.activation, [&]<class A>(A) { f(PlainGate<A>{}); });
}

template <class T>
struct GateCall {
  T* gate_up;
  T* act;  // the gradient of act before, on the backward pass
  const float* weights;
  const std::int32_t* order;
  float* weight_grads;
  std::int64_t gate_up_stride, act_stride, rows, cols;
  bool interleaved, weight_before;
};

template <class T>
__device__ T* gate_of(const GateCall<T>& call, std::int64_t row, std::int64_t c) {
  return call.gate_up + row * call.gate_up_stride + (call.interleaved ? 2 * c : c);
}
template <class T>
__device__ std::int64_t up_after(const GateCall<T>& call) {
  return call.interleaved ? 1 : call.cols;
}

/// A row's weight, on what the gate takes and on what it gives.
struct RowWeight {
  float before, behind;
};
template <class T>
__device__ RowWeight weight_of(const GateCall<T>& call, std::int64_t choice) {
  const float weight = call.weights == nullptr ? 1.0f : call.weights[choice];
  return call.weight_before ? RowWeight{weight, 1.0f} : RowWeight{1.0f, weight};
}

/// V columns at a time: 8 where gate and up stand apart.
template <int V, class G, class T>
__global__ void __launch_bounds__(kThreads) gate_forward_kernel(GateCall<T> call, G gate) {
  for (std::int64_t r = blockIdx.x; r < call.rows; r += gridDim.x) {
    const RowWeight weight = weight_of(call, call.order == nullptr ? r : call.order[r]);
    for (std::int64_t c = threadIdx.x * V; c < call.cols; c += kThreads * V) {
      const T* at = gate_of(call, r, c);
      const Floats<V> g = load<V>(at), u = load<V>(at + up_after(call));
      Floats<V> act;
#pragma unroll
      for (int i = 0; i < V; ++i) act.v[i] = gate(g.v[i] * weight.before, u.v[i] * weight.before).value * weight.behind;
      store<V>(call.act + r * call.act_stride + c, act);
    }
  }
}

template <int V, class G, class T>
__global__ void __launch_bounds__(kThreads) gate_backward_kernel(GateCall<T> call, G gate) {
  __shared__ float shared[32];
  for (std::int64_t r = blockIdx.x; r < call.rows; r += gridDim.x) {
    const std::int64_t choice = call.order == nullptr ? r : call.order[r];
    const RowWeight weight = weight_of(call, choice);
    const float slope = weight.before * weight.behind;
    float total = 0;
    for (std::int64_t c = threadIdx.x * V; c < call.cols; c += kThreads * V) {
      T* at = gate_of(call, r, c);
      T* to = call.act + r * call.act_stride + c;
      Floats<V> gates = load<V>(at), ups = load<V>(at + up_after(call)), acts = load<V>(to);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const At g = gate(gates.v[i] * weight.before, ups.v[i] * weight.before);
        const float d = acts.v[i];
        total += (call.weight_before ? g.by_gate * gates.v[i] + g.by_up * ups.v[i] : g.value) * d;
        gates.v[i] = g.by_gate * d * slope;
        ups.v[i] = g.by_up * d * slope;
        acts.v[i] = g.value * weight.behind;
      }
      store<V>(at, gates);
      store<V>(at + up_after(call), ups);
      store<V>(to, acts);
    }
    if (call.weight_grads == nullptr) continue;
    total = block_sum(total, shared);
    if (threadIdx.x == 0) call.weight_grads[choice] = total;
  }
}

template <class T>
GateCall<T> call_of(const Tensor& gate_up, const Tensor& act, const Tensor& weights, const Tensor& order, const Tensor& weight_grads,
                    const GateRule& rule) {
  return {gate_up.as<T>(), act.as<T>(), weights.as<float>(), order.as<std::int32_t>(), weight_grads.as<float>(), gate_up.stride, act.stride,
          act.rows, act.cols, rule.interleaved, rule.weight_before};
}

/// f(V)
template <class F>
void by_width(const Tensor& gate_up, const Tensor& act, const GateRule& rule, F&& f) {
  if (!rule.interleaved && eights(gate_up) && eights(act))
    f.template operator()<8>();
  else
    f.template operator()<1>();
}

unsigned rows_of(std::int64_t rows) { return static_cast<unsigned>(rows < 65535 ? rows : 65535); }

}  // namespace

void gate_forward(const GateForward& call, cudaStream_t stream) {
  if (call.act.rows == 0) return;
  with_gate(call.rule, [&](auto gate) {
    with_float(call.act.dtype, [&]<class T>(T) {
      by_width(call.gate_up, call.act, call.rule, [&]<int V>() {
        gate_forward_kernel<V><<<rows_of(call.act.rows), kThreads, 0, stream>>>(
            call_of<T>(call.gate_up, call.act, call.weights, call.order, Tensor(), call.rule), gate);
      });
    });
  });
  check_launch("gate_forward");
}

void gate_backward(const GateBackward& call, cudaStream_t stream) {
  if (call.dact.rows == 0) return;
  with_gate(call.rule, [&](auto gate) {
    with_float(call.dact.dtype, [&]<class T>(T) {
      by_width(call.gate_up, call.dact, call.rule, [&]<int V>() {
        gate_backward_kernel<V><<<rows_of(call.dact.rows), kThreads, 0, stream>>>(
            call_of<T>(call.gate_up, call.dact, call.weights, call.order, call.weight_grads, call.rule), gate);
      });
    });
  });
  check_launch("gate_backward");
}

}  // namespace pipelora::cuda
