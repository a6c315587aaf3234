// Several adapters over one base: each computes what it computes alone, whatever the others do in between.
#include <random>

#include "tests/support/error_code.h"
#include "tests/support/test_model.h"

using namespace testing;

namespace {

/// The layers with other pairs: of rank `r`, on blocks from `first` on.
std::vector<LayerSpec> with_pairs(std::vector<LayerSpec> layers, std::int64_t r, float dropout, std::int64_t first, bool dora = false) {
  std::uint32_t id = 0;
  for (LayerSpec& layer : layers) {
    auto* block = std::get_if<BlockSpec>(&layer);
    if (block == nullptr) continue;
    for (LinearSpec& linear : block->linears) {
      linear.lora.reset();
      if (block->index >= first) linear.lora = LoraSpec{r, 1.5f, dropout, id++, dora};
    }
  }
  return layers;
}

void fill(Engine& engine, std::size_t adapter) {
  std::mt19937 random(static_cast<unsigned>(40 + engine.matrix_names(adapter).size()));
  std::normal_distribution<float> normal(0, 0.3f);
  for (const std::string& name : engine.matrix_names(adapter)) {
    std::vector<float> values(engine.get_matrix(name, MatrixPart::weight, adapter).size());
    for (float& value : values) value = normal(random);
    engine.set_matrix(name, MatrixPart::weight, values.data(), values.size(), adapter);
  }
}

struct Trained {
  std::vector<double> losses, squares;
  std::map<std::string, std::vector<float>> weights;
};

/// Another for each, by what it has.
double scale_of(const Engine& engine, std::size_t adapter) { return std::ldexp(1.0, static_cast<int>(engine.matrix_names(adapter).size() % 20)); }

/// Steps of every adapter in turn, their micro-batches between each other.
std::vector<Trained> train(Engine& engine, const TestModel& model, std::size_t segments, const std::vector<std::size_t>& adapters) {
  std::vector<Trained> all(adapters.size());
  for (std::int64_t step = 1; step <= 2; ++step) {
    std::vector<std::pair<std::size_t, std::int64_t>> waiting;
    for (std::int64_t part = 0; part < 2; ++part)
      for (std::size_t i = 0; i < adapters.size(); ++i) {
        MicroBatch batch = model.batch({5, 9}, part);
        batch.index = part + 10 * static_cast<std::int64_t>(i);
        batch.adapter = adapters[i];
        batch.loss_scale = scale_of(engine, adapters[i]);
        batch.step = static_cast<std::uint32_t>(step);
        all[i].losses.push_back(forward_all(engine, segments, batch).loss_sum);
        waiting.emplace_back(i, batch.index);
      }
    for (const auto& [i, index] : waiting) backward_all(engine, segments, index);
    for (std::size_t i = 0; i < adapters.size(); ++i) {
      const std::vector<double> squares = engine.grad_squares(adapters[i]);
      all[i].squares.insert(all[i].squares.end(), squares.begin(), squares.end());
      AdamSettings settings;
      settings.step = step;
      settings.learning_rate = 0.01 * static_cast<double>(squares.size());
      settings.grad_scale = 1 / scale_of(engine, adapters[i]);
      engine.optimizer_step(settings, {}, adapters[i]);
    }
  }
  for (std::size_t i = 0; i < adapters.size(); ++i)
    for (const std::string& name : engine.matrix_names(adapters[i])) all[i].weights[name] = engine.get_matrix(name, MatrixPart::weight, adapters[i]);
  return all;
}

}  // namespace

TEST_CASE("adapters over one base have the bits of each alone, in one segment and in two, kept and computed again") {
  const TestModel model({.fused_qkv = true, .qkv_bias = true, .head_lora = true, .dropout = 0.2f});
  const std::vector<std::vector<LayerSpec>> others{with_pairs(model.layers, 5, 0, 0), with_pairs(model.layers, 2, 0.4f, 2), with_pairs(model.layers, 3, 0.3f, 1, true)};
  for (const std::int64_t checkpointed : {0, 3})
    for (const std::vector<std::size_t>& cuts : {std::vector<std::size_t>{}, std::vector<std::size_t>{2}}) {
      CAPTURE(checkpointed);
      CAPTURE(cuts.size());
      const std::size_t segments = cuts.size() + 1, room = std::size_t{32} << 20;
      const auto together = model.engine(DType::f32, 2, cuts, checkpointed, room, 0, others);
      for (const std::size_t adapter : {0, 1, 2, 3}) fill(*together, adapter);
      const std::vector<Trained> got = train(*together, model, segments, {0, 1, 2, 3});
      const auto held = [&](const std::vector<std::vector<LayerSpec>>& more) { return model.engine(DType::f32, 2, cuts, checkpointed, room, 0, more)->memory().weight_bytes; };
      const std::size_t norms = held({others[2]}) - held({});  // of DoRA
      CHECK(norms > 0);
      const std::size_t base = together->memory().weight_bytes - norms;
      for (const std::size_t adapter : {0, 1, 2, 3}) {
        // Alone, but for others that are never used: an engine's first adapter is the model's.
        std::vector<std::vector<LayerSpec>> own_layers;
        if (adapter > 0) own_layers.push_back(others[adapter - 1]);
        const auto alone = model.engine(DType::f32, 2, cuts, checkpointed, room, 0, own_layers);
        const std::size_t own = adapter == 0 ? 0 : 1;
        fill(*alone, own);
        const Trained expected = train(*alone, model, segments, {own}).front();
        CHECK(got[adapter].losses == expected.losses);
        CHECK(got[adapter].squares == expected.squares);
        CHECK(got[adapter].weights == expected.weights);
        CHECK(base == alone->memory().weight_bytes - (adapter == 3 ? norms : 0));
      }
      CHECK(together->arena().used() == 0);
    }
}

TEST_CASE("layers of another shape are no adapter of a base, and a number must be one's") {
  const TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  std::vector<LayerSpec> other = model.layers;
  other.pop_back();
  CHECK(code_of([&] { engine->add_adapter(0, other); }) == "PL_TENSOR_MISMATCH");
  other = model.layers;
  for (LayerSpec& layer : other)
    if (auto* block = std::get_if<BlockSpec>(&layer); block != nullptr && block->index == 1)
      for (LinearSpec& linear : block->linears)
        if (linear.role == Role::down) linear.out *= 2;
  CHECK(code_of([&] { engine->add_adapter(0, other); }) == "PL_TENSOR_MISMATCH");
  MicroBatch batch = model.batch({7});
  batch.adapter = 4;
  CHECK(code_of([&] { forward_all(*engine, 1, batch); }) == "PL_ENGINE_FAILED");
  CHECK(code_of([&] { engine->grad_squares(4); }) == "PL_ENGINE_FAILED");
}
