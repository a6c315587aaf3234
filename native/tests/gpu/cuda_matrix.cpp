// The GPU engine off its beaten path: two blocks at the widths of published models, forward, backward, update and forward again in
// 16 bits, against the same model in float32 on the same card (whose kernels are others: cuda_model holds those against the CPU's).
// Each case draws its rank, targets, base, dropout, rows and what is done with activations from a seed. The arena is full of NaN
// before each run, so that what nobody wrote is seen.
// usage: cuda_matrix [--seed N] [--cases N] [--all] [--case K] [--part K/N] [--fp8] [--dora] [--experts] [small]
//   --experts: models with a mixture of experts alone
//   --dora: DoRA in every case, not in a third of them
//   --fp8: products in e4m3 in every case, not in a quarter of them
//   --all: every rank with every model once, and every other choice at least once a model
#include <cuda_runtime.h>

#include <chrono>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "pipelora/core/error.h"
#include "pipelora/model/optimizer.h"
#include "pipelora/model/segment.h"
#include "tests/gpu/cuda_fixture.h"
#include "tests/gpu/matrix_shapes.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

constexpr std::int64_t kRanks[] = {1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 64, 128, 256};
enum class Targets { all_linear, q_v, one, pattern };
constexpr const char* kTargetNames[] = {"all-linear", "q,v", "one", "rank pattern"};
enum class Keeping { kept, recomputed, on_host, cached };
constexpr const char* kKeepingNames[] = {"kept", "recomputed", "on host", "cached"};

struct Case {
  const Shape* shape;
  std::int64_t rank;
  Targets targets;
  DType compute;
  HoldSpec hold;
  std::string base;
  float dropout;
  Keeping keeping;
  std::vector<int> rows;
  bool fp8 = false;  // not in the float32 that it is held against
  bool dora = false;
  bool rows_of_tokens = false;  // of the embedding, and of a head that shares its weight
  int first_token = 11;

  int tokens() const { return std::accumulate(rows.begin(), rows.end(), 0); }
  /// The rounding of so few tokens does not average out.
  bool few() const { return tokens() < 8; }

  std::string name() const {
    std::string text = std::string(shape->name) + " r=" + std::to_string(rank) + " " + kTargetNames[static_cast<int>(targets)] + " " + dtype_name(compute) +
                       " " + base + (fp8 ? " fp8" : "") + (dora ? " DoRA" : "") + (rows_of_tokens ? " tokens" : "") + (dropout > 0 ? " dropout" : "") + " " + kKeepingNames[static_cast<int>(keeping)] + " rows";
    for (std::size_t i = 0; i < std::min<std::size_t>(rows.size(), 4); ++i) text += " " + std::to_string(rows[i]);
    if (rows.size() > 4) text += " … (" + std::to_string(rows.size()) + ")";
    return text;
  }
};

constexpr std::int64_t kBlocks = 2;

Arch arch_of(const Shape& shape) {
  Arch arch;
  arch.hidden = shape.hidden;
  arch.heads = shape.heads;
  arch.kv_heads = shape.kv_heads;
  arch.head_dim = shape.head_dim;
  arch.ffn = shape.ffn;
  arch.vocab = shape.vocab;
  arch.rms_eps = 1e-6f;
  arch.rotary = {rotary_rule(10000, arch.head_dim)};
  shape.family->rules(arch);
  // Logits of a tied head are as long as its rows. A cap far below them leaves a gradient of nothing but rounding.
  if (shape.tied) arch.logit_cap *= std::sqrt(static_cast<float>(arch.hidden));
  return arch;
}

SegmentSpec spec_of(const Case& c) {
  const Shape& shape = *c.shape;
  SegmentSpec spec;
  spec.checkpointed_blocks = c.keeping == Keeping::recomputed ? kBlocks : 0;
  spec.offloaded_blocks = c.keeping == Keeping::on_host ? kBlocks : 0;
  spec.cached_blocks = c.keeping == Keeping::cached ? kBlocks : 0;
  spec.fp8 = c.fp8;
  const std::vector<std::int32_t> tokens = c.rows_of_tokens ? std::vector<std::int32_t>{700, 3, 4, 5, 11, 48} : std::vector<std::int32_t>();
  EmbeddingSpec embedding{"embedding", "embed"};
  embedding.token_rows = tokens;
  spec.layers.push_back(embedding);
  std::uint32_t module = 0;
  const Arch arch = arch_of(shape);
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    const std::string at = "block" + std::to_string(b) + ".";
    BlockSpec block;
    block.index = b;
    shape.family->name_norms(block, at, arch);
    if (shape.head_norms) {
      block.q_norm = at + "q_norm";
      block.k_norm = at + "k_norm";
    }
    const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias) {
      LinearSpec made;
      made.role = role;
      made.name = at + name;
      made.in = in;
      made.out = out;
      made.bias = bias;
      const bool q_or_v = role == Role::q || role == Role::v || role == Role::qkv;
      const bool adapted = c.targets == Targets::all_linear || c.targets == Targets::pattern || (c.targets == Targets::q_v && q_or_v) ||
                           (c.targets == Targets::one && role == Role::down);
      const std::int64_t rank = c.targets == Targets::pattern ? 1 + (c.rank + 7 * module) % (2 * c.rank) : c.rank;
      if (adapted) made.lora = LoraSpec{rank, 2.0f, c.dropout, module, c.dora};
      ++module;
      block.linears.push_back(made);
    };
    shape.family->attention(block, at, arch, shape.fused_qkv, shape.bias, linear);
    const Mixture* experts = shape.experts;
    const std::int64_t ffn = experts != nullptr ? experts->shared : shape.ffn;
    if (experts != nullptr) {
      const bool adapted = c.targets == Targets::all_linear || c.targets == Targets::one;
      experts->add_to(block, at, shape.hidden, adapted ? c.rank : 0, 1000 + 2 * static_cast<std::uint32_t>(b));
      if (experts->shared_gate) linear(Role::shared_gate, "shared_gate", shape.hidden, 1, false);
    }
    if (ffn > 0 && shape.family->fused_gate_up) {
      linear(Role::gate_up, "gate_up", shape.hidden, 2 * ffn, false);
    } else if (ffn > 0) {
      linear(Role::gate, "gate", shape.hidden, ffn, false);
      linear(Role::up, "up", shape.hidden, ffn, false);
    }
    if (ffn > 0) linear(Role::down, "down", ffn, shape.hidden, false);
    spec.layers.push_back(std::move(block));
  }
  spec.layers.push_back(NormSpec{"norm"});
  HeadSpec head{shape.tied ? "embedding" : "head", "head", std::nullopt};
  if (shape.tied) head.token_rows = tokens;
  spec.layers.push_back(head);
  return spec;
}

MicroBatch batch_of(const Case& c, std::uint32_t step) {
  MicroBatch micro;
  micro.index = step;
  micro.step = step;
  micro.seed = 11;
  micro.training = true;
  micro.cu_seqlens.push_back(0);
  for (std::size_t r = 0; r < c.rows.size(); ++r) {
    micro.row_ids.push_back(static_cast<std::int32_t>(r));
    for (int t = 0; t < c.rows[r]; ++t) {
      const auto n = static_cast<std::int32_t>(micro.tokens.size());
      micro.tokens.push_back(static_cast<std::int32_t>((n * 37 + c.first_token) % c.shape->vocab));
      micro.targets.push_back(t % 4 == 3 ? -100 : static_cast<std::int32_t>((n * 17 + 3) % c.shape->vocab));
      micro.weights.push_back(t % 4 == 3 ? 0.0f : 1.0f);
    }
    micro.cu_seqlens.push_back(static_cast<std::int32_t>(micro.tokens.size()));
  }
  return micro;
}

constexpr std::size_t kNoise = std::size_t{1} << 20;
const std::vector<float>& noise() {
  static const std::vector<float> values = [] {
    const Values drawn = random_values(kNoise, 1, DType::bf16, 5);
    return std::vector<float>(drawn.begin(), drawn.end());
  }();
  return values;
}

/// Normal numbers times `scale`, plus `mean`, that start at another place each time.
void fill(std::vector<float>& to, std::size_t& place, double scale, double mean) {
  const std::vector<float>& from = noise();
  const auto factor = static_cast<float>(scale), shift = static_cast<float>(mean);
#pragma omp parallel for
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = from[(place + i) % kNoise] * factor + shift;
  place = (place + to.size() + 977) % kNoise;
}

/// Losses of two steps with an update between them, and the gradients of the first by matrix.
struct Outcome {
  Values losses;
  std::map<std::string, Values> gradients;
  bool operator==(const Outcome&) const = default;
};

Outcome run(const Case& c, DType compute) {
  const Arch arch = arch_of(*c.shape);
  auto ops = make_cuda_ops(0, compute);
  const std::size_t bytes = std::size_t{24} << 30;
  const auto memory = ops->allocate("the arena", bytes, false);
  // The engine's streams do not wait for the default one.
  if (cudaMemset(memory->data(), 0xFF, bytes) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) throw Error(kEngineFailed, "the arena could not be filled");
  Arena arena(memory->data(), bytes);
  ops->use_arena(arena);
  if (c.keeping == Keeping::on_host) ops->reserve_host(std::size_t{6} << 30);
  RopeTables rope(*ops, arch);
  const SegmentSpec spec = spec_of(c);
  Segment segment(*ops, arena, rope, arch, spec);
  std::size_t offset = 0;
  std::vector<float> values;
  const auto load = [&](const std::string& name, std::vector<std::int64_t> shape, double scale, double mean, const HoldSpec& hold) {
    std::int64_t count = 1;
    for (std::int64_t n : shape) count *= n;
    values.resize(static_cast<std::size_t>(count));
    fill(values, offset, scale, mean);
    segment.slots().load(name, shape, {values.data(), DType::f32, shape.size() == 1 ? 1 : shape[0], shape.back()}, hold);
  };
  HoldSpec plain;
  plain.dtype = c.compute;  // both engines hold the same values
  load_base(spec, arch, plain, c.hold, load);
  if (!c.shape->tied) load("head", {arch.vocab, arch.hidden}, 1 / std::sqrt(static_cast<double>(arch.hidden)), 0, plain);
  const std::vector<NamedMatrix*> matrices = segment.matrices();
  std::vector<float> floats;
  const auto is_magnitude = [](const NamedMatrix& matrix) { return matrix.name().ends_with(".lora_magnitude_vector"); };
  for (NamedMatrix* matrix : matrices) {
    if (is_magnitude(*matrix)) continue;
    const Tensor weight = matrix->part(MatrixPart::weight);
    floats.resize(static_cast<std::size_t>(weight.size()));
    // A product of A and B as large at every rank.
    const bool is_a = matrix->name().ends_with(".lora_A.weight");
    const double scale = is_a ? 1 / std::sqrt(static_cast<double>(weight.cols)) : 0.3 / std::sqrt(static_cast<double>(weight.rows));
    fill(floats, offset, scale, 0);
    matrix->set(*ops, MatrixPart::weight, floats.data(), floats.size());
  }
  // Gains around 1.
  if (c.dora) segment.first_values();
  for (NamedMatrix* matrix : matrices) {
    if (!is_magnitude(*matrix)) continue;
    std::vector<float> magnitude = matrix->get(*ops, MatrixPart::weight);
    floats.resize(magnitude.size());
    fill(floats, offset, 0.2, 1);
    for (std::size_t i = 0; i < magnitude.size(); ++i) magnitude[i] *= floats[i];
    matrix->set(*ops, MatrixPart::weight, magnitude.data(), magnitude.size());
  }

  Outcome outcome;
  for (std::uint32_t step = 0; step < 2; ++step) {
    const MicroBatch micro = batch_of(c, step);
    outcome.losses.push_back(segment.forward(micro, Buffer()).loss_sum);
    if (step > 0) break;
    segment.backward(micro.index, Buffer());
    for (const NamedMatrix* matrix : matrices) {
      const std::vector<float> gradient = matrix->get(*ops, MatrixPart::grad);
      outcome.gradients[matrix->name()] = Values(gradient.begin(), gradient.end());
    }
    grad_squares(*ops, matrices);
    AdamSettings settings;
    settings.step = 1;
    settings.learning_rate = 1e-4;
    adamw_step(*ops, matrices, settings);
  }
  ops->finish();
  return outcome;
}

double mean_square(const Values& values) {
  return std::inner_product(values.begin(), values.end(), values.begin(), 0.0) / static_cast<double>(std::max<std::size_t>(1, values.size()));
}

/// ‖got - expected‖ / ‖expected‖, the latter at least of numbers as large as `least`: what ought to be zero is rounding (in rows of
/// one token, the gradients of q and k).
double distance(const Values& got, const Values& expected, double least) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / std::max(norm, least * least * static_cast<double>(expected.size())));
}

/// How far a run in 16 bits is from float32's, and whether that is too far.
struct Comparison {
  double loss = 0, gradient = 0, whole = 0;  // errors of the losses, of the worst matrix's gradient, and of all gradients together
  std::string worst, what;
  bool good = false;
};

/// What a gradient may be off by: all of them together, and `name`'s alone.
struct Limits {
  explicit Limits(const Case& c) {
    const bool routed = c.shape->experts != nullptr;
    // LLM.int8() rounds inputs to 8 bits by their own scale: a 16-bit input falls on other steps than a 32-bit one.
    // e4m3 numbers are off by up to a sixteenth; DoRA's gains are rounded once more.
    // A token whose next best expert is as good as the chosen one may go to that one in 16 bits.
    whole = (c.fp8 ? 3e-1 : c.base == "int8" ? 2e-1 : c.dora ? 7e-2 : 5e-2) + (c.few() ? rounding_of_few(c) : 0) + (routed ? 1.5e-1 : 0);
    one_number = c.few() && c.rank == 1;
    // Gradients of queries and keys are differences of nearly equal parts: one matrix's may be off by more than all are together.
    matrix = whole + (c.fp8 ? 1.5e-1 : routed ? 5e-2 : 0);
    // A token's row sums over that token's places alone, which are few.
    row_of_token = matrix + (c.few() ? 0 : rounding_of_few(c));
  }
  double of(const std::string& name) const {
    // A single token's at rank 1 is one number times its input, and says nothing where that number is nearly 0.
    if (one_number) return std::numeric_limits<double>::infinity();
    return name.find("trainable_tokens_delta") != std::string::npos ? row_of_token : matrix;
  }

  double whole, matrix, row_of_token;
  bool one_number;

 private:
  static double rounding_of_few(const Case& c) { return c.fp8 ? 2e-1 : 1e-1; }
};

Comparison compare(const Case& c) {
  const Limits limits(c);
  Comparison made;
  bool within = true;
  try {
    Case plain = c;
    plain.keeping = Keeping::kept;
    const Outcome got = run(c, c.compute), expected = run(plain, DType::f32);
    made.loss = distance(got.losses, expected.losses, 0);
    double largest = 0;
    Values all_got, all_expected;
    for (const auto& [name, values] : expected.gradients) largest = std::max(largest, mean_square(values));
    for (const auto& [name, values] : expected.gradients) {
      const Values& own = got.gradients.at(name);
      all_got.insert(all_got.end(), own.begin(), own.end());
      all_expected.insert(all_expected.end(), values.begin(), values.end());
      const double error = distance(own, values, 0.02 * std::sqrt(largest));
      within &= error <= limits.of(name);
      if (!(error <= made.gradient)) {
        made.gradient = error;
        made.worst = name;
      }
    }
    made.whole = distance(all_got, all_expected, 0);
    if (c.keeping != Keeping::kept && !(run(plain, c.compute) == got)) made.what = "other bits than with activations kept; ";
  } catch (const std::exception& error) {
    made.what += error.what();
  }
  made.good = made.what.empty() && within && made.loss <= limits.whole / 5 && made.whole <= limits.whole;
  return made;
}

void one(int index, Case c) {
  const auto begin = std::chrono::steady_clock::now();
  Comparison made = compare(c);
  // Where one of a few tokens goes to another expert than in float32, its gradients have nothing in common with those: other tokens tell.
  for (int again = 0; again < 2 && !made.good && made.what.empty() && c.few() && c.shape->experts != nullptr; ++again) {
    c.first_token += 131;
    made = compare(c);
  }
  if (!made.good) ++failures;
  std::printf("%-6s %3d %s: loss %.1e gradients %.1e, %.1e of %s %s(%.1f s)\n", made.good ? "ok" : "FAILED", index, c.name().c_str(), made.loss, made.whole,
              made.gradient, made.worst.c_str(), made.what.c_str(), std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  std::fflush(stdout);
}

Case drawn(std::mt19937& random, const Shape& shape, std::int64_t rank, bool small) {
  const auto pick = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
  Case c{};
  c.shape = &shape;
  c.rank = rank;
  c.targets = static_cast<Targets>(pick(8) < 5 ? 0 : 1 + pick(3));
  c.compute = pick(4) == 0 ? DType::f16 : DType::bf16;
  const char* const bases[] = {"nf4", "nf4", "fp4", "int8", "held"};
  c.base = bases[pick(5)];
  c.hold.dtype = c.compute;
  if (c.base == "nf4") c.hold.quantisation = Quantisation::nf4;
  if (c.base == "fp4") c.hold.quantisation = Quantisation::fp4;
  if (c.base == "int8") c.hold.quantisation = Quantisation::int8;
  c.hold.double_quant = c.base == "nf4" && pick(2) == 0;
  c.dropout = pick(2) == 0 ? 0.1f : 0.0f;
  c.keeping = static_cast<Keeping>(pick(4));
  if (c.base == "held" && c.keeping == Keeping::cached) c.keeping = Keeping::kept;
  const std::vector<std::vector<int>> rows{{1}, {1, 1, 1}, {7, 1, 300}, {384, 384, 384}, std::vector<int>(8, 384), {17, 384, 5, 96, 61}, {2048}, {1023, 1}, {8192}};
  c.rows = rows[pick(small ? 3 : rows.size())];
  // A query that meets one key has no gradient, and latent attention has no matrix of values beside its queries'.
  if (c.targets == Targets::q_v && c.few() && shape.family->attend(0) == Attend::latent) c.rows = rows[2];
  c.fp8 = pick(4) == 0;
  c.dora = pick(3) == 0;
  c.rows_of_tokens = pick(3) == 0;
  return c;
}

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = 1;
  int cases = 40, only = -1;
  std::size_t part = 0, parts = 1;  // every parts-th case, from this one on: several processes share a run
  bool all = false, small = false, fp8 = false, dora = false, experts = false;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--seed" && i + 1 < argc) seed = static_cast<unsigned>(std::stoul(argv[++i]));
    else if (flag == "--cases" && i + 1 < argc) cases = std::stoi(argv[++i]);
    else if (flag == "--case" && i + 1 < argc) only = std::stoi(argv[++i]);
    else if (flag == "--part" && i + 1 < argc && std::sscanf(argv[i + 1], "%zu/%zu", &part, &parts) == 2 && part < parts) ++i;
    else if (flag == "--all") all = true;
    else if (flag == "--fp8") fp8 = true;
    else if (flag == "--dora") dora = true;
    else if (flag == "--experts") experts = true;
    else if (flag == "small") small = true;
  }
  std::mt19937 random(seed);
  std::vector<Case> chosen;
  std::vector<const Shape*> shapes;
  for (const Shape& shape : kShapes)
    if (!experts || shape.experts != nullptr) shapes.push_back(&shape);
  if (all) {
    for (const Shape* shape : shapes)
      for (const std::int64_t rank : kRanks) chosen.push_back(drawn(random, *shape, rank, small));
  } else {
    for (int i = 0; i < cases; ++i) chosen.push_back(drawn(random, *shapes[random() % shapes.size()], kRanks[random() % std::size(kRanks)], small));
  }
  if (fp8)
    for (Case& c : chosen) c.fp8 = true;
  if (dora)
    for (Case& c : chosen) c.dora = true;
  int ran = 0;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    if ((only >= 0 && static_cast<std::size_t>(only) != i) || i % parts != part) continue;
    one(static_cast<int>(i), chosen[i]);
    ++ran;
  }
  std::printf("%d cases of seed %u; not covered: several micro-batches in flight, a segment cut between blocks, GPUs before Hopper\n", ran, seed);
  return finish();
}
