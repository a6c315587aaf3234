// Gates on heads, and the heads of latent attention: mixer_calls.h has the formulas.
#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// body(row, first column) of every head.
template <class Body>
void for_heads(const Tensor& x, std::int64_t head_dim, Body&& body) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (std::int64_t c = 0; c < x.cols; c += head_dim) body(t, c);
}

void head_gate_forward(const HeadGate& call) {
  const std::int64_t e = call.head_dim;
  const float* weight = call.weight.as<float>();
  with_float(call.x.dtype, [&]<class T>() {
    for_heads(call.x, e, [&](std::int64_t t, std::int64_t first) {
      const T *x = row<T>(call.x, t) + first, *gate = row<T>(call.gate, t) + first;
      T* y = row<T>(call.y, t) + first;
      const float r = weight != nullptr ? inverse_rms(x, e, call.rule.eps) : 1.0f;
      for_lanes(0, e, [&](std::int64_t c, int n) {
        const vf g = load_some(gate + c, n), share = sigmoid(g), in = load_some(x + c, n);
        store_some(y + c, weight != nullptr ? in * r * load_some(weight + c, n) * (g * share) : in * share, n);
      });
    });
  });
}

// y = r w x s(g): with u = w dy s, dx = r u - x r³ mean(u x), dgate = dy r w x s'. Without a norm r = w = 1 and dx = u.
void head_gate_backward(const HeadGateBackward& call) {
  const std::int64_t e = call.head_dim;
  const float* weight = call.weight.as<float>();
  with_float(call.x.dtype, [&]<class T>() {
    for_heads(call.x, e, [&](std::int64_t t, std::int64_t first) {
      const T *x = row<T>(call.x, t) + first, *gate = row<T>(call.gate, t) + first, *dy = row<T>(call.dy, t) + first;
      T *dx = row<T>(call.dx, t) + first, *dgate = row<T>(call.dgate, t) + first;
      if (weight == nullptr) {
        for_lanes(0, e, [&](std::int64_t c, int n) {
          const vf share = sigmoid(load_some(gate + c, n)), grad = load_some(dy + c, n), in = load_some(x + c, n);
          store_some(dgate + c, grad * in * share * (1.0f - share), n);
          store_some(dx + c, grad * share, n);
        });
        return;
      }
      const float r = inverse_rms(x, e, call.rule.eps);
      vf along = splat(0);
      for_lanes(0, e, [&](std::int64_t c, int n) {
        const vf g = load_some(gate + c, n);
        along += load_some(weight + c, n) * load_some(dy + c, n) * (g * sigmoid(g)) * load_some(x + c, n);
      });
      const float pull = r * r * r * sum(along) / static_cast<float>(e);
      for_lanes(0, e, [&](std::int64_t c, int n) {
        const vf g = load_some(gate + c, n), share = sigmoid(g), in = load_some(x + c, n), w = load_some(weight + c, n), grad = load_some(dy + c, n);
        store_some(dgate + c, grad * r * w * in * (share + g * share * (1.0f - share)), n);
        store_some(dx + c, r * w * grad * (g * share) - in * pull, n);
      });
    });
  });
}

/// Columns [0, n) of a row turn by cos and sin of its table's row, forth or (`back`) back; `to` may be `from`.
template <class T>
void turn(const T* from, T* to, const float* table, std::int64_t n, bool interleaved, bool back) {
  const std::int64_t half = n / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
    const float a = to_float(from[first]), b = to_float(from[second]);
    const float cos = table[i], sin = back ? -table[half + i] : table[half + i];
    store_some(to + first, splat(a * cos - b * sin), 1);
    store_some(to + second, splat(b * cos + a * sin), 1);
  }
}

template <class T>
void copy_columns(const T* from, T* to, std::int64_t n) {
  std::memmove(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

template <class Call>
const float* table_row(const Call& call, std::int64_t t) {
  return call.rope ? row<float>(call.rope, call.rope_row->host[static_cast<std::size_t>(t)]) : nullptr;
}

void latent_heads_forward(const LatentHeads& call, std::int64_t begin, std::int64_t end) {
  const LatentShape& s = call.shape;
  with_float(call.q.dtype, [&]<class T>() {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* table = table_row(call, t);
      const T *q = row<T>(call.q, t), *expanded = row<T>(call.expanded, t), *shared = row<T>(call.shared, t);
      T *q_out = row<T>(call.q_out, t), *k_out = row<T>(call.k_out, t), *v_out = row<T>(call.v_out, t);
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const std::int64_t head = h * s.head_dim(), turning = head + s.plain;
        const T* own = expanded + h * (s.plain + s.value);
        copy_columns(q + head, q_out + head, s.head_dim());
        copy_columns(own, k_out + head, s.plain);
        copy_columns(own + s.plain, v_out + h * s.value, s.value);
        copy_columns(shared, k_out + turning, s.turning);
        if (table == nullptr) continue;
        turn(q_out + turning, q_out + turning, table, s.turning, call.interleaved, false);
        turn(k_out + turning, k_out + turning, table, s.turning, call.interleaved, false);
      }
    }
  });
}

void latent_heads_backward(const LatentHeadsBackward& call, std::int64_t begin, std::int64_t end) {
  const LatentShape& s = call.shape;
  with_float(call.dq.dtype, [&]<class T>() {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* table = table_row(call, t);
      const T *dq_out = row<T>(call.dq_out, t), *dk_out = row<T>(call.dk_out, t), *dv_out = row<T>(call.dv_out, t);
      T *dq = row<T>(call.dq, t), *dexpanded = row<T>(call.dexpanded, t), *dshared = row<T>(call.dshared, t);
      for (std::int64_t h = 0; h < s.heads; ++h) {
        const std::int64_t head = h * s.head_dim(), turning = head + s.plain;
        T* own = dexpanded + h * (s.plain + s.value);
        copy_columns(dq_out + head, dq + head, s.head_dim());
        if (table != nullptr) turn(dq + turning, dq + turning, table, s.turning, call.interleaved, true);
        copy_columns(dk_out + head, own, s.plain);
        copy_columns(dv_out + h * s.value, own + s.plain, s.value);
      }
      // The sum over heads, then turned back: a turn is the same for all of them.
      const std::int64_t half = s.turning / 2;
      for (std::int64_t i = 0; i < half; ++i) {
        const std::int64_t first = call.interleaved ? 2 * i : i, second = call.interleaved ? 2 * i + 1 : half + i;
        float a = 0, b = 0;
        for (std::int64_t h = 0; h < s.heads; ++h) {
          a += to_float(dk_out[h * s.head_dim() + s.plain + first]);
          b += to_float(dk_out[h * s.head_dim() + s.plain + second]);
        }
        const float cos = table != nullptr ? table[i] : 1.0f, sin = table != nullptr ? table[half + i] : 0.0f;
        store_some(dshared + first, splat(a * cos + b * sin), 1);
        store_some(dshared + second, splat(b * cos - a * sin), 1);
      }
    }
  });
}

}  // namespace

void fill_heads(Kernels& table) {
  table.head_gate_forward = head_gate_forward;
  table.head_gate_backward = head_gate_backward;
  table.latent_heads_forward = latent_heads_forward;
  table.latent_heads_backward = latent_heads_backward;
}

}  // namespace pipelora::PIPELORA_ISA
