// A small model through the engine: losses, gradients, updates and inference on a GPU against those of the CPU engine.
// usage: cuda_model FILE             on the GPU, compared with FILE
//        cuda_model --write FILE     on the CPU, in a build that has it
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>

#include "pipelora/model/optimizer.h"
#include "pipelora/model/segment.h"
#include "tests/gpu/cuda_fixture.h"
#include "tests/gpu/family_rules.h"
#include "tests/support/in_turn.h"
#if defined(PIPELORA_TEST_CPU)
#include "pipelora/ops/cpu.h"
#endif

using namespace pipelora;
using namespace pipelora::test;

namespace {

using Digest = std::map<std::string, Values>;

struct Variant {
  std::string name;
  HoldSpec hold;
  bool qk_norm = false;
  std::int64_t window = 0, checkpointed = 0, offloaded = 0;
  std::int64_t head_dim = 16, kv_heads = 2;
  const FamilyRules* family = &kLlamaRules;
};

Arch arch_of(const Variant& variant) {
  Arch arch;
  arch.hidden = 64;
  arch.heads = 4;
  arch.kv_heads = variant.kv_heads;
  arch.head_dim = variant.head_dim;
  arch.ffn = 176;
  arch.vocab = 131;
  arch.rms_eps = 1e-6f;
  arch.rotary = {rotary_rule(10000, arch.head_dim)};
  variant.family->rules(arch);
  return arch;
}

SegmentSpec spec_of(const Variant& variant, const Arch& arch) {
  SegmentSpec spec;
  spec.checkpointed_blocks = variant.checkpointed;
  spec.offloaded_blocks = variant.offloaded;
  spec.layers.push_back(EmbeddingSpec{"embedding"});
  std::uint32_t module = 0;
  for (std::int64_t b = 0; b < 3; ++b) {
    const std::string at = "block" + std::to_string(b) + ".";
    BlockSpec block;
    block.index = b;
    variant.family->name_norms(block, at, arch);
    if (variant.qk_norm || variant.family->head_norms) {
      block.q_norm = at + "q_norm";
      block.k_norm = at + "k_norm";
    }
    if (variant.window > 0) block.sliding_window = variant.window;
    const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias, std::int64_t rank = 8) {
      LinearSpec made;
      made.role = role;
      made.name = at + name;
      made.in = in;
      made.out = out;
      made.bias = bias;
      if (rank > 0) made.lora = LoraSpec{rank, 2.0f, 0.1f, module++};
      block.linears.push_back(made);
    };
    variant.family->attention(block, at, arch, variant.family->fused_qkv, true, [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias) {
      linear(role, name, in, out, bias, role == Role::k ? 0 : role == Role::v ? 4 : 8);
    });
    if (variant.family->fused_gate_up) {
      linear(Role::gate_up, "gate_up", arch.hidden, 2 * arch.ffn, false, 8);
    } else {
      linear(Role::gate, "gate", arch.hidden, arch.ffn, false, 8);
      linear(Role::up, "up", arch.hidden, arch.ffn, false, 8);
    }
    linear(Role::down, "down", arch.ffn, arch.hidden, false, 16);
    spec.layers.push_back(std::move(block));
  }
  spec.layers.push_back(NormSpec{"norm"});
  spec.layers.push_back(HeadSpec{"head", "head", LoraSpec{4, 1.0f, 0.0f, module}});
  return spec;
}

/// `taken_over`: the weights were loaded for another segment, whose adapter has ended.
Digest run(std::unique_ptr<Ops> ops, const Variant& variant, bool taken_over = false) {
  const Arch arch = arch_of(variant);
  const std::size_t bytes = std::size_t{256} << 20;
  const auto memory = ops->allocate("the arena", bytes, false);
  Arena arena(memory->data(), bytes);
  ops->use_arena(arena);
  ops->reserve_host(std::size_t{64} << 20);
  RopeTables rope(*ops, arch);
  const SegmentSpec spec = spec_of(variant, arch);
  auto made = std::make_unique<Segment>(*ops, arena, rope, arch, spec);
  std::uint64_t seed = 100;
  const auto load = [&](const std::string& name, std::vector<std::int64_t> shape, double scale, double mean, const HoldSpec& hold) {
    std::int64_t count = 1;
    for (std::int64_t n : shape) count *= n;
    std::vector<float> values;
    for (double v : random_values(count, scale, DType::bf16, ++seed)) values.push_back(static_cast<float>(rounded(v + mean, DType::bf16)));
    made->slots().load(name, shape, {values.data(), DType::f32, shape.size() == 1 ? 1 : shape[0], shape.back()}, hold);
  };
  HoldSpec plain;
  load_base(spec, arch, plain, variant.hold, load);
  load("head", {arch.vocab, arch.hidden}, 0.2, 0, plain);
  if (taken_over) {
    HeldLayers held;
    made->release(held);
    for (const bool expanded : {true, false})
      for (auto& [name, weights] : held) weights.keep_expanded(expanded);
    made = std::make_unique<Segment>(*ops, arena, rope, arch, spec, &held);
  }
  Segment& segment = *made;
  const std::vector<NamedMatrix*> matrices = segment.matrices();
  for (NamedMatrix* matrix : matrices) {
    const Values values = random_values(matrix->part(MatrixPart::weight).size(), 0.1, DType::f32, ++seed);
    const std::vector<float> floats(values.begin(), values.end());
    matrix->set(*ops, MatrixPart::weight, floats.data(), floats.size());
  }

  Digest digest;
  for (int step = 0; step < 4; ++step) {
    for (int part = 0; part < 2; ++part) {
      MicroBatch micro;
      micro.index = part;
      micro.step = static_cast<std::uint32_t>(step);
      micro.seed = 9;
      micro.training = true;
      micro.cu_seqlens = part == 0 ? std::vector<std::int32_t>{0, 7, 8, 29} : std::vector<std::int32_t>{0, 40};
      micro.row_ids = part == 0 ? std::vector<std::int32_t>{0, 1, 2} : std::vector<std::int32_t>{3};
      for (std::int32_t t = 0; t < micro.cu_seqlens.back(); ++t) {
        micro.tokens.push_back((t * 37 + step * 5 + part * 11) % 131);
        micro.targets.push_back(t % 3 == 0 ? -100 : (t * 17 + step) % 131);
        micro.weights.push_back(0.02f);
      }
      const ForwardResult result = segment.forward(micro, Buffer());
      digest["loss"].push_back(result.loss_sum);
      segment.backward(micro.index, Buffer());
    }
    std::vector<double> squares = grad_squares(*ops, matrices);
    double total = 0;
    for (double s : squares) {
      total += s;
      digest["gradient norms"].push_back(std::sqrt(s));
    }
    AdamSettings settings;
    settings.step = step + 1;
    settings.learning_rate = 1e-2;
    settings.grad_scale = std::min(1.0, 1.0 / std::sqrt(total));
    settings.weight_decay = 0.01;
    adamw_step(*ops, matrices, settings);
  }
  for (const NamedMatrix* matrix : matrices) {
    const std::vector<float> values = matrix->get(*ops, MatrixPart::weight);
    for (std::size_t i = 0; i < values.size(); i += 97) digest["adapter"].push_back(static_cast<double>(values[i]));
  }
  KvCache cache(*ops, 2, 64, segment.cache_shapes());
  InTurn turn(2, 32);
  const auto logits_of = [&](const std::vector<std::int32_t>& cu, const std::vector<std::int32_t>& tokens) {
    const Buffer logits = segment.infer(cache, 0, turn.next(cu), tokens, Buffer());
    std::vector<float> values(static_cast<std::size_t>(logits.tensor().size()));
    ops->download(logits, values.data());
    for (float v : values) digest["logits"].push_back(static_cast<double>(v));
  };
  logits_of({0, 5, 12}, {1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 60, 70});
  logits_of({0, 1, 2}, {6, 80});
  logits_of({0, 2, 3}, {7, 8, 90});
  ops->finish();
  return digest;
}

std::vector<Variant> variants() {
  std::vector<Variant> all(4);
  all[0].name = "held";
  all[1].name = "nf4";
  all[1].hold.quantisation = Quantisation::nf4;
  all[1].hold.double_quant = true;
  all[2].name = "normed window";
  all[2].qk_norm = true;
  all[2].window = 6;
  all[2].head_dim = 24;
  all[2].kv_heads = 4;
  all[3].name = "int8";
  all[3].hold.quantisation = Quantisation::int8;
  for (const FamilyRules& family : kFamilyRules) {
    Variant variant;
    variant.name = family.name;
    variant.family = &family;
    all.push_back(variant);
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--write") {
#if defined(PIPELORA_TEST_CPU)
    std::ofstream file(argv[2]);
    file.precision(9);
    for (const Variant& variant : variants())
      for (const auto& [what, values] : run(make_cpu_ops(DType::f32, 2), variant)) {
        file << variant.name << "\t" << what;
        for (double v : values) file << "\t" << v;
        file << "\n";
      }
    return 0;
#else
    std::fprintf(stderr, "this build has no CPU engine\n");
    return 2;
#endif
  }
  std::map<std::string, Digest> expected;
  std::ifstream file(argc > 1 ? argv[1] : "");
  for (std::string line; std::getline(file, line);) {
    std::vector<std::string> fields(1);
    for (char c : line) {
      if (c == '\t') fields.emplace_back();
      else fields.back() += c;
    }
    for (std::size_t i = 2; i < fields.size(); ++i) expected[fields[0]][fields[1]].push_back(std::stod(fields[i]));
  }
  for (Variant variant : variants()) {
    const bool quantised = variant.hold.quantisation != Quantisation::none;
    const double limit = variant.name == "int8" ? 1e-2 : quantised ? 1e-3 : 1e-4;
    const Digest got = run(make_cuda_ops(0, DType::f32), variant);
    for (const auto& [what, values] : expected[variant.name]) {
      const auto found = got.find(what);
      if (found == got.end() || found->second.size() != values.size())
        require(variant.name + " float32: " + what + " has the expected size", false);
      else
        compare(variant.name + " float32: " + what, found->second, values, what == "loss" ? limit : 10 * limit);
    }
    require(variant.name + " was in the file", !expected[variant.name].empty());
    Variant checkpointed = variant, offloaded = variant;
    checkpointed.checkpointed = 2;
    offloaded.checkpointed = 1;
    offloaded.offloaded = 2;
    require(variant.name + " float32: the same bits with checkpointing", run(make_cuda_ops(0, DType::f32), checkpointed) == got);
    for (const DType half : {DType::bf16, DType::f16}) {
      const Digest coarse = run(make_cuda_ops(0, half), variant);
      // What a delta rule gives a row's first tokens goes through a norm: it is as long whatever q · k is, and its sign is that of q · k, which
      // rounding may turn. Heads of a dozen columns show it.
      const double blur = variant.family->attend(0) == Attend::delta || variant.family->attend(0) == Attend::delta_by_key_head ? 8 : 1;
      compare(variant.name + " " + dtype_name(half) + ": loss", coarse.at("loss"), got.at("loss"), blur * 1e-2);
      // bfloat16 keeps three bits fewer than float16.
      compare(variant.name + " " + dtype_name(half) + ": logits", coarse.at("logits"), got.at("logits"), blur * (half == DType::bf16 ? 2e-1 : 5e-2));
      require(variant.name + " " + dtype_name(half) + ": the same bits with checkpointing", run(make_cuda_ops(0, half), checkpointed) == coarse);
      require(variant.name + " " + dtype_name(half) + ": the same bits with weights taken over", run(make_cuda_ops(0, half), variant, true) == coarse);
      require(variant.name + " " + dtype_name(half) + ": the same bits with offloading", run(make_cuda_ops(0, half), offloaded) == coarse);
      if (variant.hold.quantisation == Quantisation::nf4) {
        Variant kept = variant;
        kept.hold.keep_expanded = true;
        require(variant.name + " " + dtype_name(half) + ": the same bits with weights kept expanded", run(make_cuda_ops(0, half), kept) == coarse);
      }
    }
  }
  return finish();
}
