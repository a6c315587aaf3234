// The arena's peak against the formulas of README.md, which the planner uses.
#include "tests/support/test_model.h"

using namespace testing;

namespace {

struct Ranks {
  double qkv, o, gate_up, down;
  double all() const { return qkv + o + gate_up + down; }
};

struct Shape {
  double c, t, l, d, q, kv, f, v, heads;  // bytes an element; tokens, labels; widths
  Ranks r;
  bool head_norms;
};

double kept(const Shape& s) { return s.c * (2 * s.d + 2 * s.q + 2 * s.kv + 2 * s.f) + 4 * s.heads + 4 * s.r.all(); }
double checkpointed(const Shape& s) { return s.c * s.d + 4 * s.r.all(); }

double forward_extra(const Shape& s, bool keeps) {
  const double norms = s.head_norms && keeps ? s.q + s.kv : 0;
  const double attention = s.c * (s.d + s.q + 2 * s.kv + s.q + norms);
  return keeps ? std::max(s.c * (s.f + s.d), s.c * norms - s.c * (s.d + 2 * s.f))
               : std::max(attention, s.c * (2 * s.d + 3 * s.f));
}

/// Beyond what is saved and the gradient [T, D] that comes in.
double backward_extra(const Shape& s, bool keeps) {
  const double norms = s.head_norms ? s.q + s.kv : 0;
  const double mlp = std::max(s.c * s.f + 4 * s.r.down, s.c * s.d + 4 * s.r.gate_up);
  const double wide = s.c < 4 ? 4 * s.q : 0;  // the query gradient's sum in float32
  const double attention = s.c * (s.q + s.q + 2 * s.kv + norms) + wide + 4 * s.r.o - s.c * (s.d + 2 * s.f);
  return (keeps ? 0 : kept(s) - checkpointed(s)) + std::max(mlp, attention);
}

double predicted_peak(const Shape& s, int blocks, int checkpointed_blocks) {
  const auto saved = [&](int count) {
    const int few = std::min(count, checkpointed_blocks);
    return few * checkpointed(s) + (count - few) * kept(s);
  };
  const double all = s.t * saved(blocks), hidden = s.t * s.c * s.d;
  double peak = 0;
  for (int b = 0; b < blocks; ++b) {
    const bool keeps = b >= checkpointed_blocks;
    peak = std::max(peak, s.t * (saved(b + 1) + forward_extra(s, keeps)));
    peak = std::max(peak, s.t * (saved(b + 1) + backward_extra(s, keeps)) + hidden);
  }
  const double logits = s.l * (s.v * (s.c < 4 ? 4 + s.c : 4) + s.c * s.d) + 16 * s.l;
  return std::max({peak, all + 2 * hidden + s.l * s.c * s.d + logits, all + 2 * hidden + s.l * s.c * s.d});
}

}  // namespace

TEST_CASE("the arena's peak is what the formulas say, within 5 %") {
  const std::vector<Family> families{{.fused_qkv = true, .kv_heads = 4}, {.qkv_bias = true, .dropout = 0.1f}, {.head_norms = true, .kv_heads = 1}};
  for (const Family& family : families)
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int checkpointed_blocks : {0, 1, 3})
        for (const bool few_labels : {false, true}) {
          TestModel model(family);
          MicroBatch batch = model.batch({700, 500});
          if (few_labels) std::fill(batch.targets.begin() + 20, batch.targets.end(), -100);
          const auto labels = std::count_if(batch.targets.begin(), batch.targets.end(), [](std::int32_t t) { return t != -100; });
          const auto engine = model.engine(dtype, 1, {}, checkpointed_blocks);
          forward_all(*engine, 1, batch);
          backward_all(*engine, 1, 0);
          const double r = TestModel::kRank, blocks = TestModel::kBlocks;
          // Of the blocks' pairs, one block has none on gate: on average.
          const Ranks ranks{family.fused_qkv ? r : 2 * r, r, r * (1 + (blocks - 1) / blocks), r};
          const Shape shape{static_cast<double>(dtype_bytes(dtype)),
                            static_cast<double>(batch.tokens.size()),
                            static_cast<double>(labels),
                            TestModel::kHidden,
                            TestModel::kHeads * TestModel::kHeadDim,
                            static_cast<double>(family.kv_heads * TestModel::kHeadDim),
                            TestModel::kFfn,
                            TestModel::kVocab,
                            TestModel::kHeads,
                            ranks,
                            family.head_norms};
          CAPTURE(checkpointed_blocks);
          CAPTURE(dtype_name(dtype));
          CAPTURE(few_labels);
          CHECK(static_cast<double>(engine->memory().arena_peak_bytes) == doctest::Approx(predicted_peak(shape, TestModel::kBlocks, checkpointed_blocks)).epsilon(0.05));
        }
}
