// A few tokens' input of a linear (decoding), without dropout: as it is given, behind a norm or behind SwiGLU, and LoRA's inner
// products of it. A block a rank and token; each makes the whole input, the first of a token writes it.
#include <algorithm>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/lora/lora.h"
#include "ops/cuda/pointwise/activation.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kMaxTiles = 8;
constexpr int kThreads = 512;
constexpr int kHeld = 3;  // pieces of eight columns a thread whose row of A is read ahead

// Where x comes from: from itself, from a norm, from a gate with activation A and from up.
struct Given {
  static constexpr bool kNormed = false, kGated = false;
};
struct Normed {
  static constexpr bool kNormed = true, kGated = false;
};
template <class A>
struct Gated {
  static constexpr bool kNormed = false, kGated = true;
  using Activation = A;
};

template <class T>
struct Input {
  const T* from;  // or gate
  std::int64_t from_stride;
  const T* up;
  std::int64_t up_stride;
  const float* norm;
  float eps;
  T* x;
  std::int64_t x_stride;
  float* inner;
  std::int64_t inner_stride;
  LoraTile tile[kMaxTiles];
};

template <class T, class Source>
__global__ void __maxnreg__(48)  // room beside a product of few tokens
    input_of_few_kernel(const __grid_constant__ Input<T> call) {
  __shared__ float shared[32];
  let_next_start();
  const LoraTile& tile = call.tile[blockIdx.x / 8];
  const int r = static_cast<int>(blockIdx.x % 8), pieces = static_cast<int>(tile.columns / 8);
  const std::int64_t t = blockIdx.y;
  const bool has = r < tile.rank;
  const float* a = tile.rows + (has ? r : 0) * tile.stride;
  Floats<8> held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
    if (has && piece < pieces) held[i] = load<8>(a + piece * 8);
  }
  wait_for_previous();
  if (!has) return;

  const T* from = call.from + t * call.from_stride + tile.first_column;
  float r_rms = 1;
  if constexpr (Source::kNormed) {
    float squares = 0;
    for (int piece = static_cast<int>(threadIdx.x); piece < pieces; piece += kThreads) {
      const Floats<8> v = load<8>(from + piece * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += v.v[i] * v.v[i];
    }
    r_rms = rsqrtf(block_sum(squares, shared) / static_cast<float>(tile.columns) + call.eps);
  }
  float total = 0;
  const auto add = [&](int piece, const Floats<8>& row) {
    Floats<8> v = load<8>(from + piece * 8);
    if constexpr (Source::kNormed) {
      const Floats<8> w = load<8>(call.norm + piece * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = widen(narrow<T>(v.v[i] * r_rms * w.v[i]));
    }
    if constexpr (Source::kGated) {
      const Floats<8> up = load<8>(call.up + t * call.up_stride + piece * 8);
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = widen(narrow<T>(Source::Activation::value(v.v[i]) * up.v[i]));
    }
    if ((Source::kNormed || Source::kGated) && blockIdx.x == 0) store<8>(call.x + t * call.x_stride + piece * 8, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) total += v.v[i] * row.v[i];
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
    if (piece < pieces) add(piece, held[i]);
  }
  for (int piece = static_cast<int>(threadIdx.x) + kHeld * kThreads; piece < pieces; piece += kThreads) add(piece, load<8>(a + piece * 8));
  total = block_sum(total, shared);
  if (threadIdx.x == 0) call.inner[t * call.inner_stride + tile.inner_column + r] = total * tile.factor;
}

}  // namespace

void lora_inner_few(const FewInput& input, const std::vector<LoraTile>& tiles, const Tensor& inner, cudaStream_t stream) {
  const Tensor& x = input.x;
  const Tensor from = input.gate ? input.gate : input.before_norm ? input.before_norm : x;
  with_float(x.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      Input<T> call{};
      call.from = from.as<T>();
      call.from_stride = from.stride;
      call.up = input.up.as<T>();
      call.up_stride = input.up.stride;
      call.norm = input.norm.as<float>();
      call.eps = input.eps;
      call.x = x.as<T>();
      call.x_stride = x.stride;
      call.inner = inner.as<float>();
      call.inner_stride = inner.stride;
      std::copy(tiles.begin(), tiles.end(), call.tile);
      const auto launch = [&](auto* kernel) {
        launch_dependent(kernel, dim3(static_cast<unsigned>(tiles.size() * 8), static_cast<unsigned>(x.rows)), kThreads, 0, stream, call);
      };
      if (input.gate)
        with_activation(input.activation, [&]<class A>(A) { launch(input_of_few_kernel<T, Gated<A>>); });
      else
        launch(input.before_norm ? input_of_few_kernel<T, Normed> : input_of_few_kernel<T, Given>);
    }
  });
}

}  // namespace pipelora::cuda
