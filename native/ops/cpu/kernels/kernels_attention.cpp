// Attention over flat tokens, blocked as in FlashAttention (Dao et al., 2022; Dao, 2023): no T x T matrix is kept.
//
// Gradient contract, P = exp(scale * q kᵀ - lse), delta = rowsum(dout * out):
//   dv = Pᵀ dout;  dS = scale * P * (dout vᵀ - delta);  dq = dS k;  dk = dSᵀ q.
// Under a cap P is of the capped scores s, and dS is multiplied by 1 - (s / cap)².
#include <algorithm>

#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

constexpr std::int64_t kBlock = 64;
static_assert(kBlock % kLanes == 0);

std::int64_t padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

/// C[m, n] (+)= A[m, k] B[k, n]; A's element (i, p) is a[i * a_row + p * a_col]; n is whole vectors.
template <int M, int N>
inline void product_patch(std::int64_t k, const float* a, std::int64_t a_row, std::int64_t a_col, const float* b,
                          std::int64_t b_row, float* c, std::int64_t c_row, bool accumulate) {
  vf acc[M][N];
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) acc[i][j] = accumulate ? load(c + i * c_row + j * kLanes) : splat(0);
  for (std::int64_t p = 0; p < k; ++p) {
    vf right[N];
    for (int j = 0; j < N; ++j) right[j] = load(b + p * b_row + j * kLanes);
    for (int i = 0; i < M; ++i) {
      const float left = a[i * a_row + p * a_col];
      for (int j = 0; j < N; ++j) acc[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) store(c + i * c_row + j * kLanes, acc[i][j]);
}

#if defined(__AVX512F__)
constexpr int kPatchRows = 6, kPatchVectors = 4;
#else
constexpr int kPatchRows = 4, kPatchVectors = 2;
#endif

template <int M>
void product_rows(std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row, std::int64_t a_col, const float* b,
                  std::int64_t b_row, float* c, std::int64_t c_row, bool accumulate) {
  std::int64_t j = 0;
  for (; j + kPatchVectors * kLanes <= n; j += kPatchVectors * kLanes)
    product_patch<M, kPatchVectors>(k, a, a_row, a_col, b + j, b_row, c + j, c_row, accumulate);
  if constexpr (kPatchVectors > 3)
    if (j + 3 * kLanes <= n) {
      product_patch<M, 3>(k, a, a_row, a_col, b + j, b_row, c + j, c_row, accumulate);
      j += 3 * kLanes;
    }
  if constexpr (kPatchVectors > 2)
    if (j + 2 * kLanes <= n) {
      product_patch<M, 2>(k, a, a_row, a_col, b + j, b_row, c + j, c_row, accumulate);
      j += 2 * kLanes;
    }
  if (j < n) product_patch<M, 1>(k, a, a_row, a_col, b + j, b_row, c + j, c_row, accumulate);
}

/// What of a product is needed for some rows of C: columns [0, n), terms [k_begin, k_end).
struct Extent {
  std::int64_t n, k_begin, k_end;
};

/// `extent(first, last)` bounds a patch of rows: what causality makes zero is left out.
template <class F>
void product(std::int64_t m, F&& extent, const float* a, std::int64_t a_row, std::int64_t a_col, const float* b,
             std::int64_t b_row, float* c, std::int64_t c_row, bool accumulate) {
  const auto patch = [&]<int M>(std::int64_t i) {
    const Extent e = extent(i, i + M - 1);
    product_rows<M>(e.n, e.k_end - e.k_begin, a + i * a_row + e.k_begin * a_col, a_row, a_col, b + e.k_begin * b_row, b_row,
                    c + i * c_row, c_row, accumulate);
  };
  std::int64_t i = 0;
  for (; i + kPatchRows <= m; i += kPatchRows) patch.template operator()<kPatchRows>(i);
  for (; i < m; ++i) patch.template operator()<1>(i);
}

/// Rows of a tensor's columns [first, first + e) as f32 [count, width], zeros behind e.
template <class T>
void gather(const Tensor& from, std::int64_t first_row, std::int64_t count, std::int64_t first, std::int64_t e, float* to,
            std::int64_t width, float factor) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T* in = row<T>(from, first_row + i) + first;
    float* out = to + i * width;
    for_lanes(0, e, [&](std::int64_t c, int n) { store(out + c, load_some(in + c, n) * factor); });
  }
}

/// A kLanes x kLanes square, rows for columns: lanes that differ in one bit of their number change places, bit by bit.
inline void transpose(vf (&v)[kLanes]) {
  for (int width = 1; width < kLanes; width *= 2) {
    vi low, high;  // of the pair (a, b): lanes to take, b's counted from kLanes
    for (int l = 0; l < kLanes; ++l) {
      low[l] = (l & width) != 0 ? kLanes + l - width : l;
      high[l] = (l & width) != 0 ? kLanes + l : l + width;
    }
    for (int i = 0; i < kLanes; ++i) {
      if ((i & width) != 0) continue;
      const vf a = v[i], b = v[i + width];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + width] = __builtin_shuffle(a, b, high);
    }
  }
}

/// The same transposed: [e, kBlock], zeros behind count.
template <class T>
void gather_transposed(const Tensor& from, std::int64_t first_row, std::int64_t count, std::int64_t first, std::int64_t e,
                       float* to) {
  for (std::int64_t i = 0; i < padded(count); i += kLanes)
    for_lanes(0, e, [&](std::int64_t c, int n) {
      vf square[kLanes];
      for (int l = 0; l < kLanes; ++l)
        square[l] = i + l < count ? load_some(row<T>(from, first_row + i + l) + first + c, n) : splat(0);
      transpose(square);
      for (int l = 0; l < n; ++l) store(to + (c + l) * kBlock + i, square[l]);
    });
}

/// Which keys of a block a query sees, as columns [begin, end) of the block.
struct Seen {
  std::int64_t begin, end;
};
inline Seen seen(std::int64_t position, std::int64_t key_block, std::int64_t keys, std::int64_t window) {
  const std::int64_t begin = window > 0 ? std::max<std::int64_t>(0, position - window + 1 - key_block) : 0;
  const std::int64_t end = std::min(keys, position + 1 - key_block);
  return {std::min(begin, keys), std::max<std::int64_t>(end, 0)};
}

/// Scores [0, count), whole vectors, become cap tanh(score / cap).
inline void cap_scores(float* scores, std::int64_t count, float cap) {
  for (std::int64_t j = 0; j < count; j += kLanes) store(scores + j, tanh(load(scores + j) / cap) * cap);
}

template <class T>
void forward(const AttentionForward& call, std::int64_t sequence, std::int64_t head, Scratch& scratch) {
  const std::int64_t e = call.head_dim, width = padded(e), ev = call.value_width(), value_width = padded(ev);
  const std::int64_t kv = head / (call.q.cols / call.k.cols);
  const auto& cu = call.sequences->cu_queries.host;
  const std::int64_t begin = cu[sequence], queries = cu[sequence + 1] - begin;
  const std::int64_t key_start = call.sequences->key_start.host[sequence];
  const std::int64_t keys = call.sequences->key_length.host[sequence], offset = keys - queries;

  float* q = scratch.floats(0, static_cast<std::size_t>(kBlock * (width + 2 * value_width + kBlock + e + 2)));
  float* k_t = q + kBlock * width;
  float* v = k_t + kBlock * e;
  float* out = v + kBlock * value_width;
  float* s = out + kBlock * value_width;
  float* top = s + kBlock * kBlock;
  float* total = top + kBlock;
  const float lowest = -std::numeric_limits<float>::infinity();

  for (std::int64_t q0 = 0; q0 < queries; q0 += kBlock) {
    const std::int64_t m = std::min(kBlock, queries - q0);
    gather<T>(call.q, begin + q0, m, head * e, e, q, width, call.scale);
    std::fill(out, out + m * value_width, 0.0f);
    std::fill(top, top + m, lowest);
    std::fill(total, total + m, 0.0f);
    const std::int64_t first_seen = call.window > 0 ? std::max<std::int64_t>(0, offset + q0 - call.window + 1) : 0;
    for (std::int64_t k0 = first_seen / kBlock * kBlock; k0 < std::min(keys, offset + q0 + m); k0 += kBlock) {
      const std::int64_t n = std::min(kBlock, keys - k0);
      gather_transposed<T>(call.k, key_start + k0, n, kv * e, e, k_t);
      gather<T>(call.v, key_start + k0, n, kv * ev, ev, v, value_width, 1.0f);
      const auto last_seen = [&](std::int64_t i) { return seen(offset + q0 + i, k0, n, call.window).end; };
      product(m, [&](std::int64_t, std::int64_t last) { return Extent{padded(last_seen(last)), 0, e}; }, q, width, 1, k_t, kBlock, s,
              kBlock, false);
      for (std::int64_t i = 0; i < m; ++i) {
        float* p = s + i * kBlock;
        const Seen see = seen(offset + q0 + i, k0, n, call.window);
        if (call.cap > 0) cap_scores(p, padded(see.end), call.cap);
        for (std::int64_t j = 0; j < std::min(see.begin, n); ++j) p[j] = lowest;
        for (std::int64_t j = std::max(see.begin, see.end); j < padded(n); ++j) p[j] = lowest;
        vf largest = splat(top[i]);
        for (std::int64_t j = 0; j < see.end; j += kLanes) largest = max(load(p + j), largest);
        const float now = max_lane(largest);
        if (now == lowest) {
          std::fill(p, p + padded(n), 0.0f);
          continue;
        }
        const float rescale = top[i] == lowest ? 0.0f : std::exp(top[i] - now);
        vf row_sum = splat(0);
        std::int64_t j = 0;
        for (; j < see.end; j += kLanes) {
          const vf x = load(p + j);
          const vf weight = x == lowest ? splat(0) : exp(x - now);
          store(p + j, weight);
          row_sum += weight;
        }
        std::fill(p + std::min(j, padded(n)), p + padded(n), 0.0f);
        total[i] = total[i] * rescale + sum(row_sum);
        top[i] = now;
        if (rescale != 1.0f)
          for (std::int64_t c = 0; c < value_width; c += kLanes) store(out + i * value_width + c, load(out + i * value_width + c) * rescale);
      }
      product(m, [&](std::int64_t, std::int64_t last) { return Extent{value_width, 0, last_seen(last)}; }, s, kBlock, 1, v, value_width, out,
              value_width, true);
    }
    for (std::int64_t i = 0; i < m; ++i) {
      const float inverse = 1.0f / total[i];
      T* to = row<T>(call.out, begin + q0 + i) + head * ev;
      for_lanes(0, ev, [&](std::int64_t c, int n) { store_some(to + c, load(out + i * value_width + c) * inverse, n); });
      if (call.lse) row<float>(call.lse, head)[begin + q0 + i] = top[i] + std::log(total[i]);
    }
  }
}

template <class T>
void backward(const AttentionBackward& call, const Tensor& dq_sum, std::int64_t sequence, std::int64_t kv, Scratch& scratch) {
  const std::int64_t e = call.head_dim, width = padded(e), ev = call.value_width(), value_width = padded(ev);
  const std::int64_t group = call.q.cols / call.k.cols;
  const auto& cu = call.sequences->cu_queries.host;
  const std::int64_t begin = cu[sequence], tokens = cu[sequence + 1] - begin;

  float* q = scratch.floats(0, static_cast<std::size_t>(kBlock * (4 * width + 2 * value_width + e + ev + 2 * kBlock)));
  float* dout = q + kBlock * width;
  float* k = dout + kBlock * value_width;
  float* dk = k + kBlock * width;
  float* dv = dk + kBlock * width;
  float* dq = dv + kBlock * value_width;
  float* k_t = dq + kBlock * width;
  float* v_t = k_t + kBlock * e;
  float* p = v_t + kBlock * ev;
  float* ds = p + kBlock * kBlock;
  float* delta = scratch.floats(1, static_cast<std::size_t>(group * tokens));

  for (std::int64_t g = 0; g < group; ++g) {
    const std::int64_t column = (kv * group + g) * e, value_column = (kv * group + g) * ev;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const T *o = row<T>(call.out, begin + t) + value_column, *d = row<T>(call.dout, begin + t) + value_column;
      vf dot = splat(0);
      for_lanes(0, ev, [&](std::int64_t c, int n) { dot += load_some(o + c, n) * load_some(d + c, n); });
      delta[g * tokens + t] = sum(dot);
      float* to = row<float>(dq_sum, begin + t) + column;
      std::fill(to, to + e, 0.0f);
    }
  }

  for (std::int64_t k0 = 0; k0 < tokens; k0 += kBlock) {
    const std::int64_t n = std::min(kBlock, tokens - k0);
    gather<T>(call.k, begin + k0, n, kv * e, e, k, width, 1.0f);
    gather_transposed<T>(call.k, begin + k0, n, kv * e, e, k_t);
    gather_transposed<T>(call.v, begin + k0, n, kv * ev, ev, v_t);
    std::fill(dk, dk + n * width, 0.0f);
    std::fill(dv, dv + n * value_width, 0.0f);
    const std::int64_t last_query = call.window > 0 ? std::min(tokens, k0 + n - 1 + call.window) : tokens;
    for (std::int64_t g = 0; g < group; ++g) {
      const std::int64_t head = kv * group + g, column = head * e;
      for (std::int64_t q0 = k0; q0 < last_query; q0 += kBlock) {
        const std::int64_t m = std::min(kBlock, tokens - q0);
        gather<T>(call.q, begin + q0, m, column, e, q, width, call.scale);
        gather<T>(call.dout, begin + q0, m, head * ev, ev, dout, value_width, 1.0f);
        // Queries from the same place as the keys: row i sees keys up to i. Later blocks see all (but for the window).
        const auto last_seen = [&](std::int64_t i) { return seen(q0 + i, k0, n, call.window).end; };
        const auto scores = [&](std::int64_t, std::int64_t last) { return Extent{padded(last_seen(last)), 0, e}; };
        product(m, scores, q, width, 1, k_t, kBlock, p, kBlock, false);
        const auto dp_rows = [&](std::int64_t, std::int64_t last) { return Extent{padded(last_seen(last)), 0, ev}; };
        product(m, dp_rows, dout, value_width, 1, v_t, kBlock, ds, kBlock, false);
        for (std::int64_t i = 0; i < m; ++i) {
          float *pi = p + i * kBlock, *di = ds + i * kBlock;
          const Seen see = seen(q0 + i, k0, n, call.window);
          const float lse = row<float>(call.lse, head)[begin + q0 + i], shift = delta[g * tokens + q0 + i];
          if (call.cap > 0) cap_scores(pi, padded(see.end), call.cap);
          for (std::int64_t j = 0; j < see.end; j += kLanes) {
            const vf score = load(pi + j), weight = exp(score - lse);
            store(pi + j, weight);
            const vf ds_value = weight * (load(di + j) - shift);
            store(di + j, call.cap > 0 ? ds_value * (1.0f - (score / call.cap) * (score / call.cap)) : ds_value);
          }
          const auto blank = [&](std::int64_t from, std::int64_t to) {
            for (std::int64_t j = from; j < to; ++j) pi[j] = di[j] = 0;
          };
          blank(0, std::min(see.begin, n));
          blank(std::max(see.begin, see.end), padded(n));
        }
        const auto seen_by = [&](std::int64_t columns) {
          return [&, columns](std::int64_t first, std::int64_t) { return Extent{columns, std::min(m, std::max<std::int64_t>(0, k0 + first - q0)), m}; };
        };
        product(n, seen_by(value_width), p, 1, kBlock, dout, value_width, dv, value_width, true);
        product(n, seen_by(width), ds, 1, kBlock, q, width, dk, width, true);  // q carries the scale
        product(m, [&](std::int64_t, std::int64_t last) { return Extent{width, 0, last_seen(last)}; }, ds, kBlock, 1, k, width, dq, width,
                false);
        for (std::int64_t i = 0; i < m; ++i) {
          float* to = row<float>(dq_sum, begin + q0 + i) + column;
          for_lanes(0, e, [&](std::int64_t c, int count) {
            store_some(to + c, load_some(to + c, count) + load(dq + i * width + c) * call.scale, count);
          });
        }
      }
    }
    for (std::int64_t j = 0; j < n; ++j) {
      T *to_k = row<T>(call.dk, begin + k0 + j) + kv * e, *to_v = row<T>(call.dv, begin + k0 + j) + kv * ev;
      for_lanes(0, e, [&](std::int64_t c, int count) { store_some(to_k + c, load(dk + j * width + c), count); });
      for_lanes(0, ev, [&](std::int64_t c, int count) { store_some(to_v + c, load(dv + j * value_width + c), count); });
    }
  }
}

void attention_forward(const AttentionForward& call, std::int64_t sequence, std::int64_t head, Scratch& scratch) {
  with_float(call.q.dtype, [&]<class T>() { forward<T>(call, sequence, head, scratch); });
}

void attention_backward(const AttentionBackward& call, const Tensor& dq_sum, std::int64_t sequence, std::int64_t kv_head,
                        Scratch& scratch) {
  with_float(call.q.dtype, [&]<class T>() { backward<T>(call, dq_sum, sequence, kv_head, scratch); });
}

}  // namespace

void fill_attention(Kernels& table) {
  table.attention_forward = attention_forward;
  table.attention_backward = attention_backward;
}

}  // namespace pipelora::PIPELORA_ISA
