// The product of up to eight tokens (decoding) with a weight in 4 bits that is not expanded first: bound by the bytes of the codes.
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/device/mma.cuh"
#include "ops/cuda/base/quant4_few.cuh"

namespace pipelora::cuda {

namespace {

// 16-bit inputs. A block takes several groups of 16 rows, its warps share the columns, 128 at a time: lane (g, q) holds a run of
// 32 neighbouring codes, which share a scale, of rows g and g + 8. Tensor cores multiply the codes alone, looked up two at a
// time; a run's sum is scaled afterwards. So that a product's sums are those of single runs, its eight columns are the four
// runs' inputs of two tokens, each zero for the lanes of other runs: lane (g, q) gets the sums of its own run.
//
// Codes are rounded to float16 (their weights would be, to the compute dtype); so are inputs, whose runs are first scaled by
// a power of two each: bfloat16 fits but for what is below 2^-24 of its run's largest.
//
// Codes come through a queue in shared memory, each thread's own; scales are made ready first, for all of the block's rows, and
// the warps' sums meet at its end: in between no warp waits for another.
constexpr int kWarps = 16, kMostTokens = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;
constexpr int kTableRow = 128;                // bytes: two codes, for each of 32 lanes
constexpr int kRunBytes = 2 * 64;             // of two tokens, 16 bytes in turn
constexpr int kNoInputBytes = 2 * kRunBytes;  // zeros, read at the same offsets
constexpr int kStageBytes = 2 * kThreads * 16;

/// Pieces that are on their way: as many as leave room for x.
__host__ __device__ constexpr int stages_of(int pairs) { return pairs < 4 ? 4 : 2; }

/// Shared memory, in this order.
struct Layout {
  int queue, x, factors, sums, addends, scales, bytes;
};
/// Where a scale lies: with a gap behind every 32, so that eight rows' do not share a bank.
__host__ __device__ constexpr int scale_place(int i) { return i + (i >> 5); }

/// `scales`: of a block.
__host__ __device__ inline Layout layout_of(int most_pairs, int tokens, int runs, int groups_per_block, int scales) {
  Layout layout{};
  const int pairs = (tokens + 1) / 2;
  layout.queue = kNoInputBytes;
  layout.x = layout.queue + stages_of(most_pairs) * kStageBytes;
  layout.factors = layout.x + pairs * runs * kRunBytes;
  layout.sums = layout.factors + pairs * runs * static_cast<int>(sizeof(float2));
  layout.addends = layout.sums + groups_per_block * kWarps * tokens * kRows * static_cast<int>(sizeof(float));
  layout.scales = layout.addends + tokens * groups_per_block * kRows * static_cast<int>(sizeof(float));
  layout.bytes = layout.scales + scale_place(scales) * static_cast<int>(sizeof(float));
  return layout;
}

/// Eight numbers as float16, and what they are to be multiplied by. Called by the four threads of a run together.
__device__ inline uint4 as_half(uint4 bits, bf16, float& factor) {
  std::uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w}, most = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) most = __vmaxu2(most, words[i] & 0x7FFF7FFFu);
  most = max(most & 0xFFFFu, most >> 16);
  const std::uint32_t quad = 0xFu << (threadIdx.x & 28u);
  most = max(most, __shfl_xor_sync(quad, most, 1));
  most = max(most, __shfl_xor_sync(quad, most, 2));
  const std::uint32_t exponent = min(max(most >> 7, 1u), 252u);
  factor = __uint_as_float(exponent << 23);
  const float inverse = __uint_as_float((254u - exponent) << 23);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack2(bf16{}, words[i]);
    words[i] = pack2(f16{}, two.x * inverse, two.y * inverse);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
__device__ inline uint4 as_half(uint4 bits, f16, float& factor) {
  factor = 1;
  return bits;
}

/// The two codes of a byte, from this lane's column of the table.
__device__ inline std::uint32_t look_up(std::uint32_t column, std::uint32_t word, int byte) {
  std::uint32_t two;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(two) : "r"(column + __byte_perm(word, 0, 0x4440u + static_cast<unsigned>(byte)) * kTableRow));
  return two;
}

template <class T, int kPairs>
__global__ void __maxnreg__(kPairs == 1 ? 80 : 128)  // 80: the kernel before, which is small, has room beside it
    few_tokens_kernel(const __grid_constant__ FewCall<T> call, const __grid_constant__ Codes codes, const float* map) {
  extern __shared__ __align__(128) char raw[];
  __shared__ __align__(128) std::uint32_t table[256 * kTableRow / 4];
  __shared__ float scale_map[256];
  constexpr int kStages = stages_of(kPairs);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  int p = 0;
  while (p + 1 < call.parts && blockIdx.x >= call.part[p + 1].first_unit) ++p;
  const FewCallPart<T>& part = call.part[p];
  const Packed4& w = part.w;
  const int runs = static_cast<int>(w.in / 32), most_rows = call.groups_per_block * kRows;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x - part.first_unit) * most_rows;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(most_rows), w.rows - first));
  const int row_end = (runs + kWarps * 4 - 1) / (kWarps * 4) * (kWarps * 4);  // where the warps have passed a row's runs
  const bool nested = w.absmax == nullptr;
  const int run_shift = w.block_shift - 5;
  const std::int64_t first_run = first * runs, first_scale = first_run >> run_shift;
  const Layout layout = layout_of(kPairs, call.tokens, runs, call.groups_per_block, 0);

  // What is read next: run `next_run` of rows next_row and next_row + 8.
  const std::uint32_t queue = shared_address(raw) + static_cast<std::uint32_t>(layout.queue + thread * 16);
  int next_run = warp * 4 + q, next_row = g, next_stage = 0;
  const std::uint8_t* next = w.packed + (first_run + static_cast<std::int64_t>(g) * runs + next_run) * 16;
  const auto read = [&] {
    const bool in = next_run < runs;
    const std::uint32_t to = queue + static_cast<std::uint32_t>(next_stage * kStageBytes);
    const bool in0 = in && next_row < rows, in1 = in && next_row + 8 < rows;
    copy_async(to, next, in0);
    copy_async(to + kStageBytes / 2, next + runs * 128, in1);
    commit_copies();
    next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
    next_run += kWarps * 4;
    next += kWarps * 4 * 16;
    if (next_run >= row_end) {
      next_run -= row_end;
      next_row += kRows;
      next += (kRows * runs - row_end) * 16;
    }
  };
#pragma unroll
  for (int i = 0; i < kStages; ++i) read();

  const int items = rows * call.tokens;
  FewAddend<T> addend = read_addend(part, first + min(thread, items - 1) % rows);
  {
    const float own = codes.value[lane % 16];
#pragma unroll
    for (int i = 0; i < 256 * 8 / kThreads; ++i) {
      const int byte = (thread + i * kThreads) / 8;  // its upper nibble comes first
      const std::uint32_t two = pack2(f16{}, __shfl_sync(0xFFFFFFFFu, own, byte >> 4), __shfl_sync(0xFFFFFFFFu, own, byte & 15));
      reinterpret_cast<uint4*>(table)[thread + i * kThreads] = make_uint4(two, two, two, two);
    }
  }
  if (nested && thread < 256) scale_map[thread] = map[thread];
  if (thread < kNoInputBytes / 16) reinterpret_cast<uint4*>(raw)[thread] = make_uint4(0, 0, 0, 0);
  // Scales, four neighbours a thread: as many loads at once as hide the memory's latency.
  float* scales = reinterpret_cast<float*>(raw + layout.scales);
  const auto last_scale = (first_run + static_cast<std::int64_t>(rows) * runs - 1) >> run_shift;
  const int fours = static_cast<int>(last_scale / 4 - first_scale / 4) + 1, before = static_cast<int>(first_scale % 4);
  constexpr int kScalesTogether = 6;
  std::uint32_t four[kScalesTogether];
  float outer[kScalesTogether];
  const auto read_scales = [&](int start) {
#pragma unroll
    for (int k = 0; k < kScalesTogether; ++k) {
      const int i = start + k * kThreads;
      if (i >= fours) break;
      four[k] = __ldg(reinterpret_cast<const std::uint32_t*>(w.codes) + first_scale / 4 + i);
      outer[k] = __ldg(w.nested + ((first_scale / 4 + i) >> 6));
    }
  };
  const float offset = nested ? *w.offset : 0.0f;
  if (nested) {
    read_scales(thread);
    __syncthreads();
    for (int start = thread; start < fours; start += kScalesTogether * kThreads) {
      if (start != thread) read_scales(start);
#pragma unroll
      for (int k = 0; k < kScalesTogether; ++k) {
        const int at = (start + k * kThreads) * 4 - before;  // of the block's own scales
        if (at + before >= fours * 4) break;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (at + i >= 0) scales[scale_place(at + i)] = __fadd_rn(__fmul_rn(scale_map[four[k] >> (8 * i) & 255u], outer[k]), offset);
      }
    }
  } else {
#pragma unroll 8
    for (int i = thread; i <= static_cast<int>(last_scale - first_scale); i += kThreads) scales[scale_place(i)] = __ldg(w.absmax + first_scale + i);
  }

  wait_for_previous();
  let_next_start();

  const int pieces = runs * 4;
  for (int t = 0; t < call.tokens; ++t) {
    const T* from = call.x + t * call.x_stride;
    constexpr int kTogether = 3;
    for (int start = thread; start < pieces; start += kTogether * kThreads) {
      uint4 bits[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
        if (start + k * kThreads < pieces) bits[k] = *reinterpret_cast<const uint4*>(from + (start + k * kThreads) * 8);
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const int i = start + k * kThreads, at = t / 2 * runs + i / 4;
        if (i >= pieces) break;
        float factor;
        *reinterpret_cast<uint4*>(raw + layout.x + at * kRunBytes + i % 4 * 32 + t % 2 * 16) = as_half(bits[k], T{}, factor);
        if (i % 4 == 0) reinterpret_cast<float*>(raw + layout.factors)[2 * at + t % 2] = factor;
      }
    }
  }
  float* addends = reinterpret_cast<float*>(raw + layout.addends);
  for (int item = thread; item < items; item += kThreads) {
    if (item != thread) addend = read_addend(part, first + item % rows);
    addends[item / rows * most_rows + item % rows] = finished(call, part, item / rows, first + item % rows, addend);
  }
  __syncthreads();

  // This lane's column of the products: run q of token g % 2 of each pair, for the lanes of that run alone.
  const bool mine = g / 2 == q;
  const std::uint32_t lookup = shared_address(table + lane);
  const char* own_queue = raw + layout.queue + thread * 16;
  const bool two = call.tokens > 1;
  float* all_sums = reinterpret_cast<float*>(raw + layout.sums);
  float acc[kPairs][4] = {};
  int run = warp * 4 + q, row = 0, stage = 0;
  int row_run = static_cast<int>(first_run - (first_scale << run_shift)) + g * runs;  // from the first scale's first run on
  while (row < rows) {
    wait_copies<kStages - 1>();
    asm volatile("" ::: "memory");  // the codes are read from here on
    uint4 bits[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) bits[i] = *reinterpret_cast<const uint4*>(own_queue + stage * kStageBytes + i * (kStageBytes / 2));
    const bool in = run < runs;
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) scale[i] = in && row + g + 8 * i < rows ? scales[scale_place((row_run + 8 * i * runs + run) >> run_shift)] : 0.0f;
    const char* x[kPairs];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) x[k] = raw + (mine && in && 2 * k + g % 2 < call.tokens ? layout.x + (k * runs + run) * kRunBytes + g % 2 * 16 : 32);
    // The next word's codes are looked up while tensor cores multiply this one's, in two sums that do not wait for each other.
    std::uint32_t a[2][2][4];
    const auto look_up_word = [&](int m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::uint32_t word = m == 0 ? bits[i].x : m == 1 ? bits[i].y : m == 2 ? bits[i].z : bits[i].w;
#pragma unroll
        for (int byte = 0; byte < 4; ++byte) a[m % 2][i][byte] = look_up(lookup, word, byte);
      }
    };
    float sums[kPairs][4] = {}, more[kPairs][4] = {};
    look_up_word(0);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (m < 3) look_up_word(m + 1);
      const auto& w0 = a[m % 2][0];
      const auto& w1 = a[m % 2][1];
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        const uint4 b = *reinterpret_cast<const uint4*>(x[k] + m * 32);
        mma(f16{}, sums[k], w0[0], w1[0], w0[1], w1[1], b.x, b.y);
        mma(f16{}, more[k], w0[2], w1[2], w0[3], w1[3], b.z, b.w);
      }
    }
    read();  // where this thread's codes have been taken from
    stage = stage + 1 == kStages ? 0 : stage + 1;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      float2 factor = make_float2(1.0f, 1.0f);
      // Of eight tokens' pairs some may be none: behind the last one's factors other warps' sums lie.
      const int pair = kPairs < 4 ? k : min(k, (call.tokens - 1) / 2);
      if constexpr (!std::is_same_v<T, f16>) factor = reinterpret_cast<const float2*>(raw + layout.factors)[pair * runs + min(run, runs - 1)];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        acc[k][2 * i] += (sums[k][2 * i] + more[k][2 * i]) * (scale[i] * factor.x);
        if (two) acc[k][2 * i + 1] += (sums[k][2 * i + 1] + more[k][2 * i + 1]) * (scale[i] * factor.y);
      }
    }
    run += kWarps * 4;
    if (run < row_end) continue;
    run -= row_end;

    // The four runs' sums together: lane q of each four ends with row g + 8 (q / 2) and token q % 2 of the pair.
    float* own_sums = all_sums + (row / kRows * kWarps + warp) * call.tokens * kRows;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const bool lower = q < 2, even = q % 2 == 0;
      float one = __shfl_xor_sync(0xFFFFFFFFu, lower ? acc[k][2] : acc[k][0], 2);
      float other = __shfl_xor_sync(0xFFFFFFFFu, lower ? acc[k][3] : acc[k][1], 2);
      one += lower ? acc[k][0] : acc[k][2];
      other += lower ? acc[k][1] : acc[k][3];
      const float rest = __shfl_xor_sync(0xFFFFFFFFu, even ? other : one, 1);
      const int t = 2 * k + q % 2;
      if (t < call.tokens) own_sums[t * kRows + g + q / 2 * 8] = (even ? one : other) + rest;
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[k][i] = 0;
    }
    row += kRows;
    row_run += kRows * runs;
  }
  __syncthreads();
  for (int item = thread; item < items; item += kThreads) {
    const int t = item / rows, own_row = item % rows;
    const float* sum = all_sums + (own_row / kRows * kWarps * call.tokens + t) * kRows + own_row % kRows;
    float total = 0;
#pragma unroll
    for (int from = 0; from < kWarps; ++from) total += sum[from * call.tokens * kRows];
    part.y[t * call.y_stride + first + own_row] = narrow<T>(total + addends[t * most_rows + own_row]);
  }
}

Layout layout_of(const FewTokens& few, unsigned groups_per_block) {
  const Packed4& w = few.parts.front().weight;
  const int tokens = static_cast<int>(few.x.rows), runs = static_cast<int>(w.in / 32), groups = static_cast<int>(groups_per_block);
  return layout_of(tokens <= 2 ? 1 : tokens <= 4 ? 2 : 4, tokens, runs, groups, (groups * kRows * runs >> (w.block_shift - 5)) + 8);
}
int most_shared(const GpuKind& gpu) {
  constexpr int kTables = 33 << 10;
  return static_cast<int>(gpu.block_bytes) - kTables;
}

bool fits(const FewTokens& few, const GpuKind& gpu) {
  if (few.parts.front().weight.block_shift < 5) return false;
  for (const FewPart& part : few.parts)
    if (reinterpret_cast<std::uintptr_t>(part.weight.packed) % 16 != 0 || part.weight.rows * part.weight.in / 32 >= std::int64_t{1} << 31) return false;
  return few.x.rows <= kMostTokens && layout_of(few, 1).bytes <= most_shared(gpu);
}

template <class T>
void launch_few(const FewTokens& few, const QuantTables& tables, const GpuKind& gpu, cudaStream_t stream) {
  FewCall<T> call = call_of<T>(few);
  const auto groups_of = [&](const FewPart& part) { return blocks_for(part.weight.rows, kRows); };
  const int most = most_shared(gpu);
  // As many groups a block as bring all blocks onto the chip at once, or as fit.
  const auto at_once = static_cast<unsigned>(processors());
  unsigned per_block = 0, blocks = at_once + 1;
  while (blocks > at_once && (per_block == 0 || (blocks > few.parts.size() && layout_of(few, per_block + 1).bytes <= most))) {
    ++per_block;
    blocks = 0;
    for (int i = 0; i < call.parts; ++i) {
      call.part[i].first_unit = blocks;
      blocks += blocks_for(groups_of(few.parts[static_cast<std::size_t>(i)]), per_block);
    }
  }
  call.groups_per_block = static_cast<int>(per_block);
  const int bytes = layout_of(few, per_block).bytes, pairs = call.tokens <= 2 ? 1 : call.tokens <= 4 ? 2 : 4;
  const auto kernel = pairs == 1 ? few_tokens_kernel<T, 1> : pairs == 2 ? few_tokens_kernel<T, 2> : few_tokens_kernel<T, 4>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory of a product");
  launch_dependent(kernel, dim3(blocks), kThreads, static_cast<std::size_t>(bytes), stream, call, codes_of(few.parts.front().weight.type), tables.dynamic_map);
}

}  // namespace

FewKernel few_kernel(const FewTokens& few, const GpuKind& gpu) {
  if (few.parts.empty() || few.parts.size() > kMaxParts) return FewKernel::expanded;
  const Packed4& w = few.parts.front().weight;
  return few_choice({few.y.dtype, few.x.rows, w.in, std::int64_t{1} << w.block_shift, eights(few.x), fits(few, gpu)}, gpu);
}

bool product_of_few(const FewTokens& few, FewKernel kernel, const QuantTables& tables, const GpuKind& gpu, cudaStream_t stream) {
  if (kernel == FewKernel::bulk) return product_of_few_hopper(few, tables, stream);
  with_float(few.y.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2)
      launch_few<T>(few, tables, gpu, stream);
    else
      product_of_few_plain(few, tables, stream);
  });
  check_launch("product_of_few");
  return true;
}

}  // namespace pipelora::cuda
