// Whole models: loss and gradients against float64, and what must never change a bit.
#include <array>

#include "tests/support/in_turn.h"
#include "tests/support/test_model.h"

using namespace testing;

namespace {

const std::vector<std::pair<std::string, Family>> kFamilies{
    {"fused qkv with bias", {.fused_qkv = true, .qkv_bias = true, .kv_heads = 4}},
    {"grouped heads, dropout", {.qkv_bias = true, .dropout = 0.25f}},
    {"norms on heads, LoRA on the head", {.head_norms = true, .head_lora = true, .kv_heads = 1, .dropout = 0.1f}},
    {"sliding window", {.window = 5}},
    {"Gemma 2: norms on both sides of weight - 1, caps, GELU with tanh, scaled embeddings",
     {.window = 6, .post_norms = true,
      .rules = [](Arch& arch) {
        arch.activation = Activation::gelu_tanh;
        arch.norm_offset = 1;
        arch.embedding_scale = 0.7f;
        arch.score_scale = 0.4f;
        arch.score_cap = 1.5f;
        arch.logit_cap = 2;
      }}},
    {"Gemma 3: two rotary rules, norms of heads, LoRA on the head under its cap",
     {.head_norms = true, .head_lora = true, .dropout = 0.2f, .post_norms = true,
      .rules = [](Arch& arch) {
        arch.norm_offset = 1;
        arch.rotary.push_back(rotary_rule(100, 8));
        arch.logit_cap = 3;
        arch.logit_scale = 0.5f;
      },
      .rotary = [](std::int64_t block) { return block % 2; }}},
    {"GLM-4: a part of neighbours, norms behind, gate and up fused",
     {.qkv_bias = true, .kv_heads = 1, .post_norms = true, .fused_gate_up = true,
      .rules = [](Arch& arch) {
        arch.rotary = {rotary_rule(10000, 4)};
        arch.rotary_interleaved = true;
      }}},
    {"Phi-4-mini: fused, half of each head", {.fused_qkv = true, .fused_gate_up = true, .rules = [](Arch& arch) { arch.rotary = {rotary_rule(10000, 6)}; }}},
    {"Granite: factors everywhere",
     {.rules = [](Arch& arch) {
        arch.embedding_scale = 2;
        arch.residual_scale = 0.4f;
        arch.logit_scale = 0.3f;
        arch.score_scale = 0.2f;
      }}},
    {"OLMo 2: norms behind alone, of whole q and k", {.head_norms = true, .pre_norms = false, .post_norms = true, .rules = [](Arch& arch) { arch.head_norm_whole = true; }}},
    {"Cohere 2: LayerNorm, parallel, positions in some blocks",
     {.window = 4, .dropout = 0.1f,
      .rules = [](Arch& arch) {
        arch.norm_centred = true;
        arch.parallel = true;
        arch.rotary_interleaved = true;
        arch.logit_scale = 0.25f;
      },
      .rotary = [](std::int64_t block) -> std::int64_t { return block == 1 ? -1 : 0; }}},
    {"Hunyuan: norms of heads behind rotary, GELU", {.head_norms = true, .kv_heads = 4, .rules = [](Arch& arch) {
        arch.head_norm_after_rotary = true;
        arch.activation = Activation::gelu;
      }}},
    {"EXAONE 4: norms of heads, no positions in some blocks, norms behind",
     {.head_norms = true, .pre_norms = false, .post_norms = true, .rotary = [](std::int64_t block) -> std::int64_t { return block == 0 ? -1 : 0; }}},
    {"Ministral 3: queries scaled by place", {.rules = [](Arch& arch) {
        arch.query_scale_beta = 0.3;
        arch.query_scale_length = 4;
      }}},
    {"Phi-3: long rows have frequencies of their own", {.fused_qkv = true, .fused_gate_up = true, .rules = [](Arch& arch) {
        arch.rotary[0].long_inv_freq = rotary_rule(300, 8).inv_freq;
        arch.rotary[0].long_from = 9;
        arch.rotary[0].attention_scaling = 1;
      }}},
    {"dynamic NTK: long rows have bases of their own", {.rules = [](Arch& arch) {
        arch.rotary[0].dynamic_factor = 2;
        arch.rotary[0].long_from = 9;
      }}},
    {"InternLM 2: q, k and v by kv head", {.fused_qkv = true, .rules = [](Arch& arch) { arch.qkv_by_kv_head = true; }}},
    {"Qwen3-Next: gated delta nets by key head and gated attention, norms of weight - 1, half of each head turning",
     {.head_norms = true, .dropout = 0.1f,
      .rules = [](Arch& arch) {
        arch.norm_offset = 1;
        arch.rotary = {rotary_rule(10000, 4)};
      },
      .attention = [](std::int64_t block) { return block == 1 ? Attention::gated : Attention::delta_by_key_head; }}},
    {"Qwen3.5: four projections, one value head a key head, long taps, heads of uneven width",
     {.head_norms = true, .kv_heads = 1,
      .attention = [](std::int64_t block) { return block == 2 ? Attention::gated : Attention::delta; },
      .delta = {3, 3, 17, 9, 7}}},
    {"a gated delta net alone, norms behind, a factor, one key head for many",
     {.post_norms = true, .fused_gate_up = true, .rules = [](Arch& arch) { arch.residual_scale = 0.5f; },
      .attention = [](std::int64_t) { return Attention::delta; }, .delta = {1, 5, 7, 20, 2}}},
    {"DeepSeek-V2-Lite: latent k and v",
     {.kv_heads = 4, .rules = [](Arch& arch) {
        arch.rotary = {rotary_rule(10000, 2)};
        arch.rotary_interleaved = true;
      },
      .attention = [](std::int64_t) { return Attention::latent; }}},
    {"DeepSeek-V3: latent q too, biases, dropout, halves, a scale of its own, heads of v narrower",
     {.qkv_bias = true, .kv_heads = 4, .dropout = 0.2f, .head_dim = 16,
      .rules = [](Arch& arch) {
        arch.rotary = {rotary_rule(500, 4)};
        arch.score_scale = 0.4f;
      },
      .attention = [](std::int64_t block) { return block == 1 ? Attention::latent : Attention::latent_q; }, .value_dim = 3}},
    {"every kind in one model, parallel",
     {.kv_heads = 4, .rules = [](Arch& arch) {
        arch.rotary = {rotary_rule(10000, 2)};
        arch.parallel = true;
        arch.score_cap = 2;
      },
      .attention = [](std::int64_t block) { return block == 0 ? Attention::latent_q : block == 1 ? Attention::delta : Attention::gated; }}},
    {"Llama 4: chunks and norms without weights where blocks turn, scaled queries where they do not",
     {.rules = [](Arch& arch) {
        arch.rotary_interleaved = true;
        arch.head_norm_after_rotary = true;
        arch.attention_chunk = 5;
        arch.query_scale_beta = 0.3;
        arch.query_scale_length = 4;
        arch.query_scale_first = 1;
        arch.query_scale_unturned = true;
      },
      .rotary = [](std::int64_t block) -> std::int64_t { return block == 1 ? -1 : 0; },
      .chunked = [](std::int64_t block) { return block != 1; },
      .plain_norms = [](std::int64_t block) { return block != 1; }}},
    {"chunks that end with rows, a window in them, plain norms before rotary, dropout",
     {.qkv_bias = true, .window = 3, .dropout = 0.1f, .rules = [](Arch& arch) { arch.attention_chunk = 7; },
      .chunked = [](std::int64_t) { return true; },
      .plain_norms = [](std::int64_t block) { return block == 2; }}},
    {"chunks of one token, gated attention, a cap",
     {.fused_qkv = false, .rules = [](Arch& arch) {
        arch.attention_chunk = 1;
        arch.score_cap = 2;
      },
      .attention = [](std::int64_t block) { return block == 0 ? Attention::gated : Attention::softmax; },
      .chunked = [](std::int64_t block) { return block == 0; }}},
    {"DoRA", {.qkv_bias = true, .head_lora = true, .dora = true}},
    {"DoRA with dropout, biases, a head of its own", {.qkv_bias = true, .head_lora = true, .dropout = 0.3f, .dora = true}},
    {"DoRA with dropout behind norms, fused products, a factor",
     {.fused_qkv = true, .dropout = 0.15f, .post_norms = true, .fused_gate_up = true, .rules = [](Arch& arch) { arch.residual_scale = 0.5f; }, .dora = true}},
    {"DoRA with dropout, no norm before, nothing learns in two blocks but what DoRA has there",
     {.dropout = 0.1f, .rank = [](const std::string& name) -> std::int64_t { return name == "block1.down" || name == "block1.v" || name == "block2.k" ? 2 : 0; },
      .pre_norms = false, .post_norms = true, .dora = true}},
    {"DoRA with dropout, parallel, the lowest pair on the MLP alone",
     {.dropout = 0.25f, .rank = [](const std::string& name) -> std::int64_t { return name == "block0.up" || name == "block0.down" ? 3 : 0; },
      .rules = [](Arch& arch) { arch.parallel = true; }, .dora = true}},
    {"DoRA with dropout on latent attention and delta nets",
     {.qkv_bias = true, .kv_heads = 4, .dropout = 0.2f, .head_dim = 16,
      .rules = [](Arch& arch) { arch.rotary = {rotary_rule(500, 4)}; },
      .attention = [](std::int64_t block) { return block == 0 ? Attention::delta : block == 1 ? Attention::latent : Attention::latent_q; }, .value_dim = 3, .dora = true}},
    {"everything at once: parallel with norms behind and a factor, centred norms of heads",
     {.fused_qkv = true, .head_norms = true, .window = 7, .post_norms = true, .fused_gate_up = true,
      .rules = [](Arch& arch) {
        arch.parallel = true;
        arch.norm_centred = true;
        arch.norm_offset = 0.5f;
        arch.residual_scale = 0.6f;
        arch.score_cap = 2;
        arch.rotary = {rotary_rule(1000, 4)};
        arch.qkv_by_kv_head = true;
        arch.activation = Activation::gelu_tanh;
      }}},
};
const std::vector<std::int32_t> kLengths{9, 1, 14};

}  // namespace

TEST_CASE("loss and LoRA gradients of whole models equal float64 finite differences") {
  std::size_t number = 0;
  for (const auto& [name, family] : kFamilies) {
    CAPTURE(name);
    TestModel model(family);
    MicroBatch batch = model.batch(kLengths);
    batch.label_smoothing = std::array{0.0f, 0.15f}[number % 2];
    batch.noise_alpha = std::array{0.0f, 4.0f, 0.0f}[number++ % 3];
    batch.loss_scale = 2;
    const auto engine = model.engine(DType::f32, 1, {}, 0);
    const ForwardResult result = forward_all(*engine, 1, batch);
    // Gains are quotients of norms in float32.
    CHECK(result.loss_sum == doctest::Approx(model.loss(batch)).epsilon(family.dora ? 2e-5 : 2e-6));
    CHECK(result.label_tokens == std::count_if(batch.targets.begin(), batch.targets.end(), [](std::int32_t t) { return t != -100; }));
    backward_all(*engine, 1, batch.index);
    for (auto& [lora_name, pair] : model.lora)
      for (const LoraMatrix matrix : pair.trained()) {
        CAPTURE(lora_name);
        const std::vector<float> got = engine->get_matrix(matrix_name(lora_name, matrix), MatrixPart::grad);
        Values& values = pair.matrix(matrix);
        const auto at = reference::spread(values.size(), 4);
        const Values expected = reference::derivatives(values, at, [&] { return 2.0 * model.loss(batch); }, 1e-5);
        // Of the size that so many of the gradient's elements have: those picked may happen to be small.
        const Values all(got.begin(), got.end()), picked = pick(all, at);
        Values error;
        for (std::size_t i = 0; i < picked.size(); ++i) error.push_back(picked[i] - expected[i]);
        const double usual = reference::dot(all, all) * static_cast<double>(at.size()) / static_cast<double>(all.size());
        CHECK(std::sqrt(reference::dot(error, error) / std::max(usual, reference::dot(expected, expected))) < 1e-4);
      }
  }
}

TEST_CASE("noise on embeddings is the same however rows are cut, and there is none outside training") {
  TestModel model(kFamilies.front().second);
  MicroBatch whole = model.batch(kLengths);
  whole.noise_alpha = 5;
  const auto engine = model.engine(DType::bf16, 1, {}, 0);
  const double together = forward_all(*engine, 1, whole).loss_sum;
  engine->discard();
  double apart = 0;
  for (std::size_t s = 0; s < kLengths.size(); ++s) {
    MicroBatch row = whole;
    row.cu_seqlens = {0, kLengths[s]};
    row.row_ids = {whole.row_ids[s]};
    const auto cut = [&](auto& values) { values = {values.begin() + whole.cu_seqlens[s], values.begin() + whole.cu_seqlens[s + 1]}; };
    cut(row.tokens);
    cut(row.targets);
    cut(row.weights);
    apart += forward_all(*engine, 1, row).loss_sum;
    engine->discard();
  }
  CHECK(apart == doctest::Approx(together).epsilon(1e-12));
  whole.training = false;
  const double evaluated = forward_all(*engine, 1, whole).loss_sum;
  whole.noise_alpha = 0;
  CHECK(forward_all(*engine, 1, whole).loss_sum == evaluated);
  CHECK(evaluated != together);
}

TEST_CASE("the gradient of a segment's input equals finite differences") {
  TestModel model({.qkv_bias = true, .dropout = 0.2f});
  MicroBatch batch = model.batch({6});
  batch.tokens = {3, 3, 3, 3, 3, 3};  // the embedding's row 3 moves every input alike
  const auto engine = model.engine(DType::f32, 1, {1}, 0);
  forward_all(*engine, 2, batch);
  Buffer gradient = engine->backward(1, batch.index, Buffer());
  REQUIRE(gradient);
  const Values got = Device::get(gradient);
  Values summed(TestModel::kHidden, 0.0);
  for (std::size_t i = 0; i < got.size(); ++i) summed[i % TestModel::kHidden] += got[i];
  Values& embedding = model.weights.at("embed");
  std::vector<std::size_t> at(TestModel::kHidden);
  std::iota(at.begin(), at.end(), std::size_t{3 * TestModel::kHidden});
  CHECK(distance(summed, reference::derivatives(embedding, at, [&] { return model.loss(batch); }, 1e-4)) < 1e-4);
}

TEST_CASE("threads, segments, checkpointing and offloading never change a bit") {
  for (const auto& [name, family] : kFamilies)
    for (const DType dtype : {DType::f32, DType::bf16}) {
      CAPTURE(name);
      TestModel model(family);
      struct Setting {
        int threads;
        std::vector<std::size_t> cuts;
        std::int64_t checkpointed, offloaded = 0;
      };
      const std::vector<Setting> settings{{1, {}, 0}, {3, {}, 0}, {1, {1, 2, 4, 5}, 0}, {1, {}, 3}, {2, {3}, 1}, {1, {}, 3, 1}, {1, {}, 3, 3}, {1, {3}, 2, 1}};
      std::vector<double> losses;
      std::vector<std::map<std::string, std::vector<float>>> grads;
      for (const Setting& setting : settings) {
        const std::size_t segments = setting.cuts.size() + 1;
        const auto engine = model.engine(dtype, setting.threads, setting.cuts, setting.checkpointed, std::size_t{32} << 20, setting.offloaded);
        double loss = 0;
        // Two micro-batches in flight, as in a pipeline.
        const MicroBatch first = model.batch(kLengths, 0), second = model.batch({4, 30}, 1);
        loss += forward_all(*engine, segments, first).loss_sum;
        loss += forward_all(*engine, segments, second).loss_sum;
        backward_all(*engine, segments, 0);
        backward_all(*engine, segments, 1);
        CHECK(engine->arena().used() == 0);
        losses.push_back(loss);
        grads.push_back(gradients(*engine));
      }
      for (std::size_t i = 1; i < settings.size(); ++i) {
        CHECK(losses[i] == losses[0]);
        CHECK(grads[i] == grads[0]);
      }
    }
}

TEST_CASE("bfloat16 stays close to float32") {
  TestModel model({.qkv_bias = true});
  const MicroBatch batch = model.batch(kLengths);
  std::map<std::string, std::vector<float>> grads[2];
  double losses[2];
  int i = 0;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto engine = model.engine(dtype, 1, {}, 0);
    losses[i] = forward_all(*engine, 1, batch).loss_sum;
    backward_all(*engine, 1, 0);
    grads[i++] = gradients(*engine);
  }
  CHECK(losses[1] == doctest::Approx(losses[0]).epsilon(1e-2));
  // Random weights of this scale amplify rounding; a wrong term would be off by its whole size.
  for (const auto& [name, wide] : grads[0]) {
    const std::vector<float>& narrow = grads[1].at(name);
    CHECK(distance(Values(narrow.begin(), narrow.end()), Values(wide.begin(), wide.end())) < 0.2);
  }
}

TEST_CASE("a cache gives the logits of the whole sequence, however the tokens arrive") {
  for (const auto& [name, family] : kFamilies) {
    CAPTURE(name);
    TestModel model(family);
    MicroBatch batch = model.batch({12, 7});
    batch.training = false;
    const auto engine = model.engine(DType::f32, 1, {2}, 0);
    const auto infer = [&](std::size_t cache, const CachedSequences& of, std::vector<std::int32_t> tokens) {
      Buffer x;
      for (std::size_t s = 0; s < 2; ++s) x = engine->infer(s, cache, of, s == 0 ? tokens : std::vector<std::int32_t>{}, std::move(x));
      return Device::get(x);
    };
    const std::size_t whole = engine->create_cache(2, 24), pieces = engine->create_cache(2, 40), strewn = engine->create_cache(5, 31);
    InTurn at_once(2, 12), turn(2, 20);
    const Values expected = infer(whole, at_once.next(batch.cu_seqlens), batch.tokens);
    // Prefill 8 and 5, then one token of each at a time; the shorter row ends with two at once.
    const auto token = [&](std::size_t row, std::size_t p) { return batch.tokens[row * 12 + p]; };
    std::vector<std::int32_t> first;
    for (std::size_t p = 0; p < 8; ++p) first.push_back(token(0, p));
    for (std::size_t p = 0; p < 5; ++p) first.push_back(token(1, p));
    const auto begun = [](CachedSequences of) {
      of.lengths = {12, 7};
      return of;
    };
    infer(pieces, begun(turn.next({0, 8, 13})), first);
    infer(pieces, begun(turn.next({0, 1, 2})), {token(0, 8), token(1, 5)});
    const Values got = infer(pieces, begun(turn.next({0, 3, 4})), {token(0, 9), token(0, 10), token(0, 11), token(1, 6)});
    CHECK(distance(got, expected) < 1e-5);
    // Each alone and in whichever order, in rows and slots where others have been.
    infer(strewn, {{0, 20}, {3}, {2}, {0}, {20}}, std::vector<std::int32_t>(20, 3));
    infer(strewn, {{0, 9}, {1}, {22}, {0}, {9}}, std::vector<std::int32_t>(9, 4));
    infer(strewn, {{0, 5}, {3}, {9}, {0}, {7}}, {first.begin() + 8, first.end()});
    infer(strewn, {{0, 2, 10}, {3, 1}, {9, 18}, {5, 0}, {7, 12}}, {token(1, 5), token(1, 6), token(0, 0), token(0, 1), token(0, 2), token(0, 3), token(0, 4), token(0, 5), token(0, 6), token(0, 7)});
    const Values last = infer(strewn, {{0, 4}, {1}, {18}, {8}, {12}}, {token(0, 8), token(0, 9), token(0, 10), token(0, 11)});
    CHECK(distance(last, Values(expected.begin(), expected.begin() + TestModel::kVocab)) < 1e-5);
    // The loss of an evaluation pass follows from the same logits.
    for (std::size_t row = 0; row < 2; ++row) {
      MicroBatch last = batch;
      std::fill(last.targets.begin(), last.targets.end(), -100);
      const std::size_t at = static_cast<std::size_t>(batch.cu_seqlens[row + 1]) - 1;
      last.targets[at] = 9;
      last.weights[at] = 1;
      CHECK(forward_all(*engine, 2, last).loss_sum == doctest::Approx(reference::cross_entropy(expected.data() + row * TestModel::kVocab, TestModel::kVocab, 9)).epsilon(1e-5));
    }
    CHECK(engine->memory().cache_bytes > 0);
    engine->free_cache(whole);
    engine->free_cache(pieces);
    engine->free_cache(strewn);
    CHECK(engine->memory().cache_bytes == 0);
    CHECK(engine->arena().used() == 0);
  }
}

TEST_CASE("Qwen's rules for long sequences: NTK factor by length, fixed when the cache is started") {
  CHECK(qwen_ntk_alpha(10, 64) == 1);
  CHECK(qwen_ntk_alpha(64, 64) == 1);
  CHECK(qwen_ntk_alpha(65, 64) == 3);
  CHECK(qwen_ntk_alpha(128, 64) == 3);
  CHECK(qwen_ntk_alpha(129, 64) == 7);
  TestModel model({.fused_qkv = true, .qkv_bias = true, .kv_heads = 4});
  MicroBatch batch = model.batch({20});
  batch.training = false;
  const auto plain = model.engine(DType::f32, 1, {}, 0);
  model.arch.qwen_long_seq_length = 8;
  model.arch.qwen_dynamic_ntk = true;
  const auto ntk = model.engine(DType::f32, 1, {}, 0);
  model.arch.qwen_dynamic_ntk = false;
  model.arch.qwen_logn = true;
  const auto logn = model.engine(DType::f32, 1, {}, 0);
  const double loss = forward_all(*plain, 1, batch).loss_sum;
  CHECK(std::abs(forward_all(*ntk, 1, batch).loss_sum - loss) > 1e-4);
  CHECK(std::abs(forward_all(*logn, 1, batch).loss_sum - loss) > 1e-4);
  // In training, and for short sequences, nothing changes.
  MicroBatch training = batch, brief = model.batch({8});
  training.training = true;
  brief.training = false;
  const double brief_loss = forward_all(*plain, 1, brief).loss_sum, trained = forward_all(*plain, 1, training).loss_sum;
  for (Engine* engine : {ntk.get(), logn.get()}) {
    CHECK(forward_all(*engine, 1, brief).loss_sum == brief_loss);
    CHECK(forward_all(*engine, 1, training).loss_sum == trained);
  }
}

TEST_CASE("what backward cannot reach keeps nothing, and what it needs is freed") {
  TestModel model({});
  // LoRA only on the last block's down: the blocks below keep nothing.
  for (LayerSpec& layer : model.layers)
    if (auto* block = std::get_if<BlockSpec>(&layer))
      for (LinearSpec& linear : block->linears)
        if (block->index < 2 || linear.role != Role::down) linear.lora.reset();
  std::erase_if(model.lora, [](const auto& held) { return held.first != "block2.down"; });
  const MicroBatch batch = model.batch(kLengths);
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  CHECK(forward_all(*engine, 1, batch).loss_sum == doctest::Approx(model.loss(batch)).epsilon(2e-6));
  const std::size_t kept = engine->arena().used();
  backward_all(*engine, 1, 0);
  CHECK(engine->arena().used() == 0);
  const std::size_t tokens = batch.tokens.size();
  const std::size_t block_bytes = tokens * 4 * static_cast<std::size_t>(2 * TestModel::kHidden + TestModel::kHidden + 2 * 16 + TestModel::kHidden + 2 * TestModel::kFfn);
  CHECK(kept < 2 * block_bytes);
  Values& b = model.lora.at("block2.down").b;
  const std::vector<float> got = engine->get_matrix(matrix_name("block2.down", LoraMatrix::b), MatrixPart::grad);
  const auto at = reference::spread(b.size(), 20);
  CHECK(distance(pick(Values(got.begin(), got.end()), at), reference::derivatives(b, at, [&] { return model.loss(batch); }, 1e-4)) < 1e-4);
}
