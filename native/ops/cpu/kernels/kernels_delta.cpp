// The short convolution and the gated delta rule, a row and a head (or some channels) at a time: mixer_calls.h has the formulas.
//
// The rule's backward pass, with P = exp(g) S_before, d = beta (v - Pᵀ k), S = P + k dᵀ, out = Sᵀ q, and G the gradient of S from what comes later:
//
//   G += q doutᵀ;  dq = S dout;  dd = Gᵀ k;  dk = G d;  dv = beta dd;  dbeta = dd · (v - Pᵀ k);  dk -= P dv;  dP = G - k dvᵀ;
//   dg = sum(dP P);  G_before = exp(g) dP
//
// P of every token is needed from the last to the first: states of every n-th token are kept, and those between are made again, n ~ sqrt(tokens).
#include <algorithm>

#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"

namespace pipelora::PIPELORA_ISA {

namespace {

constexpr float kLengthEps = 1e-6f;

std::int64_t padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct RowRange {
  std::int64_t begin, tokens;
  bool continued;  // tokens came before
};
RowRange row_range(const Sequences& s, std::int64_t sequence) {
  const auto at = static_cast<std::size_t>(sequence);
  const std::int64_t begin = s.cu_queries.host[at], tokens = s.cu_queries.host[at + 1] - begin;
  return {begin, tokens, s.key_length.host[at] > tokens};
}

/// Channels [first, first + count) of a row, count at most kConvChannels.
void short_conv_forward(const ShortConv& call, std::int64_t sequence, std::int64_t first, std::int64_t count, Scratch& scratch) {
  const std::int64_t taps = call.weight.cols, before = taps - 1, width = padded(count), channels = call.x.cols;
  const RowRange range = row_range(*call.sequences, sequence);
  float* weight = scratch.floats(0, static_cast<std::size_t>((2 * taps) * width));  // [taps, width]
  float* last = weight + taps * width;                                              // a ring of inputs, token t's in row t mod taps
  std::fill(weight, weight + 2 * taps * width, 0.0f);
  for (std::int64_t c = 0; c < count; ++c)
    for (std::int64_t j = 0; j < taps; ++j) weight[j * width + c] = row<float>(call.weight, first + c)[j];
  float* state = call.state ? row<float>(call.state, sequence) : nullptr;
  if (state != nullptr && range.continued)
    for (std::int64_t j = 0; j < before; ++j) std::copy_n(state + j * channels + first, count, last + (j + 1) * width);
  with_float(call.x.dtype, [&]<class T>() {
    for (std::int64_t t = 0; t < range.tokens; ++t) {
      const T* x = row<T>(call.x, range.begin + t) + first;
      T* y = row<T>(call.y, range.begin + t) + first;
      for_lanes(0, count, [&](std::int64_t c, int n) {
        store(last + t % taps * width + c, load_some(x + c, n));
        vf sum = splat(0);
        for (std::int64_t j = 0; j < taps; ++j) sum += load(weight + j * width + c) * load(last + (t + 1 + j) % taps * width + c);
        store_some(y + c, sum * sigmoid(sum), n);
      });
    }
  });
  if (state == nullptr) return;
  for (std::int64_t j = 0; j < before; ++j) std::copy_n(last + (range.tokens + 1 + j) % taps * width, count, state + j * channels + first);
}

void short_conv_backward(const ShortConvBackward& call, std::int64_t sequence, std::int64_t first, std::int64_t count, Scratch& scratch) {
  const std::int64_t taps = call.weight.cols, width = padded(count);
  const RowRange range = row_range(*call.sequences, sequence);
  float* weight = scratch.floats(0, static_cast<std::size_t>(2 * taps * width));
  float* pre_silu = weight + taps * width;  // a ring of gradients before SiLU, token t's in row t mod taps
  std::fill(weight, weight + 2 * taps * width, 0.0f);
  for (std::int64_t c = 0; c < count; ++c)
    for (std::int64_t j = 0; j < taps; ++j) weight[j * width + c] = row<float>(call.weight, first + c)[j];
  with_float(call.x.dtype, [&]<class T>() {
    for (std::int64_t t = range.tokens; t-- > 0;) {
      const T* dy = row<T>(call.dy, range.begin + t) + first;
      T* dx = row<T>(call.dx, range.begin + t) + first;
      for_lanes(0, count, [&](std::int64_t c, int n) {
        vf sum = splat(0);
        for (std::int64_t j = std::max<std::int64_t>(0, taps - 1 - t); j < taps; ++j)
          sum += load(weight + j * width + c) * load_some(row<T>(call.x, range.begin + t + j - (taps - 1)) + first + c, n);
        const vf share = sigmoid(sum);
        store(pre_silu + t % taps * width + c, load_some(dy + c, n) * (share + sum * share * (1.0f - share)));
        vf gradient = splat(0);
        for (std::int64_t ahead = 0; ahead < std::min(taps, range.tokens - t); ++ahead)
          gradient += load(weight + (taps - 1 - ahead) * width + c) * load(pre_silu + (t + ahead) % taps * width + c);
        store_some(dx + c, gradient, n);
      });
    }
  });
}

/// One token of one value head: k and q at length 1, q scaled too; v; what b and a make.
struct Step {
  float *q, *k, *v;  // padded, zeros behind the end
  float q_length, k_length;  // what q and k were multiplied by
  float beta, decay;         // decay = exp(g)
  float dg_da;
};

template <class T>
float normalise(const T* from, std::int64_t n, float factor, float* to) {
  vf squares = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) {
    const vf x = load_some(from + c, count);
    store(to + c, x);
    squares += x * x;
  });
  const float length = factor / std::sqrt(sum(squares) + kLengthEps);
  for (std::int64_t c = 0; c < padded(n); c += kLanes) store(to + c, load(to + c) * length);
  return length;
}

template <class T, class Call>
void read_step(const Call& call, std::int64_t token, std::int64_t head, Step& step) {
  const DeltaShape& s = call.shape;
  const std::int64_t key = head / (s.value_heads / s.key_heads);
  const T* in = row<T>(call.qkv, token);
  step.q_length = normalise(in + key * s.key_dim, s.key_dim, 1.0f / std::sqrt(static_cast<float>(s.key_dim)), step.q);
  step.k_length = normalise(in + s.keys() + key * s.key_dim, s.key_dim, 1.0f, step.k);
  const T* v = in + 2 * s.keys() + head * s.value_dim;
  for_lanes(0, s.value_dim, [&](std::int64_t c, int n) { store(step.v + c, load_some(v + c, n)); });
  const float b = to_float(row<T>(call.b, token)[head]);
  const float z = to_float(row<T>(call.a, token)[head]) + call.dt_bias.template as<float>()[head];
  const float rate = std::exp(call.a_log.template as<float>()[head]);
  step.beta = 1.0f / (1.0f + std::exp(-b));
  const float soft = z > 20.0f ? z : std::log1p(std::exp(z));
  step.decay = std::exp(-rate * soft);
  step.dg_da = -rate / (1.0f + std::exp(-z));
}

/// P = decay S in place of S; then d = beta (v - Pᵀ k), in `delta`; columns [c, c + N kLanes).
template <int N>
void decay_columns(const Step& step, float* state, float* delta, std::int64_t key_dim, std::int64_t width, std::int64_t c) {
  vf held[N];
  for (int j = 0; j < N; ++j) held[j] = splat(0);
  for (std::int64_t i = 0; i < key_dim; ++i) {
    float* at = state + i * width + c;
    for (int j = 0; j < N; ++j) {
      const vf p = load(at + j * kLanes) * step.decay;
      store(at + j * kLanes, p);
      held[j] += step.k[i] * p;
    }
  }
  for (int j = 0; j < N; ++j) store(delta + c + j * kLanes, step.beta * (load(step.v + c + j * kLanes) - held[j]));
}
/// S = P + k dᵀ, and Sᵀ q in `out` where it is wanted.
template <int N>
void update_columns(const Step& step, float* state, const float* delta, float* out, std::int64_t key_dim, std::int64_t width, std::int64_t c) {
  vf result[N], d[N];
  for (int j = 0; j < N; ++j) {
    result[j] = splat(0);
    d[j] = load(delta + c + j * kLanes);
  }
  for (std::int64_t i = 0; i < key_dim; ++i) {
    float* at = state + i * width + c;
    for (int j = 0; j < N; ++j) {
      const vf s = load(at + j * kLanes) + step.k[i] * d[j];
      store(at + j * kLanes, s);
      result[j] += step.q[i] * s;
    }
  }
  if (out == nullptr) return;
  for (int j = 0; j < N; ++j) store(out + c + j * kLanes, result[j]);
}

void decay_state(const Step& step, float* state, float* delta, std::int64_t key_dim, std::int64_t width) {
  std::int64_t c = 0;
  for (; c + 4 * kLanes <= width; c += 4 * kLanes) decay_columns<4>(step, state, delta, key_dim, width, c);
  for (; c < width; c += kLanes) decay_columns<1>(step, state, delta, key_dim, width, c);
}
void update_state(const Step& step, float* state, const float* delta, float* out, std::int64_t key_dim, std::int64_t width) {
  std::int64_t c = 0;
  for (; c + 4 * kLanes <= width; c += 4 * kLanes) update_columns<4>(step, state, delta, out, key_dim, width, c);
  for (; c < width; c += kLanes) update_columns<1>(step, state, delta, out, key_dim, width, c);
}

/// Scratch of one step.
Step step_in(float* at, std::int64_t key_width, std::int64_t value_width) {
  Step step{};
  step.q = at;
  step.k = at + key_width;
  step.v = at + 2 * key_width;
  std::fill(at, at + 2 * key_width + value_width, 0.0f);
  return step;
}

void delta_forward(const DeltaRule& call, std::int64_t sequence, std::int64_t head, Scratch& scratch) {
  const DeltaShape& s = call.shape;
  const std::int64_t dk = s.key_dim, dv = s.value_dim, key_width = padded(dk), width = padded(dv);
  const RowRange range = row_range(*call.sequences, sequence);
  float* state = scratch.floats(0, static_cast<std::size_t>(dk * width + 2 * key_width + 3 * width));
  Step step = step_in(state + dk * width, key_width, width);
  float *delta = step.v + width, *out = delta + width;
  std::fill(state, state + dk * width, 0.0f);
  float* kept = call.state ? row<float>(call.state, sequence) + head * dk * dv : nullptr;
  if (kept != nullptr && range.continued)
    for (std::int64_t i = 0; i < dk; ++i) std::copy_n(kept + i * dv, dv, state + i * width);
  with_float(call.qkv.dtype, [&]<class T>() {
    for (std::int64_t t = range.begin; t < range.begin + range.tokens; ++t) {
      read_step<T>(call, t, head, step);
      decay_state(step, state, delta, dk, width);
      update_state(step, state, delta, out, dk, width);
      T* to = row<T>(call.out, t) + head * dv;
      for_lanes(0, dv, [&](std::int64_t c, int n) { store_some(to + c, load(out + c), n); });
    }
  });
  if (kept == nullptr) return;
  for (std::int64_t i = 0; i < dk; ++i) std::copy_n(state + i * width, dv, kept + i * dv);
}

/// sum over c of a[c] b[c], whole vectors.
float dot(const float* a, const float* b, std::int64_t width) {
  vf total = splat(0);
  for (std::int64_t c = 0; c < width; c += kLanes) total += load(a + c) * load(b + c);
  return sum(total);
}

/// Gradients of one token's step, f32.
struct StepGrad {
  float *q, *k, *v;
  float beta, g;
};

/// `dstate` becomes the gradient of the state before the token, `p` is this token's P.
void step_back(const Step& step, const float* p, const float* delta, const float* dout, float* dstate, StepGrad& grad, float* room,
               std::int64_t dk, std::int64_t width) {
  const float along = dot(delta, dout, width);
  std::fill(room, room + width, 0.0f);
  for (std::int64_t i = 0; i < dk; ++i) {
    float* g = dstate + i * width;
    vf of_k = splat(0), of_q = splat(0);
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const vf d = load(g + c) + step.q[i] * load(dout + c);
      store(g + c, d);
      store(room + c, load(room + c) + step.k[i] * d);
      of_k += d * load(delta + c);
      of_q += load(p + i * width + c) * load(dout + c);
    }
    grad.k[i] = sum(of_k);
    grad.q[i] = sum(of_q) + step.k[i] * along;
  }
  // room is the gradient of d; delta / beta = v - Pᵀ k.
  grad.beta = step.beta > 0.0f ? dot(room, delta, width) / step.beta : 0.0f;
  for (std::int64_t c = 0; c < width; c += kLanes) store(grad.v + c, step.beta * load(room + c));
  vf of_g = splat(0);
  for (std::int64_t i = 0; i < dk; ++i) {
    float* g = dstate + i * width;
    vf of_k = splat(0);
    for (std::int64_t c = 0; c < width; c += kLanes) {
      const vf held = load(p + i * width + c), dv = load(grad.v + c), dp = load(g + c) - step.k[i] * dv;
      of_k += held * dv;
      of_g += dp * held;
      store(g + c, step.decay * dp);
    }
    grad.k[i] -= sum(of_k);
  }
  grad.g = sum(of_g);
}

/// One row and one key head with its value heads.
void delta_backward(const DeltaRuleBackward& call, std::int64_t sequence, std::int64_t key, Scratch& scratch) {
  const DeltaShape& s = call.shape;
  const std::int64_t dk = s.key_dim, dv = s.value_dim, key_width = padded(dk), width = padded(dv), matrix = dk * width, group = s.value_heads / s.key_heads;
  const RowRange range = row_range(*call.sequences, sequence);
  const auto every = static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(range.tokens))));
  const std::int64_t pieces = (range.tokens + every - 1) / every;

  float* starts = scratch.floats(0, static_cast<std::size_t>((pieces + every + 2) * matrix));  // S before each piece
  float* held = starts + pieces * matrix;                                                        // P of each token of a piece
  float* state = held + every * matrix;
  float* dstate = state + matrix;
  const std::int64_t step_floats = 2 * key_width + width;
  float* steps = scratch.floats(1, static_cast<std::size_t>(every * (step_floats + width) + step_floats + 2 * width));
  float* deltas = steps + every * step_floats;
  float* of_step = deltas + every * width;
  StepGrad grad{of_step, of_step + key_width, of_step + 2 * key_width, 0, 0};
  float *dout = of_step + step_floats, *room = dout + width;
  float* sums = scratch.floats(2, static_cast<std::size_t>(range.tokens * 2 * key_width));  // gradients of q and k over the value heads
  std::fill(sums, sums + range.tokens * 2 * key_width, 0.0f);
  std::fill(of_step, of_step + step_floats + 2 * width, 0.0f);
  std::vector<Step> piece_steps(static_cast<std::size_t>(every));
  for (std::int64_t i = 0; i < every; ++i) piece_steps[static_cast<std::size_t>(i)] = step_in(steps + i * step_floats, key_width, width);

  with_float(call.qkv.dtype, [&]<class T>() {
    for (std::int64_t head = key * group; head < (key + 1) * group; ++head) {
      std::fill(state, state + matrix, 0.0f);
      for (std::int64_t t = 0; t < range.tokens; ++t) {
        if (t % every == 0) std::copy_n(state, matrix, starts + t / every * matrix);
        Step& step = piece_steps[0];
        read_step<T>(call, range.begin + t, head, step);
        decay_state(step, state, deltas, dk, width);
        update_state(step, state, deltas, nullptr, dk, width);
      }
      std::fill(dstate, dstate + matrix, 0.0f);
      for (std::int64_t piece = pieces; piece-- > 0;) {
        const std::int64_t first = piece * every, count = std::min(every, range.tokens - first);
        std::copy_n(starts + piece * matrix, matrix, state);
        for (std::int64_t i = 0; i < count; ++i) {
          Step& step = piece_steps[static_cast<std::size_t>(i)];
          read_step<T>(call, range.begin + first + i, head, step);
          decay_state(step, state, deltas + i * width, dk, width);
          std::copy_n(state, matrix, held + i * matrix);
          update_state(step, state, deltas + i * width, nullptr, dk, width);
        }
        for (std::int64_t i = count; i-- > 0;) {
          const std::int64_t t = first + i, token = range.begin + t;
          const Step& step = piece_steps[static_cast<std::size_t>(i)];
          const T* from = row<T>(call.dout, token) + head * dv;
          for_lanes(0, dv, [&](std::int64_t c, int n) { store(dout + c, load_some(from + c, n)); });
          step_back(step, held + i * matrix, deltas + i * width, dout, dstate, grad, room, dk, width);
          float* sum_q = sums + t * 2 * key_width;
          for (std::int64_t c = 0; c < 2 * key_width; c += kLanes) store(sum_q + c, load(sum_q + c) + load(of_step + c));
          T* to = row<T>(call.dqkv, token) + 2 * s.keys() + head * dv;
          for_lanes(0, dv, [&](std::int64_t c, int n) { store_some(to + c, load(grad.v + c), n); });
          store_some(row<T>(call.db, token) + head, splat(grad.beta * step.beta * (1.0f - step.beta)), 1);
          store_some(row<T>(call.da, token) + head, splat(grad.g * step.dg_da), 1);
        }
      }
    }
    // Through the lengths: y = x r, dx = r (dy - y (y · dy) / factor²), y of length `factor`.
    Step& step = piece_steps[0];
    for (std::int64_t t = 0; t < range.tokens; ++t) {
      read_step<T>(call, range.begin + t, key * group, step);
      const auto through = [&](const float* y, float length, float factor, const float* dy, std::int64_t column) {
        const float pull = dot(y, dy, key_width) / (factor * factor);
        T* to = row<T>(call.dqkv, range.begin + t) + column;
        for_lanes(0, dk, [&](std::int64_t c, int n) { store_some(to + c, length * (load(dy + c) - load(y + c) * pull), n); });
      };
      const float* dq = sums + t * 2 * key_width;
      through(step.q, step.q_length, 1.0f / std::sqrt(static_cast<float>(dk)), dq, key * dk);
      through(step.k, step.k_length, 1.0f, dq + key_width, s.keys() + key * dk);
    }
  });
}

}  // namespace

void fill_delta(Kernels& table) {
  table.short_conv_forward = short_conv_forward;
  table.short_conv_backward = short_conv_backward;
  table.delta_forward = delta_forward;
  table.delta_backward = delta_backward;
}

}  // namespace pipelora::PIPELORA_ISA
