// The backward pass through a product behind SwiGLU, once the product itself is done: LoRA's term of dact, SwiGLU's backward, and the
// gradient of LoRA's A, whose input act is in registers on the way: it is never written.
//
// A warp takes 64 columns and walks over tokens, eight at a time: lane (g, q) has columns 8 g … 8 g + 7 of tokens 2 q and
// 2 q + 1. They come and go through the warp's own stages of shared memory, so that memory sees whole rows of 128 bytes.
#include "ops/cuda/lora/outer.cuh"
#include "ops/cuda/lora/term.cuh"
#include "ops/cuda/pointwise/activation.cuh"

namespace pipelora::cuda {

namespace {

constexpr int kStepTokens = 8;
constexpr int kStages = 3;
constexpr int kTileBytes = kStepTokens * kOuterWarpColumns * 2;
constexpr int kStageBytes = 3 * kTileBytes;  // dact, gate and up
constexpr std::size_t kSharedBytes = std::size_t{kOuterWarps} * kStages * kStageBytes;

template <class T>
struct SwiGluGrad {
  const T *dact, *gate, *up;
  T *dgate, *dup;
  std::int64_t dact_stride, gate_stride, up_stride, dgate_stride, dup_stride;
  std::int64_t tokens, cols, tokens_per_split;
  const float* inner_grad;
  std::int64_t inner_stride;
  bool adds_term;  // false: dact has it already
  float* partial;  // of A's gradient
};

template <class T>
__device__ inline uint4 narrow8(const Floats<8>& f) {
  return make_uint4(pack2(T{}, f.v[0], f.v[1]), pack2(T{}, f.v[2], f.v[3]), pack2(T{}, f.v[4], f.v[5]), pack2(T{}, f.v[6], f.v[7]));
}

/// Eight columns: gate and up become their gradients; act is what they gave.
template <class A, class T>
__device__ inline uint4 swiglu_grad(const Floats<8>& dact, uint4& gate, uint4& up) {
  const Floats<8> g = widen8<T>(gate), u = widen8<T>(up);
  Floats<8> dg, du, act;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float slope;
    const float value = A::with_slope(g.v[i], slope), d = dact.v[i];
    du.v[i] = d * value;
    dg.v[i] = d * u.v[i] * slope;
    act.v[i] = value * u.v[i];
  }
  gate = narrow8<T>(dg);
  up = narrow8<T>(du);
  return narrow8<T>(act);
}

/// Bit j of the two tokens' bits, as what keeps column_of's number j.
__device__ inline std::uint32_t keep_column(std::uint32_t both_tokens, int j) {
  std::uint32_t keep;
  asm("prmt.b32 %0, %1, 0, 0xAA88;\n" : "=r"(keep) : "r"(both_tokens << (7 - j)));  // the signs of bytes 0 and 2
  return keep;
}

/// NT: of eight ranks each.
template <class A, class T, int NT>
__global__ void __launch_bounds__(kOuterThreads, 4) swiglu_grad_kernel(SwiGluGrad<T> call, TermTile tile, Mask mask) {
  extern __shared__ __align__(128) char shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const std::int64_t strip = static_cast<std::int64_t>(blockIdx.x) * kOuterColumns + warp * kOuterWarpColumns, c = strip + g * 8;
  const std::int64_t begin = blockIdx.y * call.tokens_per_split, end = min(call.tokens, begin + call.tokens_per_split);
  const std::uint32_t stages_at = shared_address(shared + warp * kStages * kStageBytes);

  const std::int64_t copied_column = strip + lane % 8 * 8;
  const auto fetch = [&](std::int64_t t, int stage) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 8 + 4 * i;
      const std::int64_t at = t + row;
      const bool valid = copied_column < call.cols && at < end;
      const std::uint32_t to = stages_at + stage * kStageBytes + piece_at(row, lane % 8);
      copy_async(to, valid ? call.dact + at * call.dact_stride + copied_column : call.dact, valid);
      copy_async(to + kTileBytes, valid ? call.gate + at * call.gate_stride + copied_column : call.gate, valid);
      copy_async(to + 2 * kTileBytes, valid ? call.up + at * call.up_stride + copied_column : call.up, valid);
    }
    commit_copies();
  };
  for (int i = 0; i < kStages - 1; ++i) fetch(begin + i * kStepTokens, i);

  // Of the next eight tokens: the term's right side, and this lane's two tokens of rank g.
  constexpr bool kSixteens = NT == 2;
  TermSide<kSixteens> side;
  float left[2][NT];
  const auto read_inner = [&](std::int64_t t) {
    side = call.adds_term ? load_term_side<T, kSixteens>(tile, call.inner_grad, call.inner_stride, t, end) : TermSide<kSixteens>();
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t at = t + 2 * q + i;
        const bool has = g < (n == 0 ? tile.rank : tile.second_rank) && at < end;
        left[i][n] = has ? __ldg(call.inner_grad + at * call.inner_stride + tile.inner_column + n * 8 + g) : 0.0f;
      }
    }
  };
  read_inner(begin);
  const TermRows rows[2] = {load_term_rows<T, kSixteens>(tile, c, call.cols), load_term_rows<T, kSixteens>(tile, c + 4, call.cols)};

  float acc[8][4] = {};
  int stage = 0;
  for (std::int64_t t = begin; t < end; t += kStepTokens, stage = stage + 1 == kStages ? 0 : stage + 1) {
    const TermKeep keep = load_term_keep(tile, mask, t + 2 * q, end, c);
    std::uint32_t ranks[2];
    left_side<T>(left[0], left[1], ranks);
    const TermSide<kSixteens> right = side;
    read_inner(t + kStepTokens);
    wait_copies<kStages - 2>();
    __syncwarp();  // and all have stored from the stage that is filled now
    fetch(t + (kStages - 1) * kStepTokens, stage == 0 ? kStages - 1 : stage - 1);
    const std::uint32_t stage_at = stages_at + stage * kStageBytes, own[2] = {stage_at + piece_at(2 * q, g), stage_at + piece_at(2 * q + 1, g)};
    Floats<8> dact[2] = {widen8<T>(load_shared(own[0])), widen8<T>(load_shared(own[1]))};
    add_terms<T>(rows, right, keep, dact);
    uint4 act[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 gate = load_shared(own[i] + kTileBytes), up = load_shared(own[i] + 2 * kTileBytes);
      act[i] = swiglu_grad<A, T>(dact[i], gate, up);
      store_shared(own[i] + kTileBytes, gate);
      store_shared(own[i] + 2 * kTileBytes, up);
    }
    const std::uint32_t keeps = keep.bits[0] | keep.bits[1] << 16;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      mma(T{}, acc[j], ranks[0], ranks[1], column_of(act[0], act[1], j) & keep_column(keeps, j));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = lane / 8 + 4 * i;
      if (copied_column >= call.cols || t + row >= end) continue;
      const std::uint32_t from = stage_at + piece_at(row, lane % 8);
      *reinterpret_cast<uint4*>(call.dgate + (t + row) * call.dgate_stride + copied_column) = load_shared(from + kTileBytes);
      *reinterpret_cast<uint4*>(call.dup + (t + row) * call.dup_stride + copied_column) = load_shared(from + 2 * kTileBytes);
    }
  }
  wait_copies<0>();

  float* out = call.partial + (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * 8 * NT * kOuterColumns + warp * kOuterWarpColumns;
  store_outer<NT>(acc, out + g * kOuterColumns);
}

}  // namespace

void lora_swiglu_grad(const LoraAGrad& call, bool adds_term, const Tensor& gate, const Tensor& up, const Tensor& dgate, const Tensor& dup,
                      Activation activation, void* scratch, cudaStream_t stream) {
  const TermTile tile = term_tiles(call.lora, call.x.cols, true).front();
  const std::vector<Outer> outers = outers_of(call);
  const OuterLaunch launch = outer_launches(outers).front();
  const Tensor& dact = call.x;
  with_float(dact.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      const SwiGluGrad<T> grad{dact.as<T>(),  gate.as<T>(), up.as<T>(),   dgate.as<T>(), dup.as<T>(), dact.stride, gate.stride,
                               up.stride,     dgate.stride, dup.stride,   dact.rows,     dact.cols,   launch.cut.tokens_per_split,
                               call.inner_grad.as<float>(), call.inner_grad.stride, adds_term, static_cast<float*>(scratch)};
      const auto run = [&]<int NT>() {
        const dim3 grid(static_cast<unsigned>(launch.jobs.blocks), static_cast<unsigned>(launch.cut.splits));
        with_activation(activation, [&]<class A>(A) {
          const auto kernel = swiglu_grad_kernel<A, T, NT>;
          allow_shared(kernel, kSharedBytes);
          kernel<<<grid, kOuterThreads, kSharedBytes, stream>>>(grad, tile, mask_of(call.lora.dropout, call.sequences, dact.cols));
        });
      };
      if (tile.second_rank == 0)
        run.template operator()<1>();
      else
        run.template operator()<2>();
    }
  });
  check_launch("SwiGLU's backward with LoRA");
  add_outer_parts(launch, dact.rows, ranks_of(outers), {static_cast<float*>(scratch), nullptr}, stream);
}

}  // namespace pipelora::cuda
