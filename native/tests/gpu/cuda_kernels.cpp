// The GPU's element-wise operations, norms, rotary, cross entropy and optimizer against plain references in float64; tokens drawn
// against the CPU's.
#include <algorithm>
#include <array>
#include <limits>

#include "ops/cpu/sampling.h"
#include "pipelora/core/e4m3.h"
#include "pipelora/core/error.h"
#include "tests/gpu/rotary_reference.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

struct GateMath {
  const char* name;
  Activation activation;
  double (*value)(double);
  double (*slope)(double);
};
double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
constexpr double kPi = 3.14159265358979323846;
double tanh_of(double x) { return std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x)); }
const GateMath kGates[] = {
    {"SiLU", Activation::silu, [](double x) { return x * sigmoid_of(x); }, [](double x) { return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x))); }},
    {"GELU", Activation::gelu, [](double x) { return x * (1 + std::erf(x / std::sqrt(2.0))) / 2; },
     [](double x) { return (1 + std::erf(x / std::sqrt(2.0))) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * kPi); }},
    {"GELU by tanh", Activation::gelu_tanh, [](double x) { return x * (1 + tanh_of(x)) / 2; },
     [](double x) { return (1 + tanh_of(x)) / 2 + x * (1 - tanh_of(x) * tanh_of(x)) / 2 * std::sqrt(2 / kPi) * (1 + 3 * 0.044715 * x * x); }},
};

/// Gates of many sizes: from where an activation is nothing to where it is its input.
void gates(Gpu& gpu, DType dtype, const GateMath& math, std::int64_t rows, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols) + ", " + math.name;
  const std::int64_t n = rows * cols;
  Values gate = random_values(n, 1.5, dtype, 1);
  const Values up = random_values(n, 1, dtype, 2), dact = random_values(n, 1, dtype, 3);
  for (std::size_t i = 0; i < gate.size(); i += 5) gate[i] = rounded(gate[i] * std::pow(2.0, static_cast<double>(i % 13) - 6), dtype);
  Values act(gate.size()), dgate(gate.size()), dup(gate.size());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    act[i] = math.value(gate[i]) * up[i];
    dup[i] = dact[i] * math.value(gate[i]);
    dgate[i] = dact[i] * up[i] * math.slope(gate[i]);
  }
  auto both = gpu.empty(dtype, rows, 2 * cols);
  const Tensor g = both.view.columns(0, cols), u = both.view.columns(cols, cols);
  gpu.ops->copy(gpu.put(gate, dtype, rows, cols), g);
  gpu.ops->copy(gpu.put(up, dtype, rows, cols), u);
  auto out = gpu.empty(dtype, rows, cols);
  gpu.ops->swiglu_forward(g, u, out, math.activation);
  compare(label("swiglu_forward", dtype, shape), gpu.get(out), act, limit_of(dtype));
  auto d = gpu.put(dact, dtype, rows, cols);
  gpu.ops->swiglu_backward(g, u, d, g, u, d, math.activation);
  compare(label("swiglu_backward act", dtype, shape), gpu.get(d), act, limit_of(dtype));
  compare(label("swiglu_backward dgate", dtype, shape), gpu.get(g), dgate, limit_of(dtype));
  compare(label("swiglu_backward dup", dtype, shape), gpu.get(u), dup, limit_of(dtype));
}

void elementwise(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols) {
  for (const GateMath& math : kGates) gates(gpu, dtype, math, rows, cols);
  const std::string shape = shape_text(rows, cols);
  const Values up = random_values(rows * cols, 1, dtype, 2);
  Indices picked;
  for (std::int64_t i = 0; i < rows; ++i) picked.host.push_back(static_cast<std::int32_t>((i * 7 + 3) % rows));
  std::vector<std::int32_t> unique(picked.host);
  gpu.upload(picked);
  auto gathered = gpu.empty(DType::f32, rows, cols);
  gpu.ops->gather_rows(gpu.put(up, dtype, rows, cols), picked, gathered);
  Values expected(up.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      expected[static_cast<std::size_t>(r * cols + c)] =
          up[static_cast<std::size_t>(picked.host[static_cast<std::size_t>(r)] * cols + c)];
  compare(label("gather_rows to float32", dtype, shape), gpu.get(gathered), expected, 1e-7);
  if (rows % 7 != 0) {  // the indices are a permutation
    auto scattered = gpu.empty(dtype, rows, cols);
    gpu.ops->scatter_rows(gathered, picked, 0.5f, scattered);
    Values half(up);
    for (double& v : half) v *= 0.5;
    compare(label("scatter_rows from float32", dtype, shape), gpu.get(scattered), half, 1e-2);
  }
}

/// Between number types, from and into wider matrices, with a factor; what stands behind the columns stays.
void copies(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t extra) {
  const Values values = random_values(rows * cols, 1, dtype, 14);
  Values expected(values);
  for (double& v : expected) v *= 0.5;
  for (const DType other : {DType::f32, DType::bf16}) {
    const auto from = gpu.put(values, dtype, rows, cols, extra), to = gpu.empty(other, rows, cols, 8);
    gpu.ops->copy(from, to);
    compare(label("copy", dtype, shape_text(rows, cols) + " to " + dtype_name(other)), gpu.get(to), values, other == dtype || other == DType::f32 ? 0 : 1e-2);
    const Values behind = gpu.get(to.buffer.tensor().columns(cols, 8));
    require(label("copy", dtype, shape_text(rows, cols) + " leaves what stands behind"), std::all_of(behind.begin(), behind.end(), [](double v) { return std::isnan(v); }));
  }
  Indices picked;
  for (std::int64_t i = 0; i < rows; ++i) picked.host.push_back(static_cast<std::int32_t>(rows - 1 - i));
  gpu.upload(picked);
  const auto turned = gpu.empty(DType::f32, rows, cols), back = gpu.empty(dtype, rows, cols);
  gpu.ops->gather_rows(gpu.put(values, dtype, rows, cols, extra), picked, turned);
  gpu.ops->scatter_rows(turned, picked, 0.5f, back);
  compare(label("rows there and back", dtype, shape_text(rows, cols)), gpu.get(back), expected, dtype == DType::f16 ? 1e-3 : 0);
}

void add(Gpu& gpu, std::int64_t rows, std::int64_t cols) {
  const Values a = random_values(rows * cols, 1, DType::f32, 4), b = random_values(rows * cols, 1, DType::f32, 5);
  auto to = gpu.put(b, DType::f32, rows, cols);
  gpu.ops->add_scaled(gpu.put(a, DType::f32, rows, cols), 0.3f, to);
  Values expected(b);
  for (std::size_t i = 0; i < b.size(); ++i) expected[i] += static_cast<double>(0.3f) * a[i];
  compare("add_scaled " + shape_text(rows, cols), gpu.get(to), expected, 1e-6);
}

/// Rows as a link carries them: the bits that the host makes, from memory that held NaN before, and what they stand for.
void coded_rows(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t extra) {
  const std::string shape = shape_text(rows, cols) + (extra > 0 ? " in wider rows" : "");
  Values values = random_values(rows * cols, 1, dtype, 11);
  for (std::int64_t r = 0; r < rows; ++r) {
    const double magnitude = std::array{1.0, 0.0, 1e-6, 3e4, 1e-41, 1e38}[static_cast<std::size_t>(r % (dtype == DType::f16 ? 4 : 6))];
    for (std::int64_t c = 0; c < cols; ++c) {
      double& v = values[static_cast<std::size_t>(r * cols + c)];
      v = rounded(std::clamp(v, -1.5, 1.5) * magnitude, dtype);
    }
    const double odd = std::array{std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), 0.0}[static_cast<std::size_t>(r % 4)];
    if (r % 3 == 2) values[static_cast<std::size_t>(r * cols + r % cols)] = odd;
  }
  const auto x = gpu.put(values, dtype, rows, cols, extra);
  auto coded = gpu.empty(DType::f8, rows, cols + kScaleColumns, extra), back = gpu.empty(dtype, rows, cols, extra);
  gpu.ops->encode_rows(x, coded);
  gpu.ops->decode_rows(coded, back);
  std::vector<std::uint8_t> codes(coded.view.bytes()), expected(codes.size());
  gpu.ops->download(coded, codes.data());
  Values wanted;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto begin = values.begin() + r * cols;
    const std::vector<float> row(begin, begin + cols);
    std::uint8_t* at = expected.data() + r * (cols + kScaleColumns);
    encode_row(row.data(), cols, at);
    std::vector<float> decoded(row.size());
    decode_row(at, cols, largest_of(dtype), decoded.data());
    for (const float value : decoded) wanted.push_back(rounded(static_cast<double>(value), dtype));
  }
  // A NaN's sign is the device's own.
  for (std::vector<std::uint8_t>* all : {&codes, &expected})
    for (std::uint8_t& code : *all) code = (code & 0x7F) == 0x7F ? 0x7F : code;
  require(label("encode_rows as on the host", dtype, shape), codes == expected);
  const Values got = gpu.get(back);
  bool same = true;
  for (std::size_t i = 0; i < got.size(); ++i)
    same = same && (std::isnan(got[i]) ? !std::isfinite(values[i]) : got[i] == wanted[i]);
  require(label("decode_rows as on the host", dtype, shape), same);
}

void norm(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols);
  const Values x = random_values(rows * cols, 2, dtype, 6), dy = random_values(rows * cols, 1, dtype, 7),
               residual = random_values(rows * cols, 1, dtype, 8), w = random_values(cols, 1, DType::f32, 9);
  const double eps = 1e-6;
  Values y(x.size()), dx(x.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto at = static_cast<std::size_t>(r * cols);
    double squares = 0, dot = 0;
    for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
      squares += x[at + c] * x[at + c];
      dot += w[c] * dy[at + c] * x[at + c];
    }
    const double n = static_cast<double>(cols), inverse = 1 / std::sqrt(squares / n + eps);
    for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
      y[at + c] = x[at + c] * inverse * w[c];
      dx[at + c] = inverse * w[c] * dy[at + c] - x[at + c] * inverse * inverse * inverse * dot / n + residual[at + c];
    }
  }
  auto x_held = gpu.put(x, dtype, rows, cols), weight = gpu.put(w, DType::f32, 1, cols), out = gpu.empty(dtype, rows, cols);
  gpu.ops->rmsnorm_forward(x_held, weight, static_cast<float>(eps), out);
  compare(label("rmsnorm_forward", dtype, shape), gpu.get(out), y, limit_of(dtype));
  for (const float factor : {1.0f, 0.22f}) {
    const auto before = gpu.put(residual, dtype, rows, cols, 8), one = gpu.empty(dtype, rows, cols), two = gpu.empty(dtype, rows, cols, 8);
    gpu.ops->rmsnorm_add(x_held, weight, static_cast<float>(eps), before, factor, one);
    gpu.ops->Ops::rmsnorm_add(x_held, weight, static_cast<float>(eps), before, factor, two);
    Values sum(y);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] = residual[i] + static_cast<double>(factor) * y[i];
    compare(label("rmsnorm_add", dtype, shape), gpu.get(one), sum, limit_of(dtype));
    require(label("rmsnorm_add as a norm and a sum", dtype, shape), gpu.get(one) == gpu.get(two));
  }
  auto gradient = gpu.put(dy, dtype, rows, cols), rest = gpu.put(residual, dtype, rows, cols);
  gpu.ops->rmsnorm_backward({x_held, weight, gradient, rest, rest, gradient, static_cast<float>(eps)});
  compare(label("rmsnorm_backward dx", dtype, shape), gpu.get(rest), dx, limit_of(dtype));
  compare(label("rmsnorm_backward y", dtype, shape), gpu.get(gradient), y, limit_of(dtype));
}

void rope(Gpu& gpu, DType dtype, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, std::int64_t e, bool normed) {
  const std::string shape = std::to_string(tokens) + " tokens, " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " +
                            std::to_string(e) + (normed ? ", normed" : "");
  const std::int64_t cols = (heads + 2 * kv_heads) * e, all = heads + kv_heads;
  const Values x = random_values(tokens * cols, 1, dtype, 10), dy = random_values(tokens * cols, 1, dtype, 11);
  const Values qn = random_values(e, 1, DType::f32, 12), kn = random_values(e, 1, DType::f32, 13);
  const Values table = rotary_table(e);
  const Indices rows = rotary_rows(gpu, tokens);
  Values scale(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) scale[static_cast<std::size_t>(t)] = rounded(1.0 + 0.01 * static_cast<double>(t % 5), DType::f32);
  Values forward(x), backward(dy);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double* cosine = table.data() + rows.host[static_cast<std::size_t>(t)] * e;
    for (std::int64_t h = 0; h < all; ++h) {
      const HeadMath math{e, normed ? (h < heads ? qn.data() : kn.data()) : nullptr, 1e-6};
      const std::int64_t at = t * cols + h * e;
      math.forward(x.data() + at, cosine, cosine + e / 2, h < heads ? scale[static_cast<std::size_t>(t)] : 1.0, forward.data() + at);
      math.backward(x.data() + at, dy.data() + at, cosine, cosine + e / 2, backward.data() + at);
    }
  }
  auto held = gpu.put(x, dtype, tokens, cols), before = gpu.put(x, dtype, tokens, cols), grad = gpu.put(dy, dtype, tokens, cols);
  auto q_norm = gpu.put(qn, DType::f32, 1, e), k_norm = gpu.put(kn, DType::f32, 1, e), rope_table = gpu.put(table, DType::f32, kPositions, e),
       q_scale = gpu.put(scale, DType::f32, 1, tokens);
  const auto q_of = [&](const Gpu::Held& t) { return t.view.columns(0, heads * e); };
  const auto k_of = [&](const Gpu::Held& t) { return t.view.columns(heads * e, kv_heads * e); };
  const Tensor qw = normed ? q_norm.view : Tensor(), kw = normed ? k_norm.view : Tensor();
  gpu.ops->qk_rope_forward({q_of(held), k_of(held), q_of(held), k_of(held), qw, kw, 1e-6f, rope_table, &rows, q_scale, e});
  compare(label("qk_rope_forward", dtype, shape), gpu.get(held), forward, limit_of(dtype));
  gpu.ops->qk_rope_backward({q_of(grad), k_of(grad), q_of(before), k_of(before), qw, kw, 1e-6f, rope_table, &rows, e});
  compare(label("qk_rope_backward", dtype, shape), gpu.get(grad), backward, limit_of(dtype));
  // With the queries' factors: gradients are linear in what comes.
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < heads * e; ++c) backward[static_cast<std::size_t>(t * cols + c)] *= scale[static_cast<std::size_t>(t)];
  const auto scaled = gpu.put(dy, dtype, tokens, cols);
  QkRopeBackward back{q_of(scaled), k_of(scaled), q_of(before), k_of(before), qw, kw, 1e-6f, rope_table, &rows, e};
  back.q_scale = q_scale;
  gpu.ops->qk_rope_backward(back);
  compare(label("qk_rope_backward with factors", dtype, shape), gpu.get(scaled), backward, limit_of(dtype));
}

/// Heads that do not turn: norms alone, factors of queries alone, both; to another tensor and in place.
void unturned(Gpu& gpu, DType dtype, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, std::int64_t e, bool normed, bool scaled) {
  const std::string shape = std::to_string(tokens) + " tokens, " + std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(e) +
                            " unturned" + (normed ? ", normed" : "") + (scaled ? ", scaled" : "");
  const std::int64_t cols = (heads + kv_heads) * e;
  const Values x = random_values(tokens * cols, 1, dtype, 15), dy = random_values(tokens * cols, 1, dtype, 16), norm = random_values(e, 1, DType::f32, 17);
  const Values ones(static_cast<std::size_t>(e / 2), 1.0), zeros(static_cast<std::size_t>(e / 2), 0.0);
  Values scale(static_cast<std::size_t>(tokens), 1.0), forward(x), backward(dy);
  for (std::size_t t = 0; scaled && t < scale.size(); ++t) scale[t] = rounded(1.0 + 0.1 * static_cast<double>(t % 4), DType::f32);
  const HeadMath math{e, normed ? norm.data() : nullptr, 1e-6};
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < heads + kv_heads; ++h) {
      const std::int64_t at = t * cols + h * e;
      const double own = h < heads ? scale[static_cast<std::size_t>(t)] : 1.0;
      Values grad(dy.begin() + at, dy.begin() + at + e);
      for (double& g : grad) g *= own;
      math.forward(x.data() + at, ones.data(), zeros.data(), own, forward.data() + at);
      math.backward(x.data() + at, grad.data(), ones.data(), zeros.data(), backward.data() + at);
    }
  const auto held = gpu.put(x, dtype, tokens, cols), out = gpu.empty(dtype, tokens, cols), before = gpu.put(x, dtype, tokens, cols), grad = gpu.put(dy, dtype, tokens, cols);
  const auto weight = gpu.put(norm, DType::f32, 1, e), factors = gpu.put(scale, DType::f32, 1, tokens);
  const auto q_of = [&](const Gpu::Held& t) { return t.view.columns(0, heads * e); };
  const auto k_of = [&](const Gpu::Held& t) { return t.view.columns(heads * e, kv_heads * e); };
  const Tensor w = normed ? weight.view : Tensor(), s = scaled ? factors.view : Tensor();
  gpu.ops->qk_rope_forward({q_of(held), k_of(held), q_of(out), k_of(out), w, w, 1e-6f, Tensor(), nullptr, s, e});
  compare(label("qk_rope_forward", dtype, shape), gpu.get(out), forward, limit_of(dtype));
  gpu.ops->qk_rope_forward({q_of(held), k_of(held), q_of(held), k_of(held), w, w, 1e-6f, Tensor(), nullptr, s, e});
  require(label("qk_rope_forward in place", dtype, shape), gpu.get(held) == gpu.get(out));
  QkRopeBackward back{q_of(grad), k_of(grad), q_of(before), k_of(before), w, w, 1e-6f, Tensor(), nullptr, e};
  back.q_scale = s;
  gpu.ops->qk_rope_backward(back);
  compare(label("qk_rope_backward", dtype, shape), gpu.get(grad), backward, limit_of(dtype));
}

/// `in_place`: the gradient's rows begin where their logits do.
/// `spare`: columns behind the vocabulary that rows have room for. They must stay as they are.
void cross_entropy(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t vocab, bool in_place, std::int64_t spare = 0, double smoothing = 0) {
  const std::string shape = shape_text(rows, vocab) + (in_place ? " in place" : "") + (spare > 0 ? ", padded" : "") + (smoothing > 0 ? ", smoothed" : "");
  const Values z = random_values(rows * vocab, 3, DType::f32, 30);
  Values targets, weights, loss, correct, gradient(z.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const double* row = z.data() + r * vocab;
    const std::int64_t best = std::max_element(row, row + vocab) - row, target = r % 3 == 0 ? best : r * 37 % vocab;
    double total = 0, sum = 0;
    for (std::int64_t c = 0; c < vocab; ++c) total += std::exp(row[c] - row[best]);
    for (std::int64_t c = 0; c < vocab; ++c) sum += row[c];
    targets.push_back(static_cast<double>(target));
    weights.push_back(rounded(0.25 + 0.1 * static_cast<double>(r % 4), DType::f32));
    loss.push_back(std::log(total) + row[best] - (1 - smoothing) * row[target] - smoothing * sum / static_cast<double>(vocab));
    correct.push_back(target == best ? 1 : 0);
    for (std::int64_t c = 0; c < vocab; ++c)
      gradient[static_cast<std::size_t>(r * vocab + c)] = weights.back() * (std::exp(row[c] - row[best]) / total - (c == target ? 1 - smoothing : 0) - smoothing / static_cast<double>(vocab));
  }
  auto logits = gpu.put(z, DType::f32, rows, vocab, spare), t = gpu.put(targets, DType::i32, 1, rows), w = gpu.put(weights, DType::f32, 1, rows),
       l = gpu.empty(DType::f32, 1, rows), hit = gpu.empty(DType::i32, 1, rows);
  Gpu::Held apart;
  if (!in_place) apart = gpu.empty(dtype, rows, vocab);
  const auto stride = (vocab + spare) * static_cast<std::int64_t>(sizeof(float) / dtype_bytes(dtype));
  const Tensor d = in_place ? Tensor(logits.view.data, dtype, rows, vocab, stride) : apart.view;
  gpu.ops->cross_entropy({logits, d, t, w, l, hit, 1, 0, static_cast<float>(smoothing)});
  compare(label("cross_entropy loss", dtype, shape), gpu.get(l), loss, 1e-5);
  compare(label("cross_entropy correct", dtype, shape), gpu.get(hit), correct, 0);
  compare(label("cross_entropy gradient", dtype, shape), gpu.get(d), gradient, limit_of(dtype));
}

/// Element by element from the definition in rng.h.
void noise(Gpu& gpu, DType dtype, const std::vector<int>& lengths, std::int64_t width) {
  const auto sequences = gpu.sequences(lengths);
  const DropoutKey key{0xfedcba987654321ull, 23};
  const double alpha = 6.5;
  const Values x = random_values(sequences->tokens * width, 0.02, dtype, 50);
  Values expected(x);
  for (std::size_t s = 0; s < lengths.size(); ++s)
    for (std::int32_t t = sequences->cu_queries.host[s]; t < sequences->cu_queries.host[s + 1]; ++t)
      for (std::int64_t c = 0; c < width; ++c) {
        const auto at = static_cast<std::size_t>(t);
        const std::uint64_t element = static_cast<std::uint64_t>(sequences->position.host[at]) * static_cast<std::uint64_t>(width) + static_cast<std::uint64_t>(c);
        const std::uint32_t word = noise_bits(key, static_cast<std::uint32_t>(sequences->row.host[at]), element / 4).v[element % 4];
        const double drawn = (static_cast<double>(word >> 8) + 0.5) / 8388608.0 - 1.0;
        expected[static_cast<std::size_t>(t * width + c)] += drawn * alpha / std::sqrt(static_cast<double>(lengths[s]) * static_cast<double>(width));
      }
  auto held = gpu.put(x, dtype, sequences->tokens, width);
  gpu.ops->add_noise({held, sequences.get(), key, static_cast<float>(alpha)});
  compare(label("add_noise", dtype, shape_text(sequences->tokens, width)), gpu.get(held), expected, dtype == DType::f32 ? 1e-6 : 1e-2);
}

/// The token that the CPU draws from the same logits, for many settings; many logits are equal.
void sampling(Gpu& gpu, std::int64_t vocab) {
  std::size_t different = 0, draws = 0;
  for (int round = 0; round < 60; ++round) {
    Values values = random_values(vocab, 12, DType::f32, static_cast<std::uint64_t>(70 + round));
    if (round % 3 == 0)
      for (double& value : values) value = std::round(value);
    std::vector<float> host(values.begin(), values.end());
    const std::vector<std::int32_t> seen{0, static_cast<std::int32_t>(vocab / 2), static_cast<std::int32_t>(vocab - 1)};
    Sampling call;
    call.seen = std::span(seen).first(vocab > 2 ? 3 : 1);
    call.repetition_penalty = round % 4 == 1 ? 1.3f : 1.0f;
    call.temperature = std::array{0.7, 1.0, 0.05, 3.0}[static_cast<std::size_t>(round) % 4];
    call.top_k = std::array{0, 1, 50, 1000000}[static_cast<std::size_t>(round / 2) % 4];
    call.top_p = std::array{1.0, 0.8, 0.0}[static_cast<std::size_t>(round / 3) % 3];
    call.min_p = std::array{0.0, 0.3, 0.0, 0.02, 1.0}[static_cast<std::size_t>(round) % 5];
    const std::vector<float> biases{3.5f, -2.0f, 100.0f};
    if (round % 7 == 2) {
      call.biased = call.seen;
      call.biases = std::span(biases).first(call.seen.size());
    }
    call.draw = static_cast<std::uint32_t>(round) * 71582789u;
    auto held = gpu.put(values, DType::f32, 1, vocab);
    call.logits = held.view;
    const std::int32_t drawn = gpu.ops->sample(call);
    call.logits = Tensor(host.data(), DType::f32, 1, vocab);
    different += drawn != cpu::sample(call);
    ++draws;
  }
  require("sampling from " + std::to_string(vocab) + " logits as the CPU does, " + std::to_string(draws) + " draws", different == 0);
  auto broken = gpu.put(Values(static_cast<std::size_t>(vocab), std::numeric_limits<double>::quiet_NaN()), DType::f32, 1, vocab);
  bool refused = false;
  try {
    Sampling call;
    call.logits = broken.view;
    gpu.ops->sample(call);
  } catch (const Error& error) {
    refused = std::string(error.code()) == kEngineFailed;
  }
  require("sampling from NaN is refused", refused);
}

void optimizer(Gpu& gpu) {
  std::vector<Gpu::Held> held;
  std::vector<AdamTarget> targets;
  std::vector<Tensor> grads;
  std::vector<Values> expected;
  Values norms;
  const AdamSettings s{3, 1e-3, 0.5, 0.9, 0.999, 1e-8, 0.01};
  for (std::int64_t n : {1, 8191, 8193, 50000}) {
    const auto seed = static_cast<std::uint64_t>(n);
    const Values w = random_values(n, 1, DType::f32, seed), g = random_values(n, 1, DType::f32, seed + 1),
                 m = random_values(n, 0.1, DType::f32, seed + 2);
    Values v = random_values(n, 0.1, DType::f32, seed + 3), after(w.size());
    double squares = 0;
    for (std::size_t i = 0; i < w.size(); ++i) {
      v[i] = rounded(v[i] * v[i], DType::f32);
      squares += g[i] * g[i];
      const double grad = g[i] * s.grad_scale, m1 = s.beta1 * m[i] + (1 - s.beta1) * grad, v1 = s.beta2 * v[i] + (1 - s.beta2) * grad * grad;
      const double step = s.learning_rate / (1 - std::pow(s.beta1, 3)), root = std::sqrt(1 - std::pow(s.beta2, 3));
      after[i] = w[i] * (1 - s.learning_rate * s.weight_decay) - step * m1 / (std::sqrt(v1) / root + s.epsilon);
    }
    norms.push_back(squares);
    expected.push_back(after);
    for (const Values* values : {&w, &g, &m, static_cast<const Values*>(&v)}) held.push_back(gpu.put(*values, DType::f32, 1, n));
    const std::size_t at = held.size() - 4;
    targets.push_back({held[at].view, held[at + 1].view, held[at + 2].view, held[at + 3].view});
    grads.push_back(held[at + 1].view);
  }
  compare("squared_norms", gpu.ops->squared_norms(grads), norms, 1e-12);
  gpu.ops->adamw(targets, s);
  for (std::size_t i = 0; i < targets.size(); ++i) compare("adamw weight " + std::to_string(targets[i].weight.size()), gpu.get(targets[i].weight), expected[i], 1e-6);
  const std::vector<double> after = gpu.ops->squared_norms(grads);
  require("adamw leaves gradients zero", std::all_of(after.begin(), after.end(), [](double x) { return x == 0; }));
}

}  // namespace

/// usage: cuda_kernels [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{1} << 30);
    elementwise(gpu, dtype, 1, 8);
    elementwise(gpu, dtype, 13, 172);
    elementwise(gpu, dtype, 5, 33);
    for (const std::int64_t cols : {1, 7, 8, 33, 172, 4096})
      for (const std::int64_t extra : {0, 4, 5}) coded_rows(gpu, dtype, 13, cols, extra);
    for (const std::int64_t cols : {1, 3, 8, 16, 24, 40, 72, 257, 2048, 2064})
      for (const std::int64_t rows : {1, 7, 300}) copies(gpu, dtype, rows, cols, cols % 3 == 0 ? 8 : 5);
    norm(gpu, dtype, 1, 64);
    norm(gpu, dtype, 7, 4096);
    norm(gpu, dtype, 33, 172);
    norm(gpu, dtype, 3, 33);
    for (const bool normed : {false, true}) {
      rope(gpu, dtype, 1, 4, 4, 64, normed);
      rope(gpu, dtype, 19, 8, 1, 128, normed);
      rope(gpu, dtype, 11, 3, 1, 20, normed);
      for (const std::int64_t e : {16, 32, 48, 256}) rope(gpu, dtype, 9, 5, 2, e, normed);
    }
    for (const std::int64_t e : {128, 256, 20})
      for (const bool normed : {true, false}) {
        unturned(gpu, dtype, 13, 5, 2, e, normed, true);
        if (normed) unturned(gpu, dtype, 7, 2, 2, e, true, false);
      }
    cross_entropy(gpu, dtype, 3, 1000, true);
    cross_entropy(gpu, dtype, 3, 1000, false);
    cross_entropy(gpu, dtype, 2, 151, true);
    cross_entropy(gpu, dtype, 2, 151, false);
    for (const std::int64_t vocab : {1, 7, 9, 151, 1003, 32001, 32003}) cross_entropy(gpu, dtype, 5, vocab, true, (8 - vocab % 8) % 8 + (vocab % 16 == 9 ? 8 : 0));
    for (const std::int64_t vocab : {2, 9, 1000, 32003})
      for (const bool in_place : {true, false}) cross_entropy(gpu, dtype, 5, vocab, in_place, in_place ? (8 - vocab % 8) % 8 : 0, vocab == 9 ? 1.0 : 0.1);
    noise(gpu, dtype, {1, 7, 3}, 64);
    noise(gpu, dtype, {5, 2}, 33);
    if (asked.small) continue;
    cross_entropy(gpu, dtype, 17, 151936, true, 0, 0.1);
    cross_entropy(gpu, dtype, 17, 500000, false, 0, 0.2);
    noise(gpu, dtype, {900, 1, 2048}, 4096);
    elementwise(gpu, dtype, 1088, 4096);
    copies(gpu, dtype, 70001, 16, 48);  // more rows than a grid is high
    copies(gpu, dtype, 66001, 129, 8);
    norm(gpu, dtype, 8192, 1024);
    rope(gpu, dtype, 8192, 4, 2, 128, false);
    rope(gpu, dtype, 3000, 4, 2, 256, true);
    cross_entropy(gpu, dtype, 17, 151936, true);
    cross_entropy(gpu, dtype, 17, 151936, false);
  }
  Gpu gpu(DType::f32, std::size_t{64} << 20);
  add(gpu, 3, 40);
  add(gpu, 17, 33);
  optimizer(gpu);
  for (const std::int64_t vocab : {1, 2, 1000, 32001, 152064})
    if (!asked.small || vocab <= 1000) sampling(gpu, vocab);
  return finish();
}
