// The gradient that LoRA adds to a product's input, alone or with SwiGLU's backward behind it.
#include "ops/cuda/lora_term.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kGradTokens = 16;

// V columns a thread, kGradTokens tokens a block: any dtype, any alignment with V = 1.
template <int V, class T>
__global__ void __launch_bounds__(256) add_input_grad_kernel(T* dx, std::int64_t dx_stride, std::int64_t tokens,
                                                             std::int64_t cols, const float* inner_grad,
                                                             std::int64_t inner_stride, TermTile tile, Mask mask) {
  __shared__ __align__(16) float left[kGradTokens][8];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kGradTokens;
  const int count = static_cast<int>(min(static_cast<std::int64_t>(kGradTokens), tokens - first));
  for (int i = static_cast<int>(threadIdx.x); i < kGradTokens * 8; i += 256) {
    const int t = i / 8, r = i % 8;
    left[t][r] = t < count && r < tile.rank ? inner_grad[(first + t) * inner_stride + tile.inner_column + r] * tile.factor : 0.0f;
  }
  __syncthreads();
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x) * V;
  if (c >= cols) return;
  Floats<V> a[8];
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    if (r < tile.rank) {
      a[r] = load<V>(tile.rows + r * tile.stride + c);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) a[r].v[i] = 0;
    }
  }
#pragma unroll 2
  for (int t = 0; t < count; ++t) {
    T* at = dx + (first + t) * dx_stride + c;
    Floats<V> out = load<V>(at);
    std::uint32_t keep = 0xFFu;
    if (tile.masked) {
      if constexpr (V == 8)
        keep = keep_bits(mask, first + t, c, tile.module, tile.threshold);
      else
        keep = keep_one(mask, first + t, c, tile.module, tile.threshold) ? 1u : 0u;
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float sum = 0;
#pragma unroll
      for (int r = 0; r < 8; ++r) sum += left[t][r] * a[r].v[i];
      if (keep >> i & 1u) out.v[i] += sum;
    }
    store<V>(at, out);
  }
}

template <class T>
struct SwiGluGrad {
  const T *gate, *up;
  T *dgate, *dup;
  std::int64_t gate_stride, up_stride, dgate_stride, dup_stride;
};

template <class T>
__device__ inline Floats<8> widen8(const uint4& bits) {
  const std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Floats<8> out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack2(T{}, words[i]);
    out.v[2 * i] = pair.x;
    out.v[2 * i + 1] = pair.y;
  }
  return out;
}

/// dact becomes act; dgate and dup of eight columns are written.
template <class T>
__device__ inline void swiglu_grad(const SwiGluGrad<T>& s, std::int64_t t, std::int64_t c, const uint4& gate, const uint4& up,
                                   Floats<8>& dact) {
  const Floats<8> g = widen8<T>(gate), u = widen8<T>(up);
  Floats<8> dg, du;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float sigma = sigmoid(g.v[i]), silu = g.v[i] * sigma, d = dact.v[i];
    du.v[i] = d * silu;
    dg.v[i] = d * u.v[i] * sigma * (1.0f + g.v[i] * (1.0f - sigma));
    dact.v[i] = silu * u.v[i];
  }
  store<8>(s.dgate + t * s.dgate_stride + c, dg);
  store<8>(s.dup + t * s.dup_stride + c, du);
}

// A warp takes 64 columns and kGradSteps times eight tokens. With SwiGLU it reads the next eight while it works on these,
// alone many warps hide what reading takes.
template <bool kSwiGlu>
constexpr int kGradSteps = kSwiGlu ? 4 : 2;

template <class T, int NT, bool kSwiGlu>
__global__ void __launch_bounds__(256, kSwiGlu ? 1 : 3) add_input_grad_tiles_kernel(T* dx, std::int64_t dx_stride, std::int64_t tokens, std::int64_t cols,
                                                                   const float* inner_grad, std::int64_t inner_stride,
                                                                   TermTiles<NT> tiles, Mask mask, SwiGluGrad<T> swiglu) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * 8 + warp) * 64, c = base + g * 8;
  if (base >= cols) return;
  const bool in = c < cols;
  TermRows rows[NT][2];
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    rows[i][0] = load_term_rows<T>(tiles.tile[i], c, cols);
    rows[i][1] = load_term_rows<T>(tiles.tile[i], c + 4, cols);
  }

  struct Piece {
    uint4 dx[2], gate[2], up[2];
    std::uint32_t side[NT];
  };
  constexpr int kSteps = kGradSteps<kSwiGlu>;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kSteps * 8;
  const auto read = [&](std::int64_t t) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t at = t + 2 * q + i;
      const bool has = in && at < tokens;
      const uint4 none = make_uint4(0, 0, 0, 0);
      piece.dx[i] = has ? *reinterpret_cast<const uint4*>(dx + at * dx_stride + c) : none;
      if constexpr (kSwiGlu) {
        piece.gate[i] = has ? *reinterpret_cast<const uint4*>(swiglu.gate + at * swiglu.gate_stride + c) : none;
        piece.up[i] = has ? *reinterpret_cast<const uint4*>(swiglu.up + at * swiglu.up_stride + c) : none;
      }
    }
#pragma unroll
    for (int i = 0; i < NT; ++i) piece.side[i] = load_term_side<T>(tiles.tile[i], inner_grad, inner_stride, t, tokens);
    return piece;
  };
  Piece next = read(first);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Piece piece = next;
    if (step + 1 < kSteps) next = read(first + (step + 1) * 8);
    const std::int64_t t0 = first + step * 8 + 2 * q;
    Floats<8> out0 = widen8<T>(piece.dx[0]), out1 = widen8<T>(piece.dx[1]);
    TermKeep keep[NT];
#pragma unroll
    for (int i = 0; i < NT; ++i) keep[i] = load_term_keep(tiles.tile[i], mask, t0, tokens, c, in);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float out[2][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        out[0][k] = out0.v[4 * half + k];
        out[1][k] = out1.v[4 * half + k];
      }
#pragma unroll
      for (int i = 0; i < NT; ++i) add_term<T>(rows[i][half], piece.side[i], keep[i], half, out);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        out0.v[4 * half + k] = out[0][k];
        out1.v[4 * half + k] = out[1][k];
      }
    }
    const bool has0 = in && t0 < tokens, has1 = in && t0 + 1 < tokens;
    if constexpr (kSwiGlu) {
      if (has0) swiglu_grad(swiglu, t0, c, piece.gate[0], piece.up[0], out0);
      if (has1) swiglu_grad(swiglu, t0 + 1, c, piece.gate[1], piece.up[1], out1);
    }
    if (has0) store<8>(dx + t0 * dx_stride + c, out0);
    if (has1) store<8>(dx + (t0 + 1) * dx_stride + c, out1);
  }
}

template <bool kSwiGlu>
dim3 grid_of_tiles(const Tensor& dx) {
  return dim3(blocks_for(dx.cols, 512), blocks_for(dx.rows, 8 * kGradSteps<kSwiGlu>));
}

}  // namespace

bool lora_add_input_grad_swiglu(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences,
                                const Tensor& gate, const Tensor& up, const Tensor& dgate, const Tensor& dup, cudaStream_t stream) {
  const std::vector<TermTile> tiles = term_tiles(lora, dx.cols);
  if (dx.rows == 0 || tiles.size() > 2 || !suits_terms(tiles, {dx, gate, up, dgate, dup})) return false;
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  with_float(dx.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      const SwiGluGrad<T> swiglu{gate.as<T>(), up.as<T>(), dgate.as<T>(), dup.as<T>(), gate.stride, up.stride, dgate.stride, dup.stride};
      const auto launch = [&]<int NT>() {
        TermTiles<NT> set;
        std::copy_n(tiles.begin(), NT, set.tile);
        add_input_grad_tiles_kernel<T, NT, true><<<grid_of_tiles<true>(dx), 256, 0, stream>>>(
            dx.as<T>(), dx.stride, dx.rows, dx.cols, inner_grad.as<float>(), inner_grad.stride, set, mask, swiglu);
      };
      if (tiles.size() == 1)
        launch.template operator()<1>();
      else
        launch.template operator()<2>();
    }
  });
  check_launch("lora_add_input_grad_swiglu");
  return true;
}

void lora_add_input_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences,
                         cudaStream_t stream) {
  if (dx.rows == 0) return;
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  const std::vector<TermTile> tiles = term_tiles(lora, dx.cols);
  with_float(dx.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      if (suits_terms(tiles, {dx})) {
        const auto launch = [&]<int NT>(std::size_t first) {
          TermTiles<NT> set;
          std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(first), NT, set.tile);
          add_input_grad_tiles_kernel<T, NT, false><<<grid_of_tiles<false>(dx), 256, 0, stream>>>(
              dx.as<T>(), dx.stride, dx.rows, dx.cols, inner_grad.as<float>(), inner_grad.stride, set, mask, SwiGluGrad<T>{});
        };
        std::size_t first = 0;
        for (; first + 3 <= tiles.size(); first += 3) launch.template operator()<3>(first);
        if (tiles.size() - first == 2) launch.template operator()<2>(first);
        if (tiles.size() - first == 1) launch.template operator()<1>(first);
        return;
      }
    }
    for (const TermTile& tile : tiles) {
      const bool wide = eights(dx) && tile.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(tile.rows) % 16 == 0;
      const auto launch = [&]<int V>() {
        const dim3 grid(blocks_for(dx.cols, 256 * V), blocks_for(dx.rows, kGradTokens));
        add_input_grad_kernel<V, T><<<grid, 256, 0, stream>>>(dx.as<T>(), dx.stride, dx.rows, dx.cols,
                                                              inner_grad.as<float>(), inner_grad.stride, tile, mask);
      };
      if (wide)
        launch.template operator()<8>();
      else
        launch.template operator()<1>();
    }
  });
  check_launch("lora_add_input_grad");
}

}  // namespace pipelora::cuda
