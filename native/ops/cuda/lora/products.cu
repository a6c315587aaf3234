// Dropout on its own, for LoRA of more ranks than the fused kernels take: their products run through cuBLASLt.
#include <algorithm>

#include "ops/cuda/lora/lora.h"
#include "ops/cuda/lora/device.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
struct Kept {
  const T* from;
  std::int64_t from_stride;
  T* to;
  std::int64_t to_stride;
  std::int64_t tokens, pieces;  // of V columns
  Mask mask;
  std::uint32_t module, threshold;
};

// to = keep ? from : 0, or to += keep ? from : 0.
template <int V, bool kAdds, class T>
__global__ void __launch_bounds__(kThreads) keep_kernel(Kept<T> call) {
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (c >= call.pieces * V) return;
  for (std::int64_t t = blockIdx.y; t < call.tokens; t += gridDim.y) {
    const Floats<V> values = load<V>(call.from + t * call.from_stride + c);
    std::uint32_t keep;
    if constexpr (V == 8)
      keep = keep_bits(call.mask, token_place(call.mask, t), c, call.module, call.threshold);
    else
      keep = keep_one(call.mask, t, c, call.module, call.threshold) ? 1u : 0u;
    Floats<V> out{};
    if constexpr (kAdds) out = load<V>(call.to + t * call.to_stride + c);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (keep >> i & 1u) out.v[i] += values.v[i];
    store<V>(call.to + t * call.to_stride + c, out);
  }
}

template <bool kAdds>
void keep(const Tensor& from, const LoraView& pair, const DropoutKey& key, const Sequences& sequences, const Tensor& to, cudaStream_t stream) {
  if (from.rows == 0) return;
  const bool wide = eights(from) && eights(to);
  const std::int64_t v = wide ? 8 : 1;
  with_float(from.dtype, [&]<class T>(T) {
    const Kept<T> call{from.as<T>(), from.stride, to.as<T>(), to.stride, from.rows, from.cols / v, mask_of(&key, &sequences, from.cols),
                       pair.module_id, dropout_threshold(pair.dropout)};
    const dim3 grid(blocks_for(call.pieces, kThreads), static_cast<unsigned>(std::min<std::int64_t>(from.rows, 65535)));
    if (wide)
      keep_kernel<8, kAdds, T><<<grid, kThreads, 0, stream>>>(call);
    else
      keep_kernel<1, kAdds, T><<<grid, kThreads, 0, stream>>>(call);
  });
  check_launch("LoRA's dropout");
}

}  // namespace

void lora_drop(const Tensor& x, const LoraView& pair, const DropoutKey& key, const Sequences& sequences, const Tensor& to, cudaStream_t stream) {
  keep<false>(x, pair, key, sequences, to, stream);
}

void lora_add_kept(const Tensor& term, const LoraView& pair, const DropoutKey& key, const Sequences& sequences, const Tensor& to,
                   cudaStream_t stream) {
  keep<true>(term, pair, key, sequences, to, stream);
}

}  // namespace pipelora::cuda
