// The product of a few tokens (decoding) with a weight in 4 bits that is not expanded first: bound by the bytes of the codes.
#include "ops/cuda/mma.cuh"
#include "ops/cuda/quant_device.cuh"

namespace pipelora::cuda {

namespace {

template <class T>
struct FewCall {
  const T* x;
  std::int64_t x_stride;
  const T* bias;
  const T* residual;
  std::int64_t residual_stride;
  const float* inner;
  std::int64_t inner_stride;
  const float* bt;
  std::int64_t bt_stride;
  int rank;
  float scale;
  T* y;
  std::int64_t y_stride;
  int tokens;
};

template <class T>
__device__ inline void finish(const FewCall<T>& call, int t, std::int64_t row, float total) {
  if (call.bias != nullptr) total += widen(call.bias[row]);
  if (call.residual != nullptr) total += widen(call.residual[t * call.residual_stride + row]);
  float term = 0;
  for (int k = 0; k < call.rank; ++k) term += call.inner[t * call.inner_stride + k] * call.bt[k * call.bt_stride + row];
  call.y[t * call.y_stride + row] = narrow<T>(total + call.scale * term);
}

// 16-bit inputs. A block takes several groups of 16 rows. Codes come through stages of shared memory, 1024 columns of a group
// each, whole lines at a time; a warp takes 128 columns of a stage. Lane (g, q) holds 16 neighbouring codes of each 64 columns,
// which share a scale, of rows g and g + 8: the left side of products whose right side is x, a token a column. A byte is looked
// up as its two codes, each the sum of two 16-bit numbers, in a table with a copy for each lane of a half warp; sums are scaled
// 64 columns at a time, so no value of the weight is rounded.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;
constexpr int kBlocksPerUnit = 2;
constexpr int kStages = 4;
constexpr int kStageColumns = 1024;
constexpr int kStageRow = kStageColumns / 2 + 32;  // bytes: a gap keeps four rows in different banks
constexpr int kStageBytes = kRows * kStageRow;
constexpr int kCopies = 16;
constexpr int kEntryBytes = kCopies * 8;
constexpr int kTableBytes = 256 * kEntryBytes;

/// High and low parts of the two codes of byte `b` of a word. `table`: this lane's copy.
__device__ inline uint2 look_up(std::uint32_t table, std::uint32_t word, int b) {
  const std::uint32_t at = (b == 0 ? word << 7 : word >> (8 * b - 7)) & (255u * kEntryBytes);
  uint2 codes;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(codes.x), "=r"(codes.y) : "r"(table + at));
  return codes;
}

/// Bytes of dynamic shared memory: table, stages, scales of two groups, x.
std::size_t few_tokens_bytes(std::int64_t tokens, std::int64_t in) {
  return static_cast<std::size_t>(kTableBytes + kStages * kStageBytes + 2 * kRows * (in / 64) * 4 + tokens * in * 2);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) few_tokens_kernel(Packed4 w, Codes codes, const float* map, FewCall<T> call, int groups_per_block) {
  extern __shared__ __align__(16) char table[];
  __shared__ float all_sums[kWarps][2][kRows][kFewTokens];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int chunks = static_cast<int>(w.in / 64), stages = static_cast<int>((w.in + kStageColumns - 1) / kStageColumns);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * groups_per_block * kRows;
  const int groups = static_cast<int>(min(static_cast<std::int64_t>(groups_per_block), (w.rows - first + kRows - 1) / kRows));
  char* staged = table + kTableBytes;
  float* scales = reinterpret_cast<float*>(staged + kStages * kStageBytes);  // [2][kRows][chunks]
  T* x_shared = reinterpret_cast<T*>(scales + 2 * kRows * chunks);           // [tokens][in]
  const auto row_of = [&](int group, int r) { return min(first + group * kRows + r, w.rows - 1); };

  int next_group = 0, next_stage = 0, next_slot = 0;
  const auto fetch = [&] {
    constexpr int kPieces = kStageColumns / 32;  // of 16 bytes, a row
#pragma unroll
    for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
      const int item = thread + i * kThreads, r = item / kPieces, piece = item % kPieces;
      const std::int64_t column = next_stage * kStageColumns + piece * 32;
      const bool valid = next_group < groups && column < w.in;
      copy_async(shared_address(staged + next_slot * kStageBytes + r * kStageRow + piece * 16),
                 valid ? w.packed + (row_of(next_group, r) * w.in + column) / 2 : w.packed, valid);
    }
    commit_copies();
    next_slot = next_slot + 1 == kStages ? 0 : next_slot + 1;
    if (++next_stage == stages) {
      next_stage = 0;
      ++next_group;
    }
  };
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  const auto find_scales = [&](int group) {
    if (group >= groups) return;
    for (int item = thread; item < kRows * chunks; item += kThreads) {
      const int r = item / chunks, chunk = item % chunks;
      scales[group % 2 * kRows * chunks + item] = scale_of(w, map, offset, (row_of(group, r) * w.in + chunk * 64) >> w.block_shift);
    }
  };
  for (int i = 0; i < kStages - 1; ++i) fetch();

  {
    // A thread fills the entries of one byte; its upper nibble comes first.
    const float a = codes.value[thread >> 4], b = codes.value[thread & 15];
    const std::uint32_t high = pack2(T{}, a, b);
    const float2 rounded = unpack2(T{}, high);
    const std::uint32_t low = pack2(T{}, a - rounded.x, b - rounded.y);
#pragma unroll
    for (int copy = 0; copy < kCopies; ++copy)
      *reinterpret_cast<uint2*>(table + thread * kEntryBytes + (copy + thread) % kCopies * 8) = make_uint2(high, low);
  }
  for (int i = thread; i < call.tokens * chunks * 8; i += kThreads) {
    const int t = i / (chunks * 8), piece = i % (chunks * 8);
    reinterpret_cast<uint4*>(x_shared)[i] = *reinterpret_cast<const uint4*>(call.x + t * call.x_stride + piece * 8);
  }
  find_scales(0);
  const std::uint32_t lookup = shared_address(table) + static_cast<std::uint32_t>(lane % kCopies * 8);
  const T* x_own = x_shared + min(g, call.tokens - 1) * w.in + q * 16;

  int slot = 0;
  for (int group = 0; group < groups; ++group) {
    float acc[4] = {};
    find_scales(group + 1);
    for (int stage = 0; stage < stages; ++stage, slot = slot + 1 == kStages ? 0 : slot + 1) {
      wait_copies<kStages - 2>();
      __syncthreads();  // this stage is there, and all have read the one that is filled next
      fetch();
      const char* rows = staged + slot * kStageBytes + g * kStageRow + warp * 64 + q * 8;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int chunk = stage * (kStageColumns / 64) + warp * 2 + c;
        if (chunk >= chunks) break;
        const uint2 bits0 = *reinterpret_cast<const uint2*>(rows + c * 32), bits1 = *reinterpret_cast<const uint2*>(rows + 8 * kStageRow + c * 32);
        const float* scale = scales + (group % 2 * kRows + g) * chunks + chunk;
        const T* x = x_own + chunk * 64;
        float sum[4] = {};
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const std::uint32_t word0 = m < 2 ? bits0.x : bits0.y, word1 = m < 2 ? bits1.x : bits1.y;
          const uint2 a0 = look_up(lookup, word0, m % 2 * 2), a1 = look_up(lookup, word1, m % 2 * 2);
          const uint2 a2 = look_up(lookup, word0, m % 2 * 2 + 1), a3 = look_up(lookup, word1, m % 2 * 2 + 1);
          const uint2 b = *reinterpret_cast<const uint2*>(x + m * 4);
          mma(T{}, sum, a0.x, a1.x, a2.x, a3.x, b.x, b.y);
          mma(T{}, sum, a0.y, a1.y, a2.y, a3.y, b.x, b.y);
        }
        const float scale0 = scale[0], scale1 = scale[8 * chunks];
        acc[0] += scale0 * sum[0];
        acc[1] += scale0 * sum[1];
        acc[2] += scale1 * sum[2];
        acc[3] += scale1 * sum[3];
      }
    }
    float(&sums)[kRows][kFewTokens] = all_sums[warp][group % 2];
    sums[g][2 * q] = acc[0];
    sums[g][2 * q + 1] = acc[1];
    sums[g + 8][2 * q] = acc[2];
    sums[g + 8][2 * q + 1] = acc[3];
    __syncthreads();  // the sums and scales of the group before the last are free again after the next one
    const int t = thread / kRows, r = thread % kRows;
    const std::int64_t row = first + group * kRows + r;
    if (t < call.tokens && row < w.rows) {
      float total = 0;
#pragma unroll
      for (int p = 0; p < kWarps; ++p) total += all_sums[p][group % 2][r][t];
      finish(call, t, row, total);
    }
  }
  wait_copies<0>();
}

// float32, a warp a row.
template <class Via>
__global__ void __launch_bounds__(kThreads) few_tokens_plain_kernel(Packed4 w, Codes codes, const float* map, FewCall<float> call) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= w.rows) return;
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  float sums[kFewTokens] = {};
  for (std::int64_t c = lane * 2; c < w.in; c += 64) {
    const std::int64_t element = row * w.in + c;
    const std::uint32_t byte = w.packed[element / 2];
    const float scale = scale_of(w, map, offset, element >> w.block_shift);
    const float a = rounded_to(codes.value[byte >> 4] * scale, Via{}), b = rounded_to(codes.value[byte & 15u] * scale, Via{});
#pragma unroll
    for (int t = 0; t < kFewTokens; ++t)
      if (t < call.tokens) sums[t] += a * call.x[t * call.x_stride + c] + b * call.x[t * call.x_stride + c + 1];
  }
#pragma unroll
  for (int t = 0; t < kFewTokens; ++t) {
    const float total = warp_sum(sums[t]);
    if (lane == 0 && t < call.tokens) finish(call, t, row, total);
  }
}

}  // namespace

bool product_of_few(const Packed4& w, const QuantTables& tables, const FewTokens& call, cudaStream_t stream) {
  const std::int64_t tokens = call.x.rows;
  const std::size_t bytes = few_tokens_bytes(tokens, w.in);
  constexpr std::size_t kMostShared = 200 << 10;
  if (tokens < 1 || tokens > kFewTokens || w.in % 64 != 0 || w.block_shift < 6 || bytes > kMostShared || !eights(call.x) ||
      reinterpret_cast<std::uintptr_t>(w.packed) % 16 != 0)
    return false;
  with_float(call.y.dtype, [&]<class T>(T) {
    FewCall<T> few{};
    few.x = call.x.as<T>();
    few.x_stride = call.x.stride;
    few.bias = static_cast<const T*>(call.bias);
    few.residual = call.residual.as<T>();
    few.residual_stride = call.residual.stride;
    few.inner = call.inner.as<float>();
    few.inner_stride = call.inner.stride;
    few.bt = call.bt.as<float>();
    few.bt_stride = call.bt.stride;
    few.rank = static_cast<int>(call.bt.rows);
    few.scale = call.scale;
    few.y = call.y.as<T>();
    few.y_stride = call.y.stride;
    few.tokens = static_cast<int>(tokens);
    const Codes codes = codes_of(w.type);
    if constexpr (sizeof(T) == 2) {
      check(cudaFuncSetAttribute(few_tokens_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of a product");
      // As many groups a block as bring all blocks onto the chip at once.
      const std::int64_t groups = blocks_for(w.rows, kRows), at_once = kBlocksPerUnit * processors();
      const std::int64_t per_block = (groups + at_once - 1) / at_once;
      few_tokens_kernel<T><<<blocks_for(groups, per_block), kThreads, bytes, stream>>>(w, codes, tables.dynamic_map, few, static_cast<int>(per_block));
    } else {
      const auto launch = [&]<class Via>(Via) {
        few_tokens_plain_kernel<Via><<<blocks_for(w.rows, kWarps), kThreads, 0, stream>>>(w, codes, tables.dynamic_map, few);
      };
      if (w.via == DType::f32)
        launch(float{});
      else
        with_float(w.via, launch);
    }
  });
  check_launch("product_of_few");
  return true;
}

}  // namespace pipelora::cuda
