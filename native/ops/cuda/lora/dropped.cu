// Dropout for LoRA whose products run through cuBLASLt (more ranks than the fused kernels take): what it leaves of an input is written
// for each pair, all pairs in one pass. Where SwiGLU makes the input, it is written there, and the backward pass takes LoRA's term along.
#include <algorithm>

#include "ops/cuda/lora/device.cuh"
#include "ops/cuda/lora/lora.h"
#include "ops/cuda/pointwise/activation.cuh"

namespace pipelora::cuda {

namespace {

constexpr std::size_t kMostPairs = 4;  // of one launch

/// The pairs of one launch: whose masks, and how far apart their tensors lie.
struct Modules {
  int count;
  std::int64_t apart;
  struct {
    std::uint32_t id, threshold;  // threshold 0: nothing is dropped
    float factor;                 // of what is kept
  } pair[kMostPairs];
};

Modules modules_of(std::span<const LoraView> pairs, std::int64_t apart, Kept kept = Kept::as_it_is) {
  Modules modules{static_cast<int>(pairs.size()), apart, {}};
  for (std::size_t i = 0; i < pairs.size(); ++i)
    modules.pair[i] = {pairs[i].module_id, dropout_threshold(pairs[i].dropout), kept == Kept::scaled ? 1.0f / (1.0f - pairs[i].dropout) : 1.0f};
  return modules;
}

template <int V>
__device__ inline std::uint32_t kept(const Mask& mask, const TokenPlace& place, std::int64_t token, std::int64_t c, std::uint32_t id,
                                     std::uint32_t threshold) {
  if constexpr (V == 8)
    return keep_bits(mask, place, c, id, threshold);
  else
    return keep_one(mask, token, c, id, threshold) ? 1u : 0u;
}

template <int V>
__device__ inline Floats<V> only(const Floats<V>& values, std::uint32_t keep, float factor = 1.0f) {
  Floats<V> out;
#pragma unroll
  for (int i = 0; i < V; ++i) out.v[i] = keep >> i & 1u ? values.v[i] * factor : 0.0f;
  return out;
}

template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  template <int V>
  __device__ Floats<V> read(std::int64_t row, std::int64_t c) const { return load<V>(data + row * stride + c); }
  template <int V>
  __device__ void write(std::int64_t row, std::int64_t c, const Floats<V>& values) const { store<V>(data + row * stride + c, values); }
};
template <class T>
Rows<T> rows_of(const Tensor& tensor) { return {tensor.as<T>(), tensor.stride}; }

template <int V, class T>
__global__ void __launch_bounds__(kRowThreads) drop_kernel(Rows<T> from, Rows<T> to, std::int64_t tokens, std::int64_t pieces, Mask mask, Modules modules) {
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * V;
  if (c >= pieces * V) return;
  for (std::int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    const Floats<V> values = from.template read<V>(t, c);
    const TokenPlace place = token_place(mask, t);
    for (int i = 0; i < modules.count; ++i)
      to.template write<V>(t, c + i * modules.apart, only<V>(values, kept<V>(mask, place, t, c, modules.pair[i].id, modules.pair[i].threshold), modules.pair[i].factor));
  }
}

template <int V, class T>
__global__ void __launch_bounds__(kRowThreads) add_kept_kernel(Rows<T> terms, Rows<T> to, std::int64_t tokens, std::int64_t pieces, Mask mask, Modules modules) {
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * V;
  if (c >= pieces * V) return;
  for (std::int64_t t = blockIdx.y; t < tokens; t += gridDim.y) {
    Floats<V> sum = to.template read<V>(t, c);
    const TokenPlace place = token_place(mask, t);
    for (int i = 0; i < modules.count; ++i) {
      const Floats<V> values = only<V>(terms.template read<V>(t, c + i * modules.apart),
                                       kept<V>(mask, place, t, c, modules.pair[i].id, modules.pair[i].threshold), modules.pair[i].factor);
#pragma unroll
      for (int j = 0; j < V; ++j) sum.v[j] += values.v[j];
    }
    to.template write<V>(t, c, sum);
  }
}

template <class T>
struct SwiGlu {
  Rows<T> gate, up, act, dropped;
  Rows<T> dact, term, dgate, dup;  // back alone
  std::int64_t tokens, pieces;
};

template <class A, int V, class T>
__global__ void __launch_bounds__(kRowThreads) swiglu_dropped_kernel(SwiGlu<T> call, Mask mask, Modules modules) {
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * V;
  if (c >= call.pieces * V) return;
  for (std::int64_t t = blockIdx.y; t < call.tokens; t += gridDim.y) {
    const Floats<V> g = call.gate.template read<V>(t, c), u = call.up.template read<V>(t, c);
    const std::uint32_t keep = kept<V>(mask, token_place(mask, t), t, c, modules.pair[0].id, modules.pair[0].threshold);
    Floats<V> act;
#pragma unroll
    for (int i = 0; i < V; ++i) act.v[i] = A::value(g.v[i]) * u.v[i];
    call.act.template write<V>(t, c, act);
    call.dropped.template write<V>(t, c, only<V>(act, keep));
  }
}

template <class A, int V, class T>
__global__ void __launch_bounds__(kRowThreads) swiglu_dropped_grad_kernel(SwiGlu<T> call, Mask mask, Modules modules) {
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x) * V;
  if (c >= call.pieces * V) return;
  for (std::int64_t t = blockIdx.y; t < call.tokens; t += gridDim.y) {
    const Floats<V> g = call.gate.template read<V>(t, c), u = call.up.template read<V>(t, c), d = call.dact.template read<V>(t, c);
    const std::uint32_t keep = kept<V>(mask, token_place(mask, t), t, c, modules.pair[0].id, modules.pair[0].threshold);
    const Floats<V> term = only<V>(call.term.template read<V>(t, c), keep);
    Floats<V> act, dg, du;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float slope;
      const float value = A::with_slope(g.v[i], slope), whole = d.v[i] + term.v[i];
      act.v[i] = value * u.v[i];
      du.v[i] = whole * value;
      dg.v[i] = whole * u.v[i] * slope;
    }
    call.dgate.template write<V>(t, c, dg);
    call.dup.template write<V>(t, c, du);
    call.dropped.template write<V>(t, c, only<V>(act, keep));
  }
}

/// f(V, number of T): eight columns at a time where every tensor can be read so.
template <class F>
void by_width(DType dtype, std::initializer_list<Tensor> tensors, F&& f) {
  const bool wide = std::all_of(tensors.begin(), tensors.end(), eights);
  with_float(dtype, [&]<class T>(T number) {
    if (wide)
      f.template operator()<8>(number);
    else
      f.template operator()<1>(number);
  });
}

/// launch(pairs, the tensors of the first of them on) in runs of kMostPairs.
template <class F>
void in_runs(std::span<const LoraView> pairs, const Tensor& each, std::int64_t cols, Kept kept, F&& launch) {
  const std::int64_t apart = each.cols / static_cast<std::int64_t>(pairs.size());
  for (std::size_t first = 0; first < pairs.size(); first += kMostPairs) {
    const auto run = pairs.subspan(first, std::min(kMostPairs, pairs.size() - first));
    const auto at = static_cast<std::int64_t>(first) * apart;
    launch(modules_of(run, apart, kept), each.columns(at, static_cast<std::int64_t>(run.size() - 1) * apart + cols));
  }
}

}  // namespace

void lora_drop(const Tensor& x, const LoraSet& lora, const Sequences& sequences, const Tensor& to, cudaStream_t stream, Kept kept) {
  if (x.rows == 0) return;
  in_runs(lora.pairs, to, x.cols, kept, [&](const Modules& modules, const Tensor& out) {
    by_width(x.dtype, {x, to}, [&]<int V, class T>(T) {
      drop_kernel<V, T><<<row_grid(x.rows, x.cols, V), kRowThreads, 0, stream>>>(rows_of<T>(x), rows_of<T>(out), x.rows, x.cols / V,
                                                                                mask_of(lora.dropout, &sequences, x.cols), modules);
    });
  });
  check_launch("LoRA's dropout");
}

void lora_add_kept(const Tensor& terms, const LoraSet& lora, const Sequences& sequences, const Tensor& to, cudaStream_t stream, Kept kept) {
  if (to.rows == 0) return;
  in_runs(lora.pairs, terms, to.cols, kept, [&](const Modules& modules, const Tensor& from) {
    by_width(to.dtype, {terms, to}, [&]<int V, class T>(T) {
      add_kept_kernel<V, T><<<row_grid(to.rows, to.cols, V), kRowThreads, 0, stream>>>(rows_of<T>(from), rows_of<T>(to), to.rows, to.cols / V,
                                                                                      mask_of(lora.dropout, &sequences, to.cols), modules);
    });
  });
  check_launch("LoRA's dropout, back");
}

void swiglu_dropped(const Tensor& gate, const Tensor& up, const LoraSet& lora, const Sequences& sequences, const Tensor& act, const Tensor& dropped,
                    Activation activation, cudaStream_t stream) {
  if (gate.rows == 0) return;
  by_width(gate.dtype, {gate, up, act, dropped}, [&]<int V, class T>(T) {
    const SwiGlu<T> call{.gate = rows_of<T>(gate), .up = rows_of<T>(up), .act = rows_of<T>(act), .dropped = rows_of<T>(dropped),
                         .dact = {}, .term = {}, .dgate = {}, .dup = {}, .tokens = gate.rows, .pieces = gate.cols / V};
    with_activation(activation, [&]<class A>(A) {
      swiglu_dropped_kernel<A, V, T><<<row_grid(gate.rows, gate.cols, V), kRowThreads, 0, stream>>>(
          call, mask_of(lora.dropout, &sequences, gate.cols), modules_of(lora.pairs, 0));
    });
  });
  check_launch("SwiGLU with LoRA's dropout");
}

void swiglu_dropped_grad(const SwiGluDroppedGrad& call, const LoraSet& lora, const Sequences& sequences, Activation activation, cudaStream_t stream) {
  if (call.gate.rows == 0) return;
  const std::int64_t rows = call.gate.rows, cols = call.gate.cols;
  by_width(call.gate.dtype, {call.gate, call.up, call.dact, call.term, call.dgate, call.dup}, [&]<int V, class T>(T) {
    const SwiGlu<T> all{.gate = rows_of<T>(call.gate), .up = rows_of<T>(call.up), .act = {}, .dropped = rows_of<T>(call.dact),
                        .dact = rows_of<T>(call.dact), .term = rows_of<T>(call.term), .dgate = rows_of<T>(call.dgate), .dup = rows_of<T>(call.dup),
                        .tokens = rows, .pieces = cols / V};
    with_activation(activation, [&]<class A>(A) {
      swiglu_dropped_grad_kernel<A, V, T><<<row_grid(rows, cols, V), kRowThreads, 0, stream>>>(all, mask_of(lora.dropout, &sequences, cols),
                                                                                              modules_of(lora.pairs, 0));
    });
  });
  check_launch("SwiGLU's backward with LoRA's dropout");
}

}  // namespace pipelora::cuda
