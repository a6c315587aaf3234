// Off the beaten path on the CPU: loss and LoRA gradients of two-block models over ranks, rank patterns, targets, head widths, head
// ratios, vocabularies, row lengths, dtypes and quantised bases, against float64 finite differences. Every axis has all its values
// in some case; which of the others stand beside it is drawn by a fixed seed.
#include <random>

#include "tests/support/in_turn.h"
#include "tests/support/test_model.h"

using namespace testing;

namespace {

struct Heads {
  std::int64_t heads, kv_heads, head_dim;
};

const std::vector<std::int64_t> kRanks{1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 64, 128, 256};
const std::vector<Heads> kHeads{{4, 2, 8}, {1, 1, 2}, {3, 3, 6}, {3, 1, 10}, {8, 1, 16}, {7, 1, 34}, {2, 2, 80}, {2, 1, 96}, {2, 1, 128}, {2, 1, 256}, {1, 1, 300}};
const std::vector<std::int64_t> kVocabs{50, 51, 2, 129, 257, 1000};
const std::vector<std::int64_t> kWidths{32, 33, 40, 63, 72};
const std::vector<std::int64_t> kFfns{24, 1, 31, 65, 130};
const std::vector<std::vector<std::int32_t>> kLengthSets{{9, 1, 14}, {2}, {1, 1, 3}, {33}, {7, 65}, {16, 16}};
const std::vector<std::int64_t> kWindows{0, 0, 0, 1, 7};

struct Base {
  const char* name;
  HoldSpec hold;
};
const std::vector<Base> kBases{
    {"f32", {}},
    {"nf4", {DType::f32, Quantisation::nf4}},
    {"fp4", {DType::f32, Quantisation::fp4}},
    {"nf4 twice", {DType::f32, Quantisation::nf4, 64, true}},
    {"nf4 expanded", {.dtype = DType::f32, .quantisation = Quantisation::nf4, .keep_expanded = true}},
};

/// Targets: which linears have a pair. 0: all, at one rank; else a part of them, or ranks that differ.
std::int64_t rank_of(int targets, std::int64_t rank, const std::string& name) {
  const auto is = [&](const char* role) { return name.ends_with(std::string(".") + role); };
  switch (targets) {
    case 1: return is("q") || is("v") || is("qkv") ? rank : 0;
    case 2: return is("down") ? rank : 0;
    case 3: return is("k") || is("gate") || is("qkv") ? rank : 0;
    case 4: return is("q") || is("down") ? rank : is("k") || is("up") ? 1 : is("o") ? 0 : rank + 3;
    case 5: return name.starts_with("block1") ? rank : 0;
    default: return rank;
  }
}
constexpr int kTargets = 6;
constexpr double kNothing = 2e-6;

/// Entries of a vector, as doubles.
Values at_indices(const std::vector<float>& values, const std::vector<std::size_t>& indices) {
  Values picked;
  for (const std::size_t index : indices) picked.push_back(values[index]);
  return picked;
}

struct Draw {
  std::mt19937 bits;
  template <class T>
  const T& of(const std::vector<T>& values, int fixed) {
    const std::size_t drawn = bits() % values.size();
    return values[fixed < 0 ? drawn : static_cast<std::size_t>(fixed) % values.size()];
  }
};

/// `i` counts through the values of every axis at its own pace; the rest is drawn.
void check_case(unsigned i) {
  Draw draw{std::mt19937(7000 + i)};
  const auto turn = [&](unsigned axis) { return i % 3 == axis ? static_cast<int>(i / 3) : -1; };
  Family family;
  const std::int64_t rank = draw.of(kRanks, turn(0));
  const Heads& heads = draw.of(kHeads, turn(1));
  family.heads = heads.heads;
  family.kv_heads = heads.kv_heads;
  family.head_dim = heads.head_dim;
  family.vocab = draw.of(kVocabs, turn(2));
  family.hidden = draw.of(kWidths, static_cast<int>(i));
  family.ffn = draw.of(kFfns, turn(2));
  const std::vector<std::int32_t>& lengths = draw.of(kLengthSets, turn(2));
  family.window = draw.of(kWindows, -1);
  const Base& base = draw.of(kBases, turn(2));
  family.hold = base.hold;
  family.blocks = 2;
  family.fused_qkv = draw.bits() % 4 == 0;
  family.qkv_bias = draw.bits() % 2 == 0;
  family.head_norms = draw.bits() % 4 == 0;
  family.dropout = draw.bits() % 2 == 0 ? 0.0f : 0.2f;
  const int targets = static_cast<int>(draw.bits() % kTargets);
  // Where only the embedding's neighbours are chosen nothing may be left to learn: fused models have no q of their own.
  family.rank = [=](const std::string& name) { return name == "head" ? 0 : rank_of(targets, rank, name); };
  const std::int64_t checkpointed = draw.bits() % 3;
  // With one input a row of W + s B A may be next to nothing beside W and s B A: its norm then is what float32, or LLM.int8(), rounds off them.
  family.dora = draw.bits() % 3 == 0 && family.ffn > 1;
  CAPTURE(i);
  CAPTURE(rank);
  CAPTURE(targets);
  CAPTURE(family.heads);
  CAPTURE(family.kv_heads);
  CAPTURE(family.head_dim);
  CAPTURE(family.hidden);
  CAPTURE(family.ffn);
  CAPTURE(family.vocab);
  CAPTURE(lengths.size());
  CAPTURE(base.name);
  CAPTURE(family.dropout);
  CAPTURE(family.dora);

  TestModel model(family);
  REQUIRE(!model.lora.empty());
  MicroBatch batch = model.batch(lengths);
  const auto engine = model.engine(DType::f32, static_cast<int>(1 + i % 2), {}, checkpointed);
  const ForwardResult result = forward_all(*engine, 1, batch);
  CHECK(result.loss_sum == doctest::Approx(model.loss(batch)).epsilon(2e-5));
  backward_all(*engine, 1, batch.index);
  for (auto& [name, pair] : model.lora)
    for (const LoraMatrix matrix : pair.trained()) {
      CAPTURE(name);
      const std::vector<float> got = engine->get_matrix(matrix_name(name, matrix), MatrixPart::grad);
      for (const float value : got) REQUIRE(std::isfinite(value));
      Values& values = pair.matrix(matrix);
      const auto at = reference::spread(values.size(), 3);
      const Values expected = reference::derivatives(values, at, [&] { return model.loss(batch); }, 1e-4);
      const Values found = at_indices(got, at);
      // Relative to the whole gradient, which may itself be nothing but rounding: a row of one token moves no score.
      double norm = 0;
      for (const float value : got) norm += static_cast<double>(value) * value;
      const double scale = std::sqrt(norm / static_cast<double>(got.size()));
      for (std::size_t k = 0; k < at.size(); ++k) CHECK(std::abs(found[k] - expected[k]) < 2e-3 * (scale + std::abs(expected[k])) + kNothing);
    }
}

}  // namespace

TEST_CASE("loss and gradients of two-block models of any rank, shape, target and base equal float64 finite differences") {
  for (unsigned i = 0; i < 60; ++i) check_case(i);
}

TEST_CASE("bfloat16 and int8 bases follow float32's loss at any rank and shape") {
  for (unsigned i = 0; i < kRanks.size(); ++i) {
    const std::int64_t rank = kRanks[i];
    const Heads& heads = kHeads[i % kHeads.size()];
    CAPTURE(rank);
    CAPTURE(heads.head_dim);
    Family family;
    family.heads = heads.heads;
    family.kv_heads = heads.kv_heads;
    family.head_dim = heads.head_dim;
    family.vocab = kVocabs[i % kVocabs.size()];
    family.hidden = kWidths[i % kWidths.size()];
    family.ffn = kFfns[(i + 3) % kFfns.size()];
    family.blocks = 2;
    family.dora = i % 2 == 0 && family.ffn > 1;
    family.dropout = i % 4 == 0 ? 0.2f : 0.0f;
    family.rank = [=](const std::string& name) { return rank_of(static_cast<int>(i) % kTargets, rank, name); };
    Family packed = family;
    packed.hold.quantisation = Quantisation::int8;
    TestModel model(family), eight(packed);
    const MicroBatch batch = model.batch(kLengthSets[i % kLengthSets.size()]);
    const double exact = model.loss(batch);
    // Labels of a tiny vocabulary have a loss near nothing: an error counts against a loss of some size.
    const double close = 0.05 * (std::abs(exact) + 0.1);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      if (dtype == DType::bf16) {
        const auto engine = model.engine(dtype, 1, {}, 0);
        CHECK(std::abs(forward_all(*engine, 1, batch).loss_sum - exact) < close);
        backward_all(*engine, 1, 0);
        for (const auto& [name, values] : gradients(*engine))
          for (const float value : values) REQUIRE(std::isfinite(value));
      }
      const auto engine = eight.engine(dtype, 1, {}, 1);
      CHECK(std::abs(forward_all(*engine, 1, batch).loss_sum - exact) < close);
      backward_all(*engine, 1, 0);
      for (const auto& [name, values] : gradients(*engine))
        for (const float value : values) REQUIRE(std::isfinite(value));
    }
  }
}

TEST_CASE("a cache filled token by token gives float64's loss at any head width, head ratio and vocabulary") {
  for (unsigned i = 0; i < kHeads.size(); ++i)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Family family;
      family.heads = kHeads[i].heads;
      family.kv_heads = kHeads[i].kv_heads;
      family.head_dim = kHeads[i].head_dim;
      family.vocab = kVocabs[i % kVocabs.size()];
      family.hidden = kWidths[i % kWidths.size()];
      family.window = i % 4 == 3 ? 3 : 0;
      family.blocks = 2;
      CAPTURE(family.head_dim);
      CAPTURE(family.vocab);
      TestModel model(family);
      MicroBatch batch = model.batch({9});
      batch.training = false;
      const auto engine = model.engine(dtype, 2, {}, 0);
      const std::size_t cache = engine->create_cache(1, 9);
      InTurn turn(1, 9);
      Values logits;
      for (std::size_t p = 0; p < 9; ++p) {
        // Three at first, then one at a time.
        const std::vector<std::int32_t> tokens(batch.tokens.begin() + (p == 2 ? 0 : static_cast<std::ptrdiff_t>(p)), batch.tokens.begin() + static_cast<std::ptrdiff_t>(p) + 1);
        if (p >= 2) logits = Device::get(engine->infer(0, cache, turn.next({0, static_cast<std::int32_t>(tokens.size())}), tokens, Buffer()));
      }
      const auto vocab = static_cast<std::size_t>(family.vocab);
      REQUIRE(logits.size() == vocab);
      std::fill(batch.targets.begin(), batch.targets.end(), -100);
      batch.targets.back() = 1;
      batch.weights.back() = 1;
      const double exact = model.loss(batch);
      CHECK(std::abs(reference::cross_entropy(logits.data(), vocab, 1) - exact) < (dtype == DType::f32 ? 1e-4 : 0.1) * (1 + std::abs(exact)));
      engine->free_cache(cache);
      CHECK(engine->arena().used() == 0);
    }
}
