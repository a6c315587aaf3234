// The gate of experts' MLPs, rows times their routing weights. A block a row: the weight's gradient is a sum over it.
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

template <class G, class T>
__global__ void __launch_bounds__(kThreads) gate_forward_kernel(GateCall<T> call, G gate) {
  for (std::int64_t r = blockIdx.x; r < call.rows; r += gridDim.x) {
    const RowWeight weight = weight_of(call, call.order == nullptr ? r : call.order[r]);
    for (std::int64_t c = threadIdx.x; c < call.cols; c += kThreads) {
      const T* at = gate_of(call, r, c);
      call.act[r * call.act_stride + c] = narrow<T>(gate(widen(at[0]) * weight.before, widen(at[up_after(call)]) * weight.before).value * weight.behind);
    }
  }
}

template <class G, class T>
__global__ void __launch_bounds__(kThreads) gate_backward_kernel(GateCall<T> call, G gate) {
  __shared__ float shared[32];
  for (std::int64_t r = blockIdx.x; r < call.rows; r += gridDim.x) {
    const std::int64_t choice = call.order == nullptr ? r : call.order[r];
    const RowWeight weight = weight_of(call, choice);
    const float slope = weight.before * weight.behind;
    float total = 0;
    for (std::int64_t c = threadIdx.x; c < call.cols; c += kThreads) {
      T* at = gate_of(call, r, c);
      T& act = call.act[r * call.act_stride + c];
      const float own_gate = widen(at[0]), own_up = widen(at[up_after(call)]);
      const At g = gate(own_gate * weight.before, own_up * weight.before);
      const float d = widen(act);
      total += (call.weight_before ? g.by_gate * own_gate + g.by_up * own_up : g.value) * d;
      at[0] = narrow<T>(g.by_gate * d * slope);
      at[up_after(call)] = narrow<T>(g.by_up * d * slope);
      act = narrow<T>(g.value * weight.behind);
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

unsigned rows_of(std::int64_t rows) { return static_cast<unsigned>(rows < 65535 ? rows : 65535); }

}  // namespace

void gate_forward(const GateForward& call, cudaStream_t stream) {
  if (call.act.rows == 0) return;
  with_gate(call.rule, [&](auto gate) {
    with_float(call.act.dtype, [&]<class T>(T) {
      gate_forward_kernel<<<rows_of(call.act.rows), kThreads, 0, stream>>>(
          call_of<T>(call.gate_up, call.act, call.weights, call.order, Tensor(), call.rule), gate);
    });
  });
  check_launch("gate_forward");
}

void gate_backward(const GateBackward& call, cudaStream_t stream) {
  if (call.dact.rows == 0) return;
  with_gate(call.rule, [&](auto gate) {
    with_float(call.dact.dtype, [&]<class T>(T) {
      gate_backward_kernel<<<rows_of(call.dact.rows), kThreads, 0, stream>>>(
          call_of<T>(call.gate_up, call.dact, call.weights, call.order, call.weight_grads, call.rule), gate);
    });
  });
  check_launch("gate_backward");
}

}  // namespace pipelora::cuda
