// A GPU's arena gone through on paper: what a plan's margin (src/plan/arena.ts) leaves for holes is enough.
#include <doctest/doctest.h>

#include "paper_device.h"

using namespace testing;

namespace {

/// Qwen-7B.
Arch arch() {
  Arch made;
  made.hidden = 4096;
  made.heads = made.kv_heads = 32;
  made.head_dim = 128;
  made.ffn = 11008;
  made.vocab = 151936;
  made.rope_base = 10000;
  made.rope_inv_freq.assign(64, 1.0);
  return made;
}

struct Case {
  std::int64_t blocks = 32, tokens = 3072, labels = 3072, offloaded = 0, kept = 0;
  bool first = true, last = true;  // of the model
  int in_flight = 1;
  float dropout = 0;
};

SegmentSpec segment_of(const Case& c, const Arch& arch) {
  SegmentSpec spec;
  spec.offloaded_blocks = c.offloaded;
  spec.checkpointed_blocks = c.blocks - c.offloaded - c.kept;
  spec.needs_input_grad = !c.first;
  if (c.first) spec.layers.push_back(EmbeddingSpec{"embedding"});
  for (std::int64_t b = 0; b < c.blocks; ++b) {
    const std::string at = std::to_string(b);
    BlockSpec block;
    block.index = b;
    block.attn_norm = at + "attn_norm";
    block.mlp_norm = at + "mlp_norm";
    const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out) {
      block.linears.push_back({role, at + name, in, out, false, LoraSpec{8, 2, c.dropout, static_cast<std::uint32_t>(spec.layers.size())}});
    };
    linear(Role::qkv, "qkv", arch.hidden, 3 * arch.hidden);
    linear(Role::o, "o", arch.hidden, arch.hidden);
    linear(Role::gate, "gate", arch.hidden, arch.ffn);
    linear(Role::up, "up", arch.hidden, arch.ffn);
    linear(Role::down, "down", arch.ffn, arch.hidden);
    spec.layers.push_back(block);
  }
  if (c.last) {
    spec.layers.push_back(NormSpec{"norm"});
    spec.layers.push_back(HeadSpec{"head", "head", std::nullopt});
  }
  return spec;
}

/// Steps of 1F1B over some micro-batches in an arena of so many bytes. Its peak; throws PL_OUT_OF_MEMORY.
std::size_t replay(const Case& c, std::size_t bytes) {
  const Arch model = arch();
  PaperOps ops;
  const PaperMemory memory(bytes);
  Arena arena(memory.data(), bytes);
  ops.use_arena(arena);
  RopeTables rope(ops, model);
  Segment segment(ops, arena, rope, model, segment_of(c, model));
  for (const std::string& name : segment.missing()) {
    const auto shape = [&]() -> std::vector<std::int64_t> {
      const auto ends = [&](const char* text) { return name.ends_with(text); };
      if (name == "embedding" || name == "head") return {model.vocab, model.hidden};
      if (ends("norm")) return {model.hidden};
      if (ends("qkv.weight")) return {3 * model.hidden, model.hidden};
      if (ends("o.weight")) return {model.hidden, model.hidden};
      if (ends("down.weight")) return {model.hidden, model.ffn};
      return {model.ffn, model.hidden};
    };
    segment.load(name, shape(), HostTensor{}, HoldSpec{});
  }
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
  const auto back = [&](std::int64_t index) { segment.backward(index, c.last ? Buffer() : hidden(index), 1.0); };
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
