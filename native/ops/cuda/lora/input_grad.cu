// The gradient that LoRA adds to a product's input.
#include "ops/cuda/lora/term.cuh"

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
        keep = keep_bits(mask, token_place(mask, first + t), c, tile.module, tile.threshold);
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

// A warp takes 64 columns and twice eight tokens: many warps hide what reading takes.
constexpr int kGradSteps = 2;

template <class T, int NT, bool kSixteens>
__global__ void __launch_bounds__(256, 3) add_input_grad_tiles_kernel(T* dx, std::int64_t dx_stride, std::int64_t tokens, std::int64_t cols,
                                                                      const float* inner_grad, std::int64_t inner_stride,
                                                                      TermTiles<NT> tiles, Mask mask) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t base = (static_cast<std::int64_t>(blockIdx.x) * 8 + warp) * 64, c = base + g * 8;
  if (base >= cols) return;
  const bool in = c < cols;
  TermRows rows[NT][2];
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    rows[i][0] = load_term_rows<T, kSixteens>(tiles.tile[i], c, cols);
    rows[i][1] = load_term_rows<T, kSixteens>(tiles.tile[i], c + 4, cols);
  }

  struct Piece {
    uint4 dx[2];
    TermSide<kSixteens> side[NT];
  };
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kGradSteps * 8;
  const auto read = [&](std::int64_t t) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t at = t + 2 * q + i;
      piece.dx[i] = in && at < tokens ? *reinterpret_cast<const uint4*>(dx + at * dx_stride + c) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < NT; ++i) piece.side[i] = load_term_side<T, kSixteens>(tiles.tile[i], inner_grad, inner_stride, t, tokens);
    return piece;
  };
  Piece next = read(first);
#pragma unroll
  for (int step = 0; step < kGradSteps; ++step) {
    const Piece piece = next;
    if (step + 1 < kGradSteps) next = read(first + (step + 1) * 8);
    const std::int64_t t0 = first + step * 8 + 2 * q;
    Floats<8> out[2] = {widen8<T>(piece.dx[0]), widen8<T>(piece.dx[1])};
    TermKeep keep[NT];
    load_term_keeps(tiles, mask, t0, tokens, c, keep);
#pragma unroll
    for (int i = 0; i < NT; ++i) add_terms<T>(rows[i], piece.side[i], keep[i], out);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (in && t0 + i < tokens) store<8>(dx + (t0 + i) * dx_stride + c, out[i]);
  }
}

}  // namespace

void lora_add_input_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences, bool tensor_cores,
                         cudaStream_t stream) {
  const Mask mask = mask_of(lora.dropout, sequences, dx.cols);
  const bool sixteens = tensor_cores && by_sixteens(lora);
  const std::vector<TermTile> tiles = term_tiles(lora, dx.cols, sixteens);
  with_float(dx.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      if (tensor_cores) {
        const auto launch = [&]<int NT>(std::size_t first) {
          TermTiles<NT> set;
          std::copy_n(tiles.begin() + static_cast<std::ptrdiff_t>(first), NT, set.tile);
          set.tile[0].same_mask = false;
          const dim3 grid(blocks_for(dx.cols, 512), blocks_for(dx.rows, 8 * kGradSteps));
          const auto kernel = sixteens ? add_input_grad_tiles_kernel<T, NT, true> : add_input_grad_tiles_kernel<T, NT, false>;
          kernel<<<grid, 256, 0, stream>>>(dx.as<T>(), dx.stride, dx.rows, dx.cols, inner_grad.as<float>(), inner_grad.stride, set, mask);
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
