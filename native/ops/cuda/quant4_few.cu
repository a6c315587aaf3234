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

/// What is added to the sum of one token and row, read ahead: all but the ranks of LoRA above eight.
constexpr int kEarlyRanks = 8;
template <class T>
struct Addend {
  T bias = narrow<T>(0.0f), residual = narrow<T>(0.0f);
  float inner[kEarlyRanks] = {}, bt[kEarlyRanks] = {};
};

template <class T>
__device__ inline Addend<T> read_addend(const FewCall<T>& call, int t, std::int64_t row) {
  Addend<T> addend;
  if (call.bias != nullptr) addend.bias = call.bias[row];
  if (call.residual != nullptr) addend.residual = call.residual[t * call.residual_stride + row];
#pragma unroll
  for (int k = 0; k < kEarlyRanks; ++k) {
    if (k >= call.rank) break;
    addend.inner[k] = call.inner[t * call.inner_stride + k];
    addend.bt[k] = call.bt[k * call.bt_stride + row];
  }
  return addend;
}

template <class T>
__device__ inline void finish(const FewCall<T>& call, int t, std::int64_t row, const Addend<T>& addend, float total) {
  total += widen(addend.bias) + widen(addend.residual);
  float term = 0;
#pragma unroll
  for (int k = 0; k < kEarlyRanks; ++k) term += addend.inner[k] * addend.bt[k];
  for (int k = kEarlyRanks; k < call.rank; ++k) term += call.inner[t * call.inner_stride + k] * call.bt[k * call.bt_stride + row];
  call.y[t * call.y_stride + row] = narrow<T>(total + call.scale * term);
}

// 16-bit inputs. A block takes several groups of 16 rows, its warps share the columns, 128 at a time: lane (g, q) holds 32
// neighbouring codes of rows g and g + 8, which share a scale, and makes them the left side of products whose right side is x,
// a token a column. x lies in shared memory with a gap behind every 32 elements, codes are looked up in a table with a copy for
// each lane. Codes are read kAhead pieces ahead, the first before the tables are there.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = 16;
constexpr int kBlocksPerUnit = 2;
constexpr int kAhead = 3;
constexpr int kTableRow = 128;  // bytes: a code, 32 times
constexpr int kTableBytes = 16 * kTableRow;
constexpr int kRunBytes = 32 * 2 + 16;

/// `table`: this lane's column of it, at a multiple of kTableBytes.
__device__ inline float look_up(std::uint32_t table, std::uint32_t word, int nibble) {
  // The nibble's place in the table is its value times 128.
  const std::uint32_t at = (nibble == 0 ? word << 7 : nibble == 1 ? word << 3 : word >> (4 * nibble - 7)) & (15u * kTableRow);
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(table | at));
  return value;
}

template <class T, class Via>
__global__ void __launch_bounds__(kThreads, kBlocksPerUnit) few_tokens_kernel(Packed4 w, Codes codes, const float* map, FewCall<T> call, int groups_per_block) {
  extern __shared__ __align__(16) char raw[];  // the table, at a multiple of its size; x [tokens][in / 32][kRunBytes]
  __shared__ float scales[256];
  __shared__ float all_sums[kWarps][2][kRows][kFewTokens];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
  const int runs = static_cast<int>(w.in / 32), pieces = (runs + kWarps * 4 - 1) / (kWarps * 4);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * groups_per_block * kRows;
  const int groups = static_cast<int>(min(static_cast<std::int64_t>(groups_per_block), (w.rows - first + kRows - 1) / kRows));

  struct Piece {
    uint4 bits[2];
    float scale[2];  // or the scale's scale
    std::uint8_t code[2];
  };
  // Where the next piece to read is: its group, its run of 32 columns, and the first codes of this lane's rows there.
  int next_group = 0, next_run = warp * 4 + q;
  std::int64_t row_start[2];
  const auto start_rows = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) row_start[i] = min(first + next_group * kRows + g + i * 8, w.rows - 1) * w.in;
  };
  start_rows();
  const auto read = [&] {
    Piece piece;
    const bool in = next_run < runs && next_group < groups;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t element = row_start[i] + next_run * 32, block = element >> w.block_shift;
      piece.bits[i] = in ? __ldg(reinterpret_cast<const uint4*>(w.packed + element / 2)) : make_uint4(0, 0, 0, 0);
      piece.scale[i] = !in ? 0.0f : w.absmax != nullptr ? __ldg(w.absmax + block) : __ldg(w.nested + (block >> 8));
      piece.code[i] = in && w.absmax == nullptr ? __ldg(w.codes + block) : 0;
    }
    next_run += kWarps * 4;
    if (next_run - q >= pieces * kWarps * 4) {
      next_run -= pieces * kWarps * 4;
      ++next_group;
      start_rows();
    }
    return piece;
  };
  Piece ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = read();

  char* table = raw + (kTableBytes - (shared_address(raw) & (kTableBytes - 1)) & (kTableBytes - 1));
  char* x_shared = table + kTableBytes;
  for (int i = static_cast<int>(threadIdx.x); i < 16 * 32; i += kThreads) reinterpret_cast<float*>(table)[i] = codes.value[i / 32];
  if (w.absmax == nullptr) scales[threadIdx.x] = map[threadIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < call.tokens * runs * 4; i += kThreads) {
    const int t = i / (runs * 4), piece = i % (runs * 4);
    *reinterpret_cast<uint4*>(x_shared + (t * runs + piece / 4) * kRunBytes + piece % 4 * 16) =
        *reinterpret_cast<const uint4*>(call.x + t * call.x_stride + piece * 8);
  }
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  __syncthreads();
  const std::uint32_t lookup = shared_address(table) | static_cast<std::uint32_t>(lane * 4);
  const char* x_own = x_shared + min(g, call.tokens - 1) * runs * kRunBytes;

  // What this thread finishes in each group.
  const int own_token = static_cast<int>(threadIdx.x) / kRows, own_row = static_cast<int>(threadIdx.x) % kRows;
  const auto addend_of = [&](int group) {
    const std::int64_t row = first + group * kRows + own_row;
    return own_token < call.tokens && group < groups && row < w.rows ? read_addend(call, own_token, row) : Addend<T>();
  };
  Addend<T> addend = addend_of(0);
  float acc[4] = {};
  int group = 0, run = warp * 4 + q;
  while (group < groups) {
    const Piece piece = ahead[0];
#pragma unroll
    for (int i = 0; i + 1 < kAhead; ++i) ahead[i] = ahead[i + 1];
    ahead[kAhead - 1] = read();
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      scale[i] = w.absmax != nullptr ? piece.scale[i] : __fadd_rn(__fmul_rn(scales[piece.code[i]], piece.scale[i]), offset);
    if (run >= runs) scale[0] = scale[1] = 0;
    const char* x = x_own + min(run, runs - 1) * kRunBytes;
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      std::uint32_t a[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4& bits = piece.bits[i];
        const std::uint32_t word = m / 2 == 0 ? bits.x : m / 2 == 1 ? bits.y : m / 2 == 2 ? bits.z : bits.w;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int byte = m % 2 * 2 + half;  // its upper nibble comes first
          const float v0 = look_up(lookup, word, 2 * byte + 1) * scale[i], v1 = look_up(lookup, word, 2 * byte) * scale[i];
          a[i][half] = pack2(T{}, rounded_to(v0, Via{}), rounded_to(v1, Via{}));
        }
      }
      const uint2 b = *reinterpret_cast<const uint2*>(x + m * 8);
      mma(T{}, acc, a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
    }
    run += kWarps * 4;
    if (run - q < pieces * kWarps * 4) continue;
    run = warp * 4 + q;
    float(&sums)[kRows][kFewTokens] = all_sums[warp][group % 2];
    sums[g][2 * q] = acc[0];
    sums[g][2 * q + 1] = acc[1];
    sums[g + 8][2 * q] = acc[2];
    sums[g + 8][2 * q + 1] = acc[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] = 0;
    __syncthreads();  // the sums of the group before the last are free again after the next one
    const std::int64_t row = first + group * kRows + own_row;
    if (own_token < call.tokens && row < w.rows) {
      float total = 0;
#pragma unroll
      for (int p = 0; p < kWarps; ++p) total += all_sums[p][group % 2][own_row][own_token];
      finish(call, own_token, row, addend, total);
    }
    addend = addend_of(++group);
  }
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
    if (lane == 0 && t < call.tokens) finish(call, t, row, read_addend(call, t, row), total);
  }
}

}  // namespace

bool product_of_few(const Packed4& w, const QuantTables& tables, const FewTokens& call, cudaStream_t stream) {
  const std::int64_t tokens = call.x.rows;
  const auto bytes = static_cast<std::size_t>(2 * kTableBytes + tokens * (w.in / 32) * kRunBytes);
  constexpr std::size_t kMostShared = 200 << 10;
  if (tokens < 1 || tokens > kFewTokens || w.in % 32 != 0 || w.block_shift < 5 || bytes > kMostShared || !eights(call.x) ||
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
    const auto launch = [&]<class Via>(Via) {
      if constexpr (sizeof(T) == 2) {
        const auto kernel = few_tokens_kernel<T, Via>;
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "shared memory of a product");
        // As many groups a block as bring all blocks onto the chip at once.
        const std::int64_t groups = blocks_for(w.rows, kRows), at_once = kBlocksPerUnit * processors();
        const std::int64_t per_block = (groups + at_once - 1) / at_once;
        kernel<<<blocks_for(groups, per_block), kThreads, bytes, stream>>>(w, codes_of(w.type), tables.dynamic_map, few, static_cast<int>(per_block));
      } else {
        few_tokens_plain_kernel<Via><<<blocks_for(w.rows, kWarps), kThreads, 0, stream>>>(w, codes_of(w.type), tables.dynamic_map, few);
      }
    };
    if (w.via == call.y.dtype || w.via == DType::f32)
      launch(float{});
    else
      with_float(w.via, launch);
  });
  check_launch("product_of_few");
  return true;
}

}  // namespace pipelora::cuda
