// The GPU's operations of kinds of adapters beside LoRA on linears (learner_calls.h) against plain loops in float64.
#include "tests/gpu/cuda_fixture.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

constexpr std::int64_t kPadding = 8;

std::size_t place(std::int64_t row, std::int64_t cols, std::int64_t column) { return static_cast<std::size_t>(row * cols + column); }

Values float_values(std::int64_t count, std::uint64_t seed) { return random_values(count, 1, DType::f32, seed); }

/// Three ids of five rows: of none, of two and of three of them, not in order.
void row_sums(Gpu& gpu, DType dtype, std::int64_t cols) {
  const Values from = random_values(5 * cols, 1, dtype, 1);
  Values to = float_values(9 * cols, 2);
  Indices order, starts, ids;
  order.host = {4, 0, 3, 1, 2};
  starts.host = {0, 0, 2, 5};
  ids.host = {7, 1, 4};
  for (Indices* indices : {&order, &starts, &ids}) gpu.upload(*indices);
  const auto source = gpu.put(from, dtype, 5, cols, kPadding), sums = gpu.put(to, DType::f32, 9, cols, kPadding);
  RowSums call{source, &order, &starts, &ids, 0.5f, sums};
  gpu.ops->sum_rows(call);
  for (std::size_t i = 0; i < ids.host.size(); ++i)
    for (int k = starts.host[i]; k < starts.host[i + 1]; ++k)
      for (std::int64_t c = 0; c < cols; ++c)
        to[place(ids.host[i], cols, c)] += 0.5 * from[place(order.host[static_cast<std::size_t>(k)], cols, c)];
  compare(label("sum_rows", dtype, shape_text(5, cols)), gpu.get(sums), to, 1e-6);
}

void low_rank(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t ranks, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols) + " of rank " + std::to_string(ranks);
  const Values inner = float_values(rows * ranks, 3), bt = float_values(ranks * cols, 4), before = float_values(ranks * cols, 5);
  const Values y = random_values(rows * cols, 1, dtype, 6);
  const double scale = 0.25;
  Values forward(y), inner_grad(static_cast<std::size_t>(rows * ranks)), grad(before);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t r = 0; r < ranks; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        forward[place(t, cols, c)] += scale * inner[place(t, ranks, r)] * bt[place(r, cols, c)];
        inner_grad[place(t, ranks, r)] += scale * y[place(t, cols, c)] * bt[place(r, cols, c)];
        grad[place(r, cols, c)] += scale * inner[place(t, ranks, r)] * y[place(t, cols, c)];
      }
  const auto held_inner = gpu.put(inner, DType::f32, rows, ranks), held_bt = gpu.put(bt, DType::f32, ranks, cols, kPadding);
  const auto to = gpu.put(y, dtype, rows, cols, kPadding), dy = gpu.put(y, dtype, rows, cols, kPadding);
  gpu.ops->low_rank_forward({held_inner, held_bt, 0.25f, to});
  compare(label("low_rank_forward", dtype, shape), gpu.get(to), forward, limit_of(dtype));
  const auto gradient = gpu.put(before, DType::f32, ranks, cols, kPadding);
  const auto written = gpu.empty(DType::f32, rows, ranks);
  gpu.ops->low_rank_backward({dy, held_inner, held_bt, 0.25f, written, gradient});
  compare(label("low_rank_backward inner", dtype, shape), gpu.get(written), inner_grad, 1e-5);
  compare(label("low_rank_backward B", dtype, shape), gpu.get(gradient), grad, 1e-5);
}

void sums(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t in, std::int64_t out) {
  const std::string shape = shape_text(rows, in) + " to " + std::to_string(out);
  const Values x = random_values(rows * in, 1, dtype, 7), dy = random_values(rows * out, 1, dtype, 8);
  const Values weight = float_values(out * in, 9), bias = float_values(out, 10);
  Values weight_grad(weight), bias_grad(bias);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < out; ++c) {
      const double d = 0.5 * dy[place(t, out, c)];
      bias_grad[static_cast<std::size_t>(c)] += d;
      for (std::int64_t k = 0; k < in; ++k) weight_grad[place(c, in, k)] += d * x[place(t, in, k)];
    }
  const auto held_x = gpu.put(x, dtype, rows, in, kPadding), held_dy = gpu.put(dy, dtype, rows, out, kPadding);
  const auto to = gpu.put(weight, DType::f32, out, in), to_bias = gpu.put(bias, DType::f32, 1, out);
  gpu.ops->weight_grad({held_x, held_dy, 0.5f, to});
  compare(label("weight_grad", dtype, shape), gpu.get(to), weight_grad, limit_of(DType::f32) * 10);
  gpu.ops->column_sums(held_dy, 0.5f, to_bias);
  compare(label("column_sums", dtype, shape), gpu.get(to_bias), bias_grad, 1e-5);
}

void norms(Gpu& gpu, std::int64_t ranks, std::int64_t in, std::int64_t out) {
  const std::string shape = shape_text(out, in) + " of rank " + std::to_string(ranks);
  const Values weight = float_values(out * in, 11), a = float_values(ranks * in, 12), bt = float_values(ranks * out, 13);
  const Values magnitude = float_values(out, 14), before = float_values(out, 15);
  Values squares(static_cast<std::size_t>(out)), product(static_cast<std::size_t>(ranks * out)), norm(squares), gains(squares);
  for (std::int64_t c = 0; c < out; ++c) {
    double sum = 0;
    for (std::int64_t k = 0; k < in; ++k) {
      double adapted = weight[place(c, in, k)];
      squares[static_cast<std::size_t>(c)] += adapted * adapted;
      for (std::int64_t r = 0; r < ranks; ++r) {
        product[place(r, out, c)] += a[place(r, in, k)] * weight[place(c, in, k)];
        adapted += 0.5 * bt[place(r, out, c)] * a[place(r, in, k)];
      }
      sum += adapted * adapted;
    }
    norm[static_cast<std::size_t>(c)] = std::sqrt(sum);
    gains[static_cast<std::size_t>(c)] = magnitude[static_cast<std::size_t>(c)] / std::sqrt(sum);
  }
  const auto held_a = gpu.put(a, DType::f32, ranks, in), held_bt = gpu.put(bt, DType::f32, ranks, out), held_product = gpu.put(product, DType::f32, ranks, out);
  const auto held_squares = gpu.put(squares, DType::f32, 1, out), held_magnitude = gpu.put(magnitude, DType::f32, 1, out);
  const auto to = gpu.empty(DType::f32, 1, out), to_gains = gpu.empty(DType::f32, 1, out);
  gpu.ops->dora_norms({held_squares, held_product, held_a, held_bt, 0.5f, held_magnitude, to, to_gains});
  compare("dora_norms " + shape, gpu.get(to), norm, 1e-5);
  compare("dora_norms gains " + shape, gpu.get(to_gains), gains, 1e-5);

  // As the embedding has it: A Aᵀ is known.
  Values gram(static_cast<std::size_t>(ranks * ranks));
  for (std::int64_t i = 0; i < ranks; ++i)
    for (std::int64_t j = 0; j < ranks; ++j)
      for (std::int64_t k = 0; k < in; ++k) gram[place(i, ranks, j)] += a[place(i, in, k)] * a[place(j, in, k)];
  const auto held_gram = gpu.put(gram, DType::f32, ranks, ranks), again = gpu.empty(DType::f32, 1, out), gains_again = gpu.empty(DType::f32, 1, out);
  gpu.ops->dora_norms({held_squares, held_product, Tensor(), held_bt, 0.5f, held_magnitude, again, gains_again, held_gram});
  compare("dora_norms by A Aᵀ " + shape, gpu.get(again), norm, 1e-5);
  compare("dora_norms gains by A Aᵀ " + shape, gpu.get(gains_again), gains, 1e-5);

  Values added(before);
  for (std::int64_t k = 0; k < in; ++k)
    for (std::int64_t c = 0; c < out; ++c) added[static_cast<std::size_t>(c)] += weight[place(c, in, k)] * weight[place(c, in, k)];
  Values columns(static_cast<std::size_t>(in * out));
  for (std::int64_t k = 0; k < in; ++k)
    for (std::int64_t c = 0; c < out; ++c) columns[place(k, out, c)] = weight[place(c, in, k)];
  const auto total = gpu.put(before, DType::f32, 1, out);
  gpu.ops->add_column_squares(gpu.put(columns, DType::f32, in, out, kPadding), total);
  compare("add_column_squares " + shape, gpu.get(total), added, 1e-5);
}

void gains(Gpu& gpu, DType dtype, DType z_dtype, std::int64_t rows, std::int64_t cols) {
  const std::string shape = shape_text(rows, cols) + " of " + dtype_name(z_dtype);
  const Values z = random_values(rows * cols, 1, z_dtype, 16), residual = random_values(rows * cols, 1, dtype, 17), dy = random_values(rows * cols, 1, dtype, 18);
  const Values gain = float_values(cols, 19), offset = float_values(cols, 20), before = float_values(cols, 21);
  Values norm = float_values(cols, 22), y(z), dz(dy), grad(before);
  for (double& v : norm) v = rounded(2 + std::abs(v), DType::f32);
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < cols; ++c) {
      const auto at = static_cast<std::size_t>(c);
      const double clean = z[place(t, cols, c)] - offset[at];
      y[place(t, cols, c)] = gain[at] * clean + offset[at];
      dz[place(t, cols, c)] = gain[at] * dy[place(t, cols, c)];
      grad[at] += 0.5 * dy[place(t, cols, c)] * clean / norm[at];
    }
  Values with_residual(y);
  for (std::size_t i = 0; i < y.size(); ++i) with_residual[i] += residual[i];
  const auto held_gain = gpu.put(gain, DType::f32, 1, cols), held_offset = gpu.put(offset, DType::f32, 1, cols), held_norm = gpu.put(norm, DType::f32, 1, cols);
  const auto held_z = gpu.put(z, z_dtype, rows, cols, kPadding), rest = gpu.put(residual, dtype, rows, cols, kPadding);
  const auto out = gpu.empty(dtype, rows, cols, kPadding);
  gpu.ops->column_gains({held_z, held_gain, held_offset, Tensor(), out});
  compare(label("column_gains", dtype, shape), gpu.get(out), y, limit_of(dtype));
  gpu.ops->column_gains({held_z, held_gain, held_offset, rest, out});
  compare(label("column_gains and a residual", dtype, shape), gpu.get(out), with_residual, limit_of(dtype));
  // What the gains change, added in place.
  Values changed(residual), dchanged(dy);
  for (std::size_t i = 0; i < changed.size(); ++i) {
    const std::size_t at = i % static_cast<std::size_t>(cols);
    changed[i] += (gain[at] - 1) * (z[i] - offset[at]);
    dchanged[i] *= gain[at] - 1;
  }
  const auto sum = gpu.put(residual, dtype, rows, cols, kPadding), dz_changed = gpu.empty(dtype, rows, cols);
  gpu.ops->column_gains({held_z, held_gain, held_offset, sum, sum, true});
  compare(label("column_gains' change", dtype, shape), gpu.get(sum), changed, limit_of(dtype));
  const auto dy_changed = gpu.put(dy, dtype, rows, cols, kPadding), to_changed = gpu.put(before, DType::f32, 1, cols);
  gpu.ops->column_gains_backward({dy_changed, held_z, held_gain, held_offset, held_norm, 0.5f, to_changed, dz_changed, true});
  compare(label("column_gains_backward dz of the change", dtype, shape), gpu.get(dz_changed), dchanged, limit_of(dtype));
  compare(label("column_gains_backward magnitude of the change", dtype, shape), gpu.get(to_changed), grad, 1e-5);

  const auto gradient = gpu.put(dy, dtype, rows, cols, kPadding), to = gpu.put(before, DType::f32, 1, cols);
  gpu.ops->column_gains_backward({gradient, held_z, held_gain, held_offset, held_norm, 0.5f, to, gradient});
  compare(label("column_gains_backward dz", dtype, shape), gpu.get(gradient), dz, limit_of(dtype));
  compare(label("column_gains_backward magnitude", dtype, shape), gpu.get(to), grad, 1e-5);
}

/// A product of a weight's values alone, without its bias: rows of the identity give the values that the usual product has of them, whatever
/// the weight is held as, and other inputs are not rounded to 8 bits.
void bare(Gpu& gpu, DType dtype, const char* name, const HoldSpec& hold, std::int64_t in, const std::vector<std::int64_t>& parts, std::int64_t rows) {
  std::int64_t out = 0;
  for (const std::int64_t n : parts) out += n;
  const std::string shape = std::string(name) + " " + shape_text(out, in) + " of " + std::to_string(rows);
  const auto weight = gpu.ops->create_linear(in, parts, true);
  std::int64_t first = 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const Values drawn = float_values(parts[part] * in, 70 + part), bias = float_values(parts[part], 80 + part);
    const std::vector<float> values(drawn.begin(), drawn.end()), offsets(bias.begin(), bias.end());
    weight->load(part, HostTensor{values.data(), DType::f32, parts[part], in}, hold);
    weight->load_bias(part, HostTensor{offsets.data(), DType::f32, 1, parts[part]});
    first += parts[part];
  }
  const auto sequences = gpu.sequences({static_cast<int>(in)});
  Values ones(static_cast<std::size_t>(in * in));
  for (std::int64_t i = 0; i < in; ++i) ones[place(i, in, i)] = 1;
  const auto product = [&](const Values& x, std::int64_t count, bool alone) {
    const auto held = gpu.put(x, dtype, count, in), y = gpu.empty(DType::f32, count, out);
    LinearForward call{held, weight.get(), {}, Tensor(), Tensor(), y, sequences.get()};
    call.bare = alone;
    gpu.ops->linear_forward(call);
    return gpu.get(y);
  };
  const Values turned = product(ones, in, true);  // [in, out]
  Values original(turned.size());
  first = 0;
  for (std::size_t part = 0; part < parts.size(); ++part) {
    const Values drawn = float_values(parts[part] * in, 70 + part);
    for (std::int64_t c = 0; c < parts[part]; ++c)
      for (std::int64_t k = 0; k < in; ++k) original[place(k, out, first + c)] = drawn[place(c, in, k)];
    first += parts[part];
  }
  const double lost = hold.quantisation == Quantisation::nf4 ? 0.15 : hold.fp8 ? 5e-2 : hold.quantisation == Quantisation::int8 ? 2e-2 : limit_of(dtype);
  compare(label("a weight's values", dtype, shape), turned, original, lost);
  const Values x = random_values(rows * in, 1, dtype, 90);
  Values expected(static_cast<std::size_t>(rows * out));
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t k = 0; k < in; ++k)
      for (std::int64_t c = 0; c < out; ++c) expected[place(t, out, c)] += x[place(t, in, k)] * turned[place(k, out, c)];
  compare(label("a product with them", dtype, shape), product(x, rows, true), expected, dtype == DType::f32 ? 2e-3 : 5e-3);
}

/// What dropout leaves of an input, forward and added back, against the definition of masks in rng.h.
void drop(Gpu& gpu, DType dtype, const std::vector<int>& lengths, std::int64_t in, float p) {
  const auto sequences = gpu.sequences(lengths);
  const std::int64_t tokens = sequences->tokens;
  const std::string shape = shape_text(tokens, in) + " at " + std::to_string(p);
  const DropoutKey key{0xabcdef987654321ull, 31};
  constexpr std::uint32_t kModule = 17;
  const Values x = random_values(tokens * in, 1, dtype, 60), before = random_values(tokens * in, 1, dtype, 61);
  Values left(x), added(before);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < in; ++c) {
      const auto token = static_cast<std::size_t>(t);
      const std::uint64_t element = static_cast<std::uint64_t>(sequences->position.host[token]) * static_cast<std::uint64_t>(in) + static_cast<std::uint64_t>(c);
      const std::uint32_t word = dropout_bits(key, static_cast<std::uint32_t>(sequences->row.host[token]), kModule, element / 8).v[element % 8 / 2];
      const bool kept = (element % 2 == 0 ? word & 0xFFFFu : word >> 16) >= dropout_threshold(p);
      double& value = left[place(t, in, c)];
      value = kept ? value / (1 - static_cast<double>(p)) : 0;
      added[place(t, in, c)] += value;
    }
  LoraView pair;
  pair.dropout = p;
  pair.module_id = kModule;
  const auto held = gpu.put(x, dtype, tokens, in, kPadding), to = gpu.empty(dtype, tokens, in, kPadding), sum = gpu.put(before, dtype, tokens, in);
  gpu.ops->lora_drop({held, {{&pair, 1}, 1, &key}, sequences.get(), to});
  compare(label("lora_drop", dtype, shape), gpu.get(to), left, limit_of(dtype));
  gpu.ops->lora_drop_backward({held, {{&pair, 1}, 1, &key}, sequences.get(), sum});
  compare(label("lora_drop_backward", dtype, shape), gpu.get(sum), added, limit_of(dtype));
}

}  // namespace

/// usage: cuda_learners [small] [DTYPE …]
int main(int argc, char** argv) {
  const Asked asked(argc, argv);
  for (const DType dtype : asked.dtypes) {
    Gpu gpu(dtype, std::size_t{1} << 30);
    for (const std::int64_t cols : {8, 33, 300}) row_sums(gpu, dtype, cols);
    low_rank(gpu, dtype, 1, 4, 16);
    low_rank(gpu, dtype, 7, 3, 33);
    low_rank(gpu, dtype, 19, 16, 300);
    sums(gpu, dtype, 1, 16, 8);
    sums(gpu, dtype, 13, 40, 24);
    for (const DType z : {dtype, DType::f32}) {
      gains(gpu, dtype, z, 1, 8);
      gains(gpu, dtype, z, 13, 33);
      gains(gpu, dtype, z, 70, 200);
    }
    HoldSpec plain{dtype}, four{dtype, Quantisation::nf4}, eight{dtype, Quantisation::int8};
    for (const std::int64_t rows : {3, 80}) {
      bare(gpu, dtype, "held", plain, 64, {48, 16}, rows);
      bare(gpu, dtype, "nf4", four, 64, {48, 16}, rows);
      bare(gpu, dtype, "int8", eight, 64, {40, 24}, rows);
      if (dtype == DType::f32) continue;
      for (HoldSpec hold : {plain, four, eight}) {
        hold.fp8 = true;
        bare(gpu, dtype, "e4m3", hold, 64, {48, 16}, rows);
        bare(gpu, dtype, "e4m3", hold, 128, {1040, 32}, rows);
      }
    }
    for (const float p : {0.0f, 0.05f, 0.5f}) {
      drop(gpu, dtype, {1}, 8, p);
      drop(gpu, dtype, {7, 1, 12}, 33, p);
      drop(gpu, dtype, {40, 3}, 72, p);
    }
    if (asked.small) continue;
    drop(gpu, dtype, {700, 324}, 4096, 0.1f);
    row_sums(gpu, dtype, 4096);
    low_rank(gpu, dtype, 1088, 16, 4096);
    sums(gpu, dtype, 600, 256, 512);
    gains(gpu, dtype, dtype, 1088, 4096);
  }
  Gpu gpu(DType::f32, std::size_t{64} << 20);
  norms(gpu, 1, 8, 8);
  norms(gpu, 5, 33, 40);
  norms(gpu, 16, 172, 300);
  return finish();
}
