// A GPU's arena gone through on paper: what a plan's margin (src/plan/arena.ts) leaves for holes is enough.
#include <doctest/doctest.h>

#include "tests/support/in_turn.h"
#include "tests/support/paper_device.h"
#include "tests/support/published.h"

using namespace testing;
using namespace pipelora::test;

namespace {

struct Case {
  std::int64_t blocks = 32, tokens = 3072, labels = 3072, offloaded = 0, kept = 0;
  bool first = true, last = true;  // of the model
  int in_flight = 1;
  float dropout = 0;
};

SegmentSpec segment_of(const Case& c) {
  SegmentSpec spec;
  spec.offloaded_blocks = c.offloaded;
  spec.checkpointed_blocks = c.blocks - c.offloaded - c.kept;
  spec.needs_input_grad = !c.first;
  spec.layers = published_layers(qwen7b(), c.blocks, c.dropout, 8, c.first, c.last);
  return spec;
}

void load_all(Segment& segment, const SegmentSpec& spec, const Arch& arch) {
  const auto load = [&](const std::string& name, const std::vector<std::int64_t>& shape) { segment.slots().load(name, shape, HostTensor{}, HoldSpec{}); };
  for (const LayerSpec& layer : spec.layers) {
    if (const auto* embedding = std::get_if<EmbeddingSpec>(&layer)) load(embedding->weight, {arch.vocab, arch.hidden});
    if (const auto* norm = std::get_if<NormSpec>(&layer)) load(norm->weight, {arch.hidden});
    if (const auto* head = std::get_if<HeadSpec>(&layer)) load(head->weight, {arch.vocab, arch.hidden});
    const auto* block = std::get_if<BlockSpec>(&layer);
    if (block == nullptr) continue;
    for (const std::string& name : {block->attn_norm, block->mlp_norm}) load(name, {arch.hidden});
    for (const LinearSpec& linear : block->linears) {
      load(linear.name + ".weight", {linear.out, linear.in});
      if (linear.bias) load(linear.name + ".bias", {linear.out});
    }
  }
}

/// Steps of 1F1B over some micro-batches in an arena of so many bytes. Its peak; throws PL_OUT_OF_MEMORY.
std::size_t replay(const Case& c, std::size_t bytes) {
  const Arch model = qwen7b().arch;
  const SegmentSpec spec = segment_of(c);
  PaperOps ops;
  const PaperMemory memory(bytes);
  Arena arena(memory.data(), bytes);
  ops.use_arena(arena);
  RopeTables rope(ops, model);
  Segment segment(ops, arena, rope, model, spec);
  load_all(segment, spec, model);
  const auto batch = [&](std::int64_t index) {
    MicroBatch micro;
    micro.index = index;
    micro.training = true;
    // Rows of the tutorial differ from micro-batch to micro-batch.
    const std::int64_t tokens = c.tokens - (c.tokens < 2048 ? index * 37 % 100 : 0);
    micro.cu_seqlens = {0, static_cast<std::int32_t>(tokens)};
    micro.tokens.assign(static_cast<std::size_t>(tokens), 1);
    micro.targets.assign(static_cast<std::size_t>(tokens), -100);
    for (std::int64_t i = 0; i < std::min(c.labels, tokens); ++i) micro.targets[static_cast<std::size_t>(i)] = 1;
    micro.weights.assign(static_cast<std::size_t>(tokens), 1);
    micro.row_ids = {static_cast<std::int32_t>(index)};
    return micro;
  };
  const auto hidden = [&](std::int64_t index) {
    return arena.tensor("from a peer", DType::bf16, static_cast<std::int64_t>(batch(index).tokens.size()), model.hidden);
  };
  constexpr std::int64_t kBatches = 6;
  const auto back = [&](std::int64_t index) { segment.backward(index, c.last ? Buffer() : hidden(index)); };
  for (std::int64_t index = 0; index < kBatches; ++index) {
    const ForwardResult result = segment.forward(batch(index), c.first ? Buffer() : hidden(index));
    if (index + 1 >= c.in_flight) back(index + 1 - c.in_flight);
  }
  for (std::int64_t index = kBatches + 1 - c.in_flight; index < kBatches; ++index) back(index);
  CHECK(arena.used() == 0);
  return arena.peak();
}

constexpr double kHoles = 1.09;

}  // namespace

TEST_CASE("an arena a little larger than its peak has no holes that a step falls into") {
  const std::vector<std::pair<std::int64_t, std::int64_t>> sizes{{1072, 420}, {3072, 3072}, {8192, 8192}};
  const std::vector<Case> parts{{.blocks = 32},
                                {.blocks = 17, .last = false, .in_flight = 2},
                                {.blocks = 15, .first = false},
                                {.blocks = 12, .first = false, .last = false, .in_flight = 3}};
  for (const float dropout : {0.0f, 0.1f})
    for (const auto& [tokens, labels] : sizes)
      for (const std::int64_t offloaded : {0, 3, 5})
        for (const std::int64_t kept : {0, 2, 7})
          for (Case c : parts) {
            c.tokens = tokens;
            c.labels = labels;
            c.offloaded = offloaded;
            c.kept = std::min(kept, c.blocks - offloaded);
            c.dropout = dropout;
            const std::size_t peak = replay(c, std::size_t{1} << 40);
            CAPTURE(c.blocks);
            CAPTURE(c.first);
            CAPTURE(c.last);
            CAPTURE(tokens);
            CAPTURE(offloaded);
            CAPTURE(kept);
            CHECK_NOTHROW(replay(c, static_cast<std::size_t>(static_cast<double>(peak) * kHoles)));
          }
}

TEST_CASE("a pass with a cache gives every index its room on the device, prompt and next tokens") {
  const Arch model = qwen7b().arch;
  const SegmentSpec spec = segment_of({.blocks = 2});
  PaperOps ops;
  const std::size_t bytes = std::size_t{1} << 36;
  const PaperMemory memory(bytes);
  Arena arena(memory.data(), bytes);
  ops.use_arena(arena);
  RopeTables rope(ops, model);
  Segment segment(ops, arena, rope, model, spec);
  load_all(segment, spec, model);
  KvCache cache(ops, 2, 32, segment.cache_shapes());
  InTurn turn(2, 16);
  CHECK_NOTHROW(segment.infer(cache, 0, turn.next({0, 3, 8}), std::vector<std::int32_t>(8, 1), Buffer()));
  CHECK_NOTHROW(segment.infer(cache, 0, turn.next({0, 1, 2}), {1, 1}, Buffer()));
  const auto batch = make_cached_batch(ops, arena, rope, model, turn.next({0, 1, 2}), 32);
  CHECK(batch->cache_row.host == std::vector<std::int32_t>{4, 22});
  CHECK(batch->cache_row.device.cols == 2);
}
