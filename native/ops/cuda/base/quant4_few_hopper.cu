// The product of a few tokens (decoding) with a weight in 4 bits that is not expanded first, on Hopper: bound by the bytes of the codes.
#include <algorithm>
#include <type_traits>

#include "ops/cuda/base/quant4_few_outputs.cuh"
#include "ops/cuda/base/quant4_few_scales.cuh"
#include "ops/cuda/device/bulk_copy.cuh"
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/device/tensor_map.h"
#include "ops/cuda/device/warp_roles.cuh"
#include "ops/cuda/device/wgmma.cuh"

namespace pipelora::cuda {

namespace {

using namespace few;

// Four warps bring a step's codes and inputs to shared memory (bulk copies) and make its scales; sixteen multiply. Lane (g, q) of one of
// those holds rows g and g + 8 of a tensor core's left factor. A run of 32 neighbouring codes is 16 bytes of a row: lane q takes their
// word q, eight codes, for two products, and the same eight columns of x as their right factor, since the order of an inner dimension is
// free. Codes are looked up two at a time, rounded to the compute dtype, and multiplied as they are; the sum over 64 columns, which
// share a scale, is multiplied by it. How rows and columns are divided: quant4_few_shares.cuh.

/// How shared memory is laid out. `kTiles`: eights of tokens.
template <int kTiles>
struct Layout {
  /// A byte's two codes for each of 32 lanes. Twice as much room as they need makes a code's place of a byte and the lane's offset alone.
  static constexpr int kTableRow = kTiles == 8 ? 128 : 256;
  static constexpr int kStages = kTiles == 1 ? 5 : kTiles == 2 ? 4 : 3;
  static constexpr int kBoxBytes = kTiles * 8 * 128, kInputBytes = kBlocks * kBoxBytes, kStageBytes = kCodeBytes + kInputBytes + kScaleBytes;
  static constexpr int kTable = kStages * kStageBytes, kMap = kTable + 256 * kTableRow, kRaw = kMap + kMapBytes,
                       kSums = kRaw + kRawStages * kScaleBytes, kBarriers = kSums + kTiles * 8 * kSumStride * 4, kBytes = kBarriers + 2 * kStages * 8;
};

struct Maps {
  CUtensorMap x, part[kMaxParts];
};

#ifdef PIPELORA_HOPPER

/// d = a b: its sums start here.
__device__ inline void mma_first(bf16, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};\n"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}
__device__ inline void mma_first(f16, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};\n"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ inline std::uint32_t load_word(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(v) : "r"(address));
  return v;
}
__device__ inline float2 load_two(std::uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];\n" : "=f"(v.x), "=f"(v.y) : "r"(address));
  return v;
}

template <int kTiles>
__device__ inline std::uint32_t full(std::uint32_t base, std::uint32_t stage) { return base + Layout<kTiles>::kBarriers + stage * 8; }
template <int kTiles>
__device__ inline std::uint32_t empty(std::uint32_t base, std::uint32_t stage) { return base + Layout<kTiles>::kBarriers + (Layout<kTiles>::kStages + stage) * 8; }

template <class T, int kTiles>
__device__ inline void ask_codes(const Maps& maps, const FewCall<T>& call, const Place& place, std::uint32_t base, std::uint32_t stage) {
  using Memory = Layout<kTiles>;
  const Tile tile = tile_at(call, place.tile);
  const std::uint32_t barrier = full<kTiles>(base, stage);
  barrier_expect(barrier, kCodeBytes + Memory::kInputBytes);
  copy_tile(base + stage * Memory::kStageBytes, maps.part[tile.part], tile.first, place.step * (kStep / 4), barrier);
}
template <int kTiles>
__device__ inline void ask_input(const Maps& maps, int step, std::uint32_t base, std::uint32_t stage) {
  using Memory = Layout<kTiles>;
#pragma unroll
  for (int box = 0; box < kBlocks; ++box)
    copy_tile(base + stage * Memory::kStageBytes + kCodeBytes + box * Memory::kBoxBytes, maps.x, 0, step * kStep + box * 64, full<kTiles>(base, stage));
}

/// The first steps' codes, which are there before the kernels before this one have ended; of their inputs that is not so.
template <class T, int kTiles>
__device__ inline void ask_first_codes(const Maps& maps, const FewCall<T>& call, const Share& share, std::uint32_t base) {
  Place place(share);
  for (int i = 0; i < Layout<kTiles>::kStages && share.begin + i < share.end; ++i, place.next(share))
    ask_codes<T, kTiles>(maps, call, place, base, static_cast<std::uint32_t>(i));
}

template <class T, int kTiles>
__device__ inline void bring(const Maps& maps, const FewCall<T>& call, const Share& share, std::uint32_t base, const float* map, int thread) {
  using Memory = Layout<kTiles>;
  constexpr int kAhead = kRawStages - 1, kStages = Memory::kStages;
  RowScales<T> copied(call, thread), made(call, thread);
  Place ahead(share), place(share);
  const std::uint32_t raw = base + Memory::kRaw + static_cast<std::uint32_t>(thread) * 16;
  int copies = 0;
  const auto copy_next = [&] {
    if (share.begin + copies < share.end) {
      copied.copy(ahead.step, raw + static_cast<std::uint32_t>(copies % kRawStages * kScaleBytes));
      if (ahead.next(share) && ahead.tile < share.tiles) copied.start(tile_at(call, ahead.tile));
    }
    ++copies;
    commit_copies();
  };
  copied.start(tile_at(call, ahead.tile));
  made.start(tile_at(call, place.tile));
  for (int i = 0; i < kAhead; ++i) copy_next();
  wait_for_previous();
  if (thread == 0) {
    Place first(share);
    for (int i = 0; i < kStages && share.begin + i < share.end; ++i, first.next(share))
      ask_input<kTiles>(maps, first.step, base, static_cast<std::uint32_t>(i));
  }
  Ring<kStages> ring;
  for (int i = 0; share.begin + i < share.end; ++i) {
    copy_next();
    barrier_wait(empty<kTiles>(base, ring.stage), ring.parity ^ 1);
    if (thread == 0 && i >= kStages) {
      ask_codes<T, kTiles>(maps, call, place, base, ring.stage);
      ask_input<kTiles>(maps, place.step, base, ring.stage);
    }
    wait_copies<kAhead>();
    const uint4 scales = made.made(place.step, load_shared(raw + static_cast<std::uint32_t>(i % kRawStages * kScaleBytes)), map);
    store_shared(base + ring.stage * Memory::kStageBytes + kCodeBytes + Memory::kInputBytes + static_cast<std::uint32_t>(thread) * 16, scales);
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(full<kTiles>(base, ring.stage));
    ring.step();
    if (place.next(share) && place.tile < share.tiles) made.start(tile_at(call, place.tile));
  }
}

template <class T, int kTiles>
__device__ inline void multiply(const Call<T>& call, const Share& share, const char* shared, std::uint32_t base, float* sums, bool* is_last, int thread) {
  using Memory = Layout<kTiles>;
  const int warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
  const int own_row = warp % kRowWarps * 16 + g, half = warp / kRowWarps;  // half: of a step's columns
  const auto lane4 = static_cast<std::uint32_t>(lane) * 4;
  const auto look_up = [&](std::uint32_t word, int byte) {
    const auto b = static_cast<unsigned>(byte);
    const std::uint32_t at = Memory::kTableRow == 256 ? __byte_perm(word, lane4, 0x5504u | b << 4) : __byte_perm(word, 0, 0x4440u | b) * 128 + lane4;
    return *reinterpret_cast<const std::uint32_t*>(shared + Memory::kTable + at);
  };
  // Where this lane's words are: of run r of its half, rows own_row and own_row + 8.
  std::uint32_t word_at[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) word_at[r] = static_cast<std::uint32_t>(own_row * 128 + ((half * 4 + r) ^ (own_row & 7)) * 16 + q * 4);
  // Column g of a right factor is token `turned`: neighbouring lanes meet no bank twice.
  const int turned = g % 2 * 4 + (g & 2) + g / 4;
  const std::uint32_t even_at = kCodeBytes + static_cast<std::uint32_t>(half * 2 * Memory::kBoxBytes + turned * 128 + (q ^ turned) * 16),
                      odd_at = even_at ^ 64u;
  const std::uint32_t scale_at = kCodeBytes + Memory::kInputBytes + static_cast<std::uint32_t>(own_row * 16 + half * 8);

  wait_for_previous();
  let_next_start();
  Outputs<T> outputs(call, share, sums, is_last, thread);
  Place place(share);
  outputs.start(place.tile);
  float acc[kTiles][4] = {};
  int done = 0;  // steps of this tile
  Ring<Memory::kStages> ring;
  for (int unit = share.begin; unit < share.end; ++unit) {
    barrier_wait(full<kTiles>(base, ring.stage), ring.parity);
    const std::uint32_t stage = base + ring.stage * Memory::kStageBytes;
    const float2 scale[2] = {load_two(stage + scale_at), load_two(stage + scale_at + 8 * 16)};
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      float part[kTiles][4];
#pragma unroll
      for (int r = 2 * block; r < 2 * block + 2; ++r) {
        std::uint32_t a[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::uint32_t word = load_word(stage + word_at[r] + static_cast<std::uint32_t>(h) * 8 * 128);
#pragma unroll
          for (int byte = 0; byte < 4; ++byte) a[byte / 2][byte % 2 * 2 + h] = look_up(word, byte);
        }
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const std::uint32_t run_at = r % 2 == 0 ? even_at : odd_at;
          const uint4 b = load_shared(stage + run_at + static_cast<std::uint32_t>(r / 2 * Memory::kBoxBytes + n * 8 * 128));
          if (r == 2 * block)
            mma_first(T{}, part[n], a[0], b.x, b.y);
          else
            mma(T{}, part[n], a[0][0], a[0][1], a[0][2], a[0][3], b.x, b.y);
          mma(T{}, part[n], a[1][0], a[1][1], a[1][2], a[1][3], b.z, b.w);
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) acc[n][k] += part[n][k] * (block == 0 ? scale[k / 2].x : scale[k / 2].y);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(empty<kTiles>(base, ring.stage));
    ring.step();
    ++done;
    const bool ends = place.next(share);
    if (!ends && unit + 1 < share.end) continue;

    // The second half's warps leave their sums, the first half's add them to theirs.
    const auto each_sum = [&](const auto& body) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) body(sums[(n * 8 + k % 2 * 4 + q % 2 * 2 + q / 2) * kSumStride + own_row + k / 2 * 8], acc[n][k]);
      }
    };
    if (half == 1) each_sum([](float& sum, float own) { sum = own; });
    named_wait(1, kMultiply);
    if (half == 0) each_sum([](float& sum, float own) { sum = own + sum; });
    named_wait(1, kMultiply);
    if (done == share.steps)
      outputs.whole();
    else
      outputs.shared();
    named_wait(1, kMultiply);  // sums have been read
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) acc[n][k] = 0;
    }
    done = 0;
    if (unit + 1 < share.end) outputs.start(place.tile);
  }
}

#endif

template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, 1) __maxnreg__(kTiles == 1 ? 64 : 96)  // 64: the kernel before, which is small, has room beside it
    few_hopper_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Call<T> call, const __grid_constant__ Codes codes, const float* map) {
#ifdef PIPELORA_HOPPER
  using Memory = Layout<kTiles>;
  __shared__ bool is_last;
  char* shared = aligned_shared();
  const std::uint32_t base = shared_address(shared);
  const Share share(static_cast<int>(call.few.part[0].w.in), call.tiles);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == kMultiply) {
    for (std::uint32_t stage = 0; stage < Memory::kStages; ++stage) {
      barrier_init(full<kTiles>(base, stage), 1 + kBring / 32);
      barrier_init(empty<kTiles>(base, stage), kMultiply / 32);
    }
    fence_barriers();
    ask_first_codes<T, kTiles>(maps, call.few, share, base);
  }
  float* scale_map = reinterpret_cast<float*>(shared + Memory::kMap);
  if (thread < kMultiply) {
    if (thread < 256) scale_map[thread] = map[thread];
    const float own = codes.value[thread % 16];
#pragma unroll
    for (int i = 0; i < 256 * 8 / kMultiply; ++i) {
      const int byte = (thread + i * kMultiply) / 8;  // its upper nibble comes first
      const std::uint32_t two = pack2(T{}, __shfl_sync(0xFFFFFFFFu, own, byte >> 4), __shfl_sync(0xFFFFFFFFu, own, byte & 15));
      *reinterpret_cast<uint4*>(shared + Memory::kTable + byte * Memory::kTableRow + thread % 8 * 16) = make_uint4(two, two, two, two);
    }
  }
  __syncthreads();
  if (thread >= kMultiply)
    bring<T, kTiles>(maps, call.few, share, base, scale_map, thread - kMultiply);
  else
    multiply<T, kTiles>(call, share, shared, base, reinterpret_cast<float*>(shared + Memory::kSums), &is_last, thread);
#endif
}

template <class T, int kTiles>
void launch(const Maps& maps, const Call<T>& call, const Codes& codes, const float* map, cudaStream_t stream) {
  constexpr int kBytes = Layout<kTiles>::kBytes + static_cast<int>(kAlignmentBytes);
  const auto kernel = few_hopper_kernel<T, kTiles>;
  allow_shared(kernel, kBytes);
  const std::int64_t units = call.tiles * ((call.few.part[0].w.in + kStep - 1) / kStep);
  launch_dependent(kernel, dim3(static_cast<unsigned>(std::min<std::int64_t>(units, processors()))), kThreads, kBytes, stream, maps, call, codes, map);
}

template <class T>
bool launch_few(const FewTokens& few, const QuantTables& tables, cudaStream_t stream) {
  Call<T> call{call_of<T>(few), 0, few.scratch};
  Maps maps;
  const Packed4& w = few.parts.front().weight;
  for (int i = 0; i < call.few.parts; ++i) {
    const Packed4& weight = few.parts[static_cast<std::size_t>(i)].weight;
    // Blocks of columns are counted in 32 bits.
    if (reinterpret_cast<std::uintptr_t>(weight.packed) % 16 != 0 || weight.rows * weight.in / 64 > INT32_MAX) return false;
    call.few.part[i].first_unit = static_cast<unsigned>(call.tiles);
    call.tiles += static_cast<int>(blocks_for(weight.rows, kRows));
    // A step's row of codes is as wide as a panel of 16-bit numbers.
    maps.part[i] = tensor_map(Tensor(const_cast<std::uint8_t*>(weight.packed), DType::bf16, weight.rows, weight.in / 4), kRows);
  }
  if (call.tiles > kMostFewTiles) return false;
  const auto with = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    maps.x = tensor_map(few.x, kTiles * 8);
    launch<T, kTiles>(maps, call, codes_of(w.type), tables.dynamic_map, stream);
  };
  if (call.few.tokens <= 8) with(std::integral_constant<int, 1>());
  else if (call.few.tokens <= 16) with(std::integral_constant<int, 2>());
  else if (call.few.tokens <= 32) with(std::integral_constant<int, 4>());
  else with(std::integral_constant<int, 8>());
  return true;
}

}  // namespace

std::int64_t few_scratch_floats() { return std::int64_t{2} * processors() * kFewTokens * kRows; }

bool product_of_few_hopper(const FewTokens& few, const QuantTables& tables, cudaStream_t stream) {
  bool done = false;
  with_half(few.y.dtype, [&]<class T>(T) { done = launch_few<T>(few, tables, stream); });
  check_launch("product_of_few_hopper");
  return done;
}

}  // namespace pipelora::cuda
