// What surrounds a product: bias, residual and LoRA's rank-R terms on a tile; LoRA's skinny products; dropout masks.
#include <algorithm>

#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// Lanes whose bit is set keep their value, the others become zero.
inline vf keep(vf v, const std::uint8_t* bits) {
#if defined(__AVX512F__)
  std::uint16_t m;
  std::memcpy(&m, bits, sizeof m);
  return reinterpret_cast<vf>(_mm512_maskz_mov_ps(m, reinterpret_cast<__m512>(v)));
#else
  const vi lane_bit = {1, 2, 4, 8, 16, 32, 64, 128};
  const vi on = (vi{} + static_cast<std::int32_t>(*bits)) & lane_bit;
  return on != 0 ? v : vf{};
#endif
}

constexpr int kRows = 4;

/// acc[i][j] = sum_r inner[i, r] rows[r, c + j lanes]
template <int M, int N>
inline void rank_product(const Tensor& inner, std::int64_t t, const Tensor& rows, std::int64_t c, int count,
                         vf (&acc)[kRows][2]) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) acc[i][j] = splat(0);
  const float* left[M];
  for (int i = 0; i < M; ++i) left[i] = row<float>(inner, t + i);
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    const float* right = row<float>(rows, r) + c;
    vf b[N];
    for (int j = 0; j < N; ++j) b[j] = load_some(right + j * kLanes, count);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) acc[i][j] += left[i][r] * b[j];
  }
}

template <class T, int M, int N>
inline void finish_patch(const FinishTile& call, std::span<const LowRankTerm* const> terms, std::int64_t t, std::int64_t c,
                         int count) {
  vf total[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      const std::int64_t at = c + j * kLanes;
      vf v = load_some(row<float>(call.product, t + i) + at, count);
      if (call.bias != nullptr) v += load_some(call.bias + at, count);
      if (call.residual) v += load_some(row<T>(call.residual, t + i) + at, count);
      total[i][j] = v;
    }
  for (const LowRankTerm* term : terms) {
    vf acc[kRows][2];
    rank_product<M, N>(term->inner, t, term->rows, c - term->first, count, acc);
    for (int i = 0; i < M; ++i)
      for (int j = 0; j < N; ++j) {
        const vf v = acc[i][j] * term->scale;
        total[i][j] += term->mask == nullptr
                           ? v
                           : keep(v, term->mask + (t + i) * term->mask_stride + (c + j * kLanes) / 8);
      }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) store_some(row<T>(call.y, t + i) + c + j * kLanes, total[i][j], count);
}

template <class T, int M>
inline void finish_rows(const FinishTile& call, std::span<const LowRankTerm* const> terms, std::int64_t t,
                        std::int64_t begin, std::int64_t end) {
  std::int64_t c = begin;
  for (; c + 2 * kLanes <= end; c += 2 * kLanes) finish_patch<T, M, 2>(call, terms, t, c, kLanes);
  for_lanes(c, end, [&](std::int64_t at, int n) { finish_patch<T, M, 1>(call, terms, t, at, n); });
}

void finish_tile(const FinishTile& call) {
  if (call.y.data == call.product.data && call.bias == nullptr && !call.residual && call.terms.empty()) return;
  // Columns are cut where a term begins or ends: between two cuts every term covers all or nothing.
  std::vector<std::int64_t> cuts{0, call.y.cols};
  for (const LowRankTerm& term : call.terms) {
    cuts.push_back(std::clamp<std::int64_t>(term.first, 0, call.y.cols));
    cuts.push_back(std::clamp<std::int64_t>(term.first + term.rows.cols, 0, call.y.cols));
  }
  std::sort(cuts.begin(), cuts.end());
  std::vector<const LowRankTerm*> active;
  with_float(call.y.dtype, [&]<class T>() {
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      const std::int64_t begin = cuts[i], end = cuts[i + 1];
      if (begin == end) continue;
      active.clear();
      for (const LowRankTerm& term : call.terms)
        if (term.first <= begin && end <= term.first + term.rows.cols) active.push_back(&term);
      std::int64_t t = 0;
      for (; t + kRows <= call.y.rows; t += kRows) finish_rows<T, kRows>(call, active, t, begin, end);
      for (; t < call.y.rows; ++t) finish_rows<T, 1>(call, active, t, begin, end);
    }
  });
}

/// 32 x 32 -> 64 bit products, high and low words.
inline void multiply(vu a, std::uint32_t b, vu& high, vu& low) {
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a), y = _mm512_set1_epi32(static_cast<int>(b));
  const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
  low = reinterpret_cast<vu>(_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)));
  high = reinterpret_cast<vu>(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
#else
  const __m256i x = reinterpret_cast<__m256i>(a), y = _mm256_set1_epi32(static_cast<int>(b));
  const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
  low = reinterpret_cast<vu>(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA));
  high = reinterpret_cast<vu>(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA));
#endif
}

/// Keep bits of kLanes consecutive groups of eight elements, one byte a group.
inline void mask_bytes(const MaskRows& call, std::uint32_t token_row, std::uint64_t group, std::uint8_t* bytes) {
  vu lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = static_cast<std::uint32_t>(i);
  const std::uint32_t low = static_cast<std::uint32_t>(group);
  vu c0 = lane + low;
  const vu carry = std::bit_cast<vu>(c0 < low) & 1u;
  vu c1 = vu{} + token_row, c2 = vu{} + call.key.step;
  vu c3 = (call.module << 10) | (((static_cast<std::uint32_t>(group >> 32)) + carry) & 1023u);
  std::uint32_t k0 = static_cast<std::uint32_t>(call.key.seed) ^ 0x64726F70u;
  std::uint32_t k1 = static_cast<std::uint32_t>(call.key.seed >> 32);
  for (int round = 0; round < kDropoutRounds; ++round) {
    vu h0, l0, h1, l1;
    multiply(c0, 0xD2511F53u, h0, l0);
    multiply(c2, 0xCD9E8D57u, h1, l1);
    c0 = h1 ^ c1 ^ k0;
    c2 = h0 ^ c3 ^ k1;
    c1 = l1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  vu bits{};
  const vu words[4] = {c0, c1, c2, c3};
  for (int w = 0; w < 4; ++w) {
    bits |= std::bit_cast<vu>((words[w] & 0xFFFFu) >= call.threshold) & (1u << (2 * w));
    bits |= std::bit_cast<vu>((words[w] >> 16) >= call.threshold) & (2u << (2 * w));
  }
  using vb = std::uint8_t __attribute__((vector_size(kLanes)));
  const vb packed = __builtin_convertvector(bits, vb);
  std::memcpy(bytes, &packed, sizeof packed);
}

void dropout_mask(const MaskRows& call, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t count,
                  std::uint8_t* bits, std::int64_t stride) {
  const std::int64_t whole = (count + 7) / 8;
  for (std::int64_t t = begin; t < end; ++t) {
    std::uint8_t* out = bits + (t - begin) * stride;
    const std::uint64_t element =
        static_cast<std::uint64_t>(call.position[t]) * static_cast<std::uint64_t>(call.in) + static_cast<std::uint64_t>(first);
    const std::uint32_t shift = static_cast<std::uint32_t>(element % 8);
    const std::uint32_t token_row = static_cast<std::uint32_t>(call.row[t]);
    std::uint64_t group = element / 8;
    std::uint8_t bytes[kLanes + 1];
    std::int64_t done = 0;
    // With a shift, each output byte takes bits of two neighbours: the last byte of a batch opens the next one.
    const std::int64_t batch = shift == 0 ? kLanes : kLanes - 1;
    while (done < whole) {
      mask_bytes(call, token_row, group, bytes);
      const std::int64_t n = std::min(batch, whole - done);
      if (shift == 0)
        std::memcpy(out + done, bytes, static_cast<std::size_t>(n));
      else
        for (std::int64_t i = 0; i < n; ++i)
          out[done + i] = static_cast<std::uint8_t>((bytes[i] >> shift) | (bytes[i + 1] << (8 - shift)));
      done += n;
      group += static_cast<std::uint64_t>(batch);
    }
    if (count % 8 != 0) out[whole - 1] &= static_cast<std::uint8_t>((1u << (count % 8)) - 1u);
    std::memset(out + whole, 0, static_cast<std::size_t>(stride - whole));
  }
}

template <class T, int M, int N>
inline void dot_patch(const Tensor& x, const Tensor& w, float factor, const std::uint8_t* mask, std::int64_t mask_stride,
                      const Tensor& out, std::int64_t t, std::int64_t r) {
  vf acc[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) acc[i][j] = splat(0);
  const T* left[M];
  const float* right[N];
  for (int i = 0; i < M; ++i) left[i] = row<T>(x, t + i);
  for (int j = 0; j < N; ++j) right[j] = row<float>(w, r + j);
  for_lanes(0, x.cols, [&](std::int64_t c, int n) {
    vf b[N];
    for (int j = 0; j < N; ++j) b[j] = load_some(right[j] + c, n);
    for (int i = 0; i < M; ++i) {
      vf a = load_some(left[i] + c, n);
      if (mask != nullptr) a = keep(a, mask + (t + i) * mask_stride + c / 8);
      for (int j = 0; j < N; ++j) acc[i][j] += a * b[j];
    }
  });
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) row<float>(out, t + i)[r + j] = sum(acc[i][j]) * factor;
}

void skinny_dot(const Tensor& x, const Tensor& w, float factor, const std::uint8_t* mask, std::int64_t mask_stride,
                const Tensor& out) {
  with_float(x.dtype, [&]<class T>() {
    const auto rows_of = [&]<int M>(std::int64_t t) {
      std::int64_t r = 0;
      for (; r + 4 <= w.rows; r += 4) dot_patch<T, M, 4>(x, w, factor, mask, mask_stride, out, t, r);
      for (; r < w.rows; ++r) dot_patch<T, M, 1>(x, w, factor, mask, mask_stride, out, t, r);
    };
    std::int64_t t = 0;
    for (; t + kRows <= x.rows; t += kRows) rows_of.template operator()<kRows>(t);
    for (; t < x.rows; ++t) rows_of.template operator()<1>(t);
  });
}

template <class T, int R, int N>
inline void outer_patch(const Tensor& inner, const Tensor& x, float factor, const std::uint8_t* mask,
                        std::int64_t mask_stride, const Tensor& acc, std::int64_t r, std::int64_t c, int count,
                        std::int64_t begin, std::int64_t end) {
  vf total[R][N];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) total[i][j] = splat(0);
  for (std::int64_t t = begin; t < end; ++t) {
    const float* left = row<float>(inner, t) + r;
    const T* right = row<T>(x, t) + c;
    vf v[N];
    for (int j = 0; j < N; ++j) {
      v[j] = load_some(right + j * kLanes, count);
      if (mask != nullptr) v[j] = keep(v[j], mask + t * mask_stride + (c + j * kLanes) / 8);
    }
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < N; ++j) total[i][j] += left[i] * v[j];
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < N; ++j) {
      float* out = row<float>(acc, r + i) + c + j * kLanes;
      store_some(out, load_some(out, count) + total[i][j] * factor, count);
    }
}

void skinny_outer(const Tensor& inner, const Tensor& x, float factor, const std::uint8_t* mask, std::int64_t mask_stride,
                  const Tensor& acc) {
  constexpr std::int64_t kTokens = 64;  // a block of x stays in the cache for all column patches
  with_float(x.dtype, [&]<class T>() {
    for (std::int64_t begin = 0; begin < x.rows; begin += kTokens) {
      const std::int64_t end = std::min(begin + kTokens, x.rows);
      const auto columns = [&]<int N>(std::int64_t c, int count) {
        std::int64_t r = 0;
        for (; r + 8 <= acc.rows; r += 8)
          outer_patch<T, 8, N>(inner, x, factor, mask, mask_stride, acc, r, c, count, begin, end);
        for (; r < acc.rows; ++r)
          outer_patch<T, 1, N>(inner, x, factor, mask, mask_stride, acc, r, c, count, begin, end);
      };
      std::int64_t c = 0;
      for (; c + 2 * kLanes <= x.cols; c += 2 * kLanes) columns.template operator()<2>(c, kLanes);
      for_lanes(c, x.cols, [&](std::int64_t at, int n) { columns.template operator()<1>(at, n); });
    }
  });
}

}  // namespace

void fill_linear(Kernels& table) {
  table.finish_tile = finish_tile;
  table.dropout_mask = dropout_mask;
  table.skinny_dot = skinny_dot;
  table.skinny_outer = skinny_outer;
}

}  // namespace pipelora::PIPELORA_ISA
