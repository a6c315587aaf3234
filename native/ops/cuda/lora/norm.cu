// RMSNorm with LoRA beside it: forward with the inner products of its output, backward with LoRA's term of its gradient.
#include "ops/cuda/base/fp8.cuh"
#include "ops/cuda/lora/term.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kTokens = 8;  // a block
constexpr int kGradWarps = 16;
constexpr int kMaxTiles = 6;  // q, k and v of up to sixteen ranks each; the backward pass takes sixteen in one

/// Blocks of norm_inner_kernel on a multiprocessor at a time: with more tiles a thread needs more registers.
constexpr int blocks_at_once(int tiles, int warps) { return tiles <= 4 ? 32 / warps : 24 / warps; }

/// Eight warps a block, or sixteen, whose turns of the chip (132 multiprocessors) take half as long.
constexpr int warps_of(unsigned blocks, int tiles) {
  const auto turns = [&](int warps) {
    const auto at_once = static_cast<unsigned>(132 * blocks_at_once(tiles, warps));
    return (blocks + at_once - 1) / at_once;
  };
  return 2 * turns(8) < turns(16) || (turns(8) == 1 && turns(16) == 2) ? 8 : 16;
}

template <int NT>
struct InnerTiles {
  LoraTile tile[NT];
  int count;  // of those that are used
};

template <class T>
struct NormInner {
  const T* x;
  std::int64_t x_stride, tokens, cols;
  const float* weight;
  float eps;
  T* y;  // with the tail behind its columns; null: not written
  std::int64_t y_stride;
  RowCodes to;
  float* inner;
  std::int64_t inner_stride;
  int inner_cols, tail;  // tail 0: none
  bool known;            // inner is read
  Mask mask;
};

// Lane (g, q) holds eight neighbouring columns of token g. LoRA's rows, each split into two 16-bit numbers, are the left side
// of the products, tokens the right one. Later readings of x are served by the first-level cache.
template <class T, int NT, int kWarps, bool kCodes>
__global__ void __launch_bounds__(kWarps * 32, blocks_at_once(NT, kWarps)) norm_inner_kernel(NormInner<T> call, InnerTiles<NT> set) {
  __shared__ float squares_of[kWarps][kTokens];
  __shared__ float sums[kWarps][kTokens][NT * 8];
  __shared__ std::uint32_t largest_of[kWarps][kTokens];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens, t = first + g;
  const bool has = t < call.tokens;
  const T* x = call.x + (has ? t : call.tokens - 1) * call.x_stride;
  constexpr int kStep = kWarps * 32;
  float squares = 0;
#pragma unroll 4
  for (std::int64_t c = warp * 32 + q * 8; c < call.cols; c += kStep) {
    const Floats<8> v = load<8>(x + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += v.v[i] * v.v[i];
  }
  squares += __shfl_xor_sync(0xFFFFFFFFu, squares, 1);
  squares += __shfl_xor_sync(0xFFFFFFFFu, squares, 2);
  if (q == 0) squares_of[warp][g] = squares;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += squares_of[w][g];
  const float r = rsqrtf(total / static_cast<float>(call.cols) + call.eps);

  float acc[NT][4] = {};
  const bool multiplies = !call.known;
  TokenPlace place{};
  if (call.mask.position != nullptr) place = token_place(call.mask, min(t, call.tokens - 1));
  const auto normed = [&](std::int64_t c) {
    Floats<8> v = load<8>(x + c);
    const Floats<8> w = load<8>(call.weight + c);
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] = v.v[i] * r * w.v[i];
    return packed8<T>(v);
  };
  Largest largest;
  // Two turns at once with codes and several tiles would not fit into the registers.
#pragma unroll (kCodes && NT > 1 ? 1 : 2)
  for (std::int64_t base = warp * 32; base < call.cols; base += kStep) {  // whole warps: products follow
    const std::int64_t c = base + q * 8;
    const bool in = c < call.cols;
    uint4 whole = make_uint4(0, 0, 0, 0);
    if (in) {
      whole = normed(c);
      if (has && (!kCodes || call.y != nullptr)) *reinterpret_cast<uint4*>(call.y + t * call.y_stride + c) = whole;
      if constexpr (kCodes) largest.take(whole);
    }
    if (!multiplies) continue;
    uint4 kept = whole;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const LoraTile& tile = set.tile[n];
      if (n >= set.count) break;
      Floats<8> a{};
      if (in && g < tile.rank) a = load<8>(tile.rows + g * tile.stride + c);
      if (!tile.same_mask) {
        kept = whole;
        if (tile.masked) kept = both(whole, keep_words(call.mask, place, c, tile.module, tile.threshold));
      }
      std::uint32_t high[4], low[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (tile.rounded)
          high[i] = pack2(T{}, a.v[2 * i], a.v[2 * i + 1]);
        else
          split2<T>(a.v[2 * i], a.v[2 * i + 1], high[i], low[i]);
      }
      mma(T{}, acc[n], high[0], low[0], high[1], low[1], kept.x, kept.y);
      mma(T{}, acc[n], high[2], low[2], high[3], low[3], kept.z, kept.w);
    }
  }
  if (multiplies) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      sums[warp][2 * q][n * 8 + g] = acc[n][0] + acc[n][2];
      sums[warp][2 * q + 1][n * 8 + g] = acc[n][1] + acc[n][3];
    }
  }
  if constexpr (kCodes) {
    std::uint32_t most = largest.bits();
    most = max(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
    most = max(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
    if (q == 0) largest_of[warp][g] = most;
  }
  __syncthreads();
  if constexpr (kCodes) {
    std::uint32_t most = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = max(most, largest_of[w][g]);
    const float scale = scale_of_absmax(magnitude_of<T>(most)), inverse = inverse_of(scale);
    if (has && warp == 0 && q == 0) call.to.scales[t] = scale;
#pragma unroll 1
    for (std::int64_t c = warp * 32 + q * 8; has && c < call.cols; c += kStep)
      *reinterpret_cast<uint2*>(call.to.codes + t * call.to.stride + c) = e4m3_of(widen8<T>(normed(c)), inverse);
  }
  for (int item = static_cast<int>(threadIdx.x); item < kTokens * NT * 8; item += kWarps * 32) {
    const std::int64_t token = first + item / (NT * 8);
    const int j = item % (NT * 8);
    if (token >= call.tokens || j / 8 >= set.count) continue;
    const LoraTile& tile = set.tile[j / 8];
    if (j % 8 >= tile.rank) continue;
    const int column = tile.inner_column + j % 8;
    float* at = call.inner + token * call.inner_stride + column;
    const float value = multiplies ? sum_of_warps(sums, item / (NT * 8), j) * tile.factor : *at;
    if (multiplies) *at = value;
    if (call.tail > 0) call.y[token * call.y_stride + call.cols + column] = narrow<T>(value * tile.tail_factor);
  }
  const int width = call.tail - call.inner_cols;
  for (int item = static_cast<int>(threadIdx.x); item < kTokens * width; item += kWarps * 32) {
    const std::int64_t token = first + item / width;
    if (token < call.tokens) call.y[token * call.y_stride + call.cols + call.inner_cols + item % width] = narrow<T>(0.0f);
  }
}

template <class T>
struct NormGrad {
  const T* x;
  std::int64_t x_stride, tokens, cols;
  const float* weight;
  const T *dy, *residual;
  std::int64_t dy_stride, residual_stride;
  T *dx, *y;
  std::int64_t dx_stride, y_stride;
  float eps;
  const float* inner_grad;
  std::int64_t inner_stride;
  Mask mask;
};

// dy += LoRA's term; then y = r w x with r = 1 / rms(x): dx = r w dy - x r³ mean(w dy x) + residual. A block takes eight tokens,
// lane (g, q) of a warp eight columns of tokens 2 q and 2 q + 1 of each 64. dy waits in shared memory for its row's sums.
template <class T, int NT, bool kSixteens>
__global__ void __launch_bounds__(kGradWarps * 32, NT <= (kSixteens ? 1 : 2) ? 2 : 1) norm_grad_kernel(NormGrad<T> call, TermTiles<NT> tiles) {
  extern __shared__ uint4 waiting[];  // [steps][2][threads]
  __shared__ float shared[kGradWarps][kTokens][2];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kTokens, t0 = first + 2 * q;
  constexpr int kStep = kGradWarps * 64;
  TermSide<kSixteens> side[NT];
#pragma unroll
  for (int i = 0; i < NT; ++i) side[i] = load_term_side<T, kSixteens>(tiles.tile[i], call.inner_grad, call.inner_stride, first, call.tokens);

  float squares[2] = {}, dots[2] = {};
  int slot = static_cast<int>(threadIdx.x);
  for (std::int64_t base = warp * 64; base < call.cols; base += kStep, slot += 2 * kGradWarps * 32) {
    const std::int64_t c = base + g * 8;
    const bool in = c < call.cols;
    uint4 dy[2], x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool has = in && t0 + i < call.tokens;
      dy[i] = has ? *reinterpret_cast<const uint4*>(call.dy + (t0 + i) * call.dy_stride + c) : make_uint4(0, 0, 0, 0);
      x[i] = has ? *reinterpret_cast<const uint4*>(call.x + (t0 + i) * call.x_stride + c) : make_uint4(0, 0, 0, 0);
    }
    TermKeep keep[NT];
    load_term_keeps(tiles, call.mask, t0, call.tokens, c, keep);
    std::uint32_t* const dy_words[2] = {reinterpret_cast<std::uint32_t*>(&dy[0]), reinterpret_cast<std::uint32_t*>(&dy[1])};
    const std::uint32_t* const x_words[2] = {reinterpret_cast<const std::uint32_t*>(&x[0]), reinterpret_cast<const std::uint32_t*>(&x[1])};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float d[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const float2 two = unpack2(T{}, dy_words[i][2 * half + k]);
          d[i][2 * k] = two.x;
          d[i][2 * k + 1] = two.y;
        }
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) add_term<T>(load_term_rows<T, kSixteens>(tiles.tile[n], c + 4 * half, call.cols), side[n], keep[n], half, d);
      float4 w = make_float4(0, 0, 0, 0);
      if (in) w = __ldg(reinterpret_cast<const float4*>(call.weight + c + 4 * half));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const std::uint32_t packed = pack2(T{}, d[i][2 * k], d[i][2 * k + 1]);
          dy_words[i][2 * half + k] = packed;
          const float2 rounded = unpack2(T{}, packed), v = unpack2(T{}, x_words[i][2 * half + k]);
          squares[i] += v.x * v.x + v.y * v.y;
          dots[i] += (k == 0 ? w.x : w.z) * rounded.x * v.x + (k == 0 ? w.y : w.w) * rounded.y * v.y;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) waiting[slot + i * kGradWarps * 32] = dy[i];
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int d = 4; d < 32; d *= 2) {
      squares[i] += __shfl_xor_sync(0xFFFFFFFFu, squares[i], d);
      dots[i] += __shfl_xor_sync(0xFFFFFFFFu, dots[i], d);
    }
    if (g == 0) {
      shared[warp][2 * q + i][0] = squares[i];
      shared[warp][2 * q + i][1] = dots[i];
    }
  }
  __syncthreads();
  const float n = static_cast<float>(call.cols);
  float r[2], pull[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float square = 0, dot = 0;
#pragma unroll
    for (int w = 0; w < kGradWarps; ++w) {
      square += shared[w][2 * q + i][0];
      dot += shared[w][2 * q + i][1];
    }
    r[i] = rsqrtf(square / n + call.eps);
    pull[i] = r[i] * r[i] * r[i] * dot / n;
  }
  slot = static_cast<int>(threadIdx.x);
#pragma unroll 2
  for (std::int64_t c = warp * 64 + g * 8; c < call.cols; c += kStep, slot += 2 * kGradWarps * 32) {
    const Floats<8> w = load<8>(call.weight + c);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t t = t0 + i;
      if (t >= call.tokens) continue;
      const Floats<8> x = load<8>(call.x + t * call.x_stride + c);
      const uint4 bits = waiting[slot + i * kGradWarps * 32];
      const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
      Floats<8> out{}, again;
      if (call.residual != nullptr) out = load<8>(call.residual + t * call.residual_stride + c);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 d = unpack2(T{}, words[k]);
        out.v[2 * k] += r[i] * w.v[2 * k] * d.x - x.v[2 * k] * pull[i];
        out.v[2 * k + 1] += r[i] * w.v[2 * k + 1] * d.y - x.v[2 * k + 1] * pull[i];
        again.v[2 * k] = x.v[2 * k] * r[i] * w.v[2 * k];
        again.v[2 * k + 1] = x.v[2 * k + 1] * r[i] * w.v[2 * k + 1];
      }
      store<8>(call.dx + t * call.dx_stride + c, out);
      if (call.y != nullptr) store<8>(call.y + t * call.y_stride + c, again);
    }
  }
}

}  // namespace

void rmsnorm_lora_inner(const Tensor& x, const Tensor& weight, float eps, const LoraSet& lora, bool known, const Sequences* sequences,
                        const Tensor& inner, const Tensor& y, std::int64_t tail, const RowCodes& to, cudaStream_t stream) {
  const std::vector<LoraTile> tiles = forward_tiles(lora, x.cols);
  with_float(x.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      NormInner<T> call{};
      call.x = x.as<T>();
      call.x_stride = x.stride;
      call.tokens = x.rows;
      call.cols = x.cols;
      call.weight = weight.as<float>();
      call.eps = eps;
      call.y = y.as<T>();
      call.y_stride = y.stride;
      call.to = to;
      call.inner = inner.as<float>();
      call.inner_stride = inner.stride;
      call.inner_cols = static_cast<int>(tail > 0 ? lora.inner_cols : 0);
      call.tail = static_cast<int>(tail);
      call.known = known;
      call.mask = mask_of(lora.dropout, sequences, x.cols);
      const auto launch_as = [&]<int NT, bool kCodes>() {
        InnerTiles<NT> set{};
        std::copy(tiles.begin(), tiles.end(), set.tile);
        set.count = static_cast<int>(tiles.size());
        const unsigned blocks = blocks_for(x.rows, kTokens);
        if (warps_of(blocks, NT) == 8)
          norm_inner_kernel<T, NT, 8, kCodes><<<blocks, 8 * 32, 0, stream>>>(call, set);
        else
          norm_inner_kernel<T, NT, 16, kCodes><<<blocks, 16 * 32, 0, stream>>>(call, set);
      };
      const auto launch = [&]<int NT>() {
        if (to.codes != nullptr)
          launch_as.template operator()<NT, true>();
        else
          launch_as.template operator()<NT, false>();
      };
      if (tiles.size() == 1)
        launch.template operator()<1>();
      else if (tiles.size() == 2)
        launch.template operator()<2>();
      else if (tiles.size() <= 4)
        launch.template operator()<4>();
      else
        launch.template operator()<kMaxTiles>();
    }
  });
  check_launch("rmsnorm_lora_inner");
}

void lora_add_input_grad_norm(const LoraSet& lora, const Tensor& inner_grad, const Sequences* sequences, const RmsNormBackward& norm,
                              cudaStream_t stream) {
  const bool sixteens = by_sixteens(lora);
  const std::vector<TermTile> tiles = term_tiles(lora, norm.dy.cols, sixteens);
  const std::int64_t steps = (norm.dy.cols + kGradWarps * 64 - 1) / (kGradWarps * 64);
  const auto bytes = static_cast<std::size_t>(steps * 2 * kGradWarps * 32) * sizeof(uint4);
  with_float(norm.x.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      NormGrad<T> call{};
      call.x = norm.x.as<T>();
      call.x_stride = norm.x.stride;
      call.tokens = norm.x.rows;
      call.cols = norm.x.cols;
      call.weight = norm.weight.as<float>();
      call.dy = norm.dy.as<T>();
      call.dy_stride = norm.dy.stride;
      call.residual = norm.residual.as<T>();
      call.residual_stride = norm.residual.stride;
      call.dx = norm.dx.as<T>();
      call.dx_stride = norm.dx.stride;
      call.y = norm.y.as<T>();
      call.y_stride = norm.y.stride;
      call.eps = norm.rule.eps;
      call.inner_grad = inner_grad.as<float>();
      call.inner_stride = inner_grad.stride;
      call.mask = mask_of(lora.dropout, sequences, norm.x.cols);
      const auto launch = [&]<int NT>() {
        TermTiles<NT> set{};  // tiles without ranks add nothing
        std::copy(tiles.begin(), tiles.end(), set.tile);
        const auto kernel = sixteens ? norm_grad_kernel<T, NT, true> : norm_grad_kernel<T, NT, false>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of a norm");
        kernel<<<blocks_for(norm.x.rows, kTokens), kGradWarps * 32, bytes, stream>>>(call, set);
      };
      switch (tiles.size()) {
        case 1: return launch.template operator()<1>();
        case 2: return launch.template operator()<2>();
        case 3: return launch.template operator()<3>();
        case 4: return launch.template operator()<4>();
        default: return launch.template operator()<kMaxTiles>();
      }
    }
  });
  check_launch("lora_add_input_grad_norm");
}

}  // namespace pipelora::cuda
