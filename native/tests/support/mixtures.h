// Mixtures of experts at the widths of published models, for tests on a GPU: fewer experts, so that a model fits the test.
#pragma once

#include <cmath>
#include <string>

#include "pipelora/model/spec.h"

namespace pipelora::test {

struct Mixture {
  std::int64_t experts, chosen, ffn;
  RouteScore score;
  bool normalise;
  std::int64_t groups, chosen_groups;
  /// gpt-oss: biases, gate and up in turn and clamped, sinks.
  bool clamped;
  /// Width of a shared expert, 0: none; with a gate of its own.
  std::int64_t shared;
  bool shared_gate;
  /// Llama 4: weights stand on what experts take, gate and up are fused, pairs are crossed.
  bool weight_before = false;

  RouteRule rule() const {
    RouteRule rule;
    rule.experts = experts;
    rule.chosen = chosen;
    rule.score = score;
    rule.normalise = normalise;
    rule.groups = groups;
    rule.chosen_groups = chosen_groups;
    rule.group_score = GroupScore::two_best;
    rule.factor = is_sigmoid(score) ? 1.5f : 1.0f;
    return rule;
  }

  /// Into a block whose names begin with `at`; adapters of rank `rank` on each expert where that is not 0.
  void add_to(BlockSpec& block, const std::string& at, std::int64_t hidden, std::int64_t rank, std::uint32_t module) const {
    const auto linear = [&](Role role, const std::string& name, std::int64_t in, std::int64_t out, bool bias) {
      LinearSpec made;
      made.role = role;
      made.name = at + name;
      made.in = in;
      made.out = out;
      made.bias = bias;
      return made;
    };
    ExpertsSpec spec;
    spec.route = rule();
    spec.gate.interleaved = clamped;
    spec.gate.limit = clamped ? 3.0f : 0.0f;
    spec.gate.alpha = 1.702f;
    spec.gate.weight_before = weight_before;
    spec.router = linear(Role::router, "router", hidden, experts, clamped);
    if (score == RouteScore::sigmoid) spec.correction = at + "correction";
    if (clamped) {
      spec.linears = {linear(Role::gate_up, "experts.*.gate_up", hidden, 2 * ffn, true), linear(Role::down, "experts.*.down", ffn, hidden, true)};
      block.sinks = at + "sinks";
    } else if (weight_before) {
      spec.linears = {linear(Role::gate_up, "experts.*.gate_up", hidden, 2 * ffn, false), linear(Role::down, "experts.*.down", ffn, hidden, false)};
    } else {
      spec.linears = {linear(Role::gate, "experts.*.gate", hidden, ffn, false), linear(Role::up, "experts.*.up", hidden, ffn, false),
                      linear(Role::down, "experts.*.down", ffn, hidden, false)};
    }
    if (rank > 0) {
      spec.gate_up_lora = ExpertsSpec::Pair{at + "experts.base_layer", {rank * experts, 2.0f, 0.0f, module}, weight_before};
      spec.down_lora = ExpertsSpec::Pair{at + "experts", {rank * experts, 2.0f, 0.0f, module + 1}, weight_before};
    }
    block.experts = spec;
  }
};

inline constexpr Mixture kQwen3Moe{16, 4, 768, RouteScore::softmax, true, 1, 1, false, 0, false};
inline constexpr Mixture kQwen2Moe{12, 4, 1408, RouteScore::softmax, false, 1, 1, false, 5632, true};
inline constexpr Mixture kMixtral{4, 2, 3584, RouteScore::softmax, true, 1, 1, false, 0, false};
inline constexpr Mixture kGlm4Moe{16, 4, 1408, RouteScore::sigmoid, true, 4, 2, false, 1408, false};
inline constexpr Mixture kGptOss{8, 4, 2880, RouteScore::softmax_of_chosen, false, 1, 1, true, 0, false};
inline constexpr Mixture kLlama4{6, 1, 2048, RouteScore::sigmoid_of_chosen, false, 1, 1, false, 2048, false, true};

/// load(name, shape, scale, mean, how it is held) of a block's experts, as load_base() does it.
template <class Load>
void load_mixture(const BlockSpec& block, std::int64_t heads, const HoldSpec& plain, const HoldSpec& hold, Load&& load) {
  if (!block.sinks.empty()) load(block.sinks, {heads}, 0.5, 0, plain);
  if (!block.experts) return;
  const ExpertsSpec& experts = *block.experts;
  const LinearSpec& router = experts.router;
  // Logits far enough apart that a rounding seldom changes the choice.
  load(router.name + ".weight", {router.out, router.in}, 3 / std::sqrt(static_cast<double>(router.in)), 0, plain);
  if (router.bias) load(router.name + ".bias", {router.out}, 0.5, 0, plain);
  if (!experts.correction.empty()) load(experts.correction, {router.out}, 0.05, 0, plain);
  for (std::int64_t e = 0; e < experts.route.experts; ++e)
    for (const LinearSpec& linear : experts.linears) {
      std::string name = linear.name;
      name.replace(name.find('*'), 1, std::to_string(e));
      load(name + ".weight", {linear.out, linear.in}, 1 / std::sqrt(static_cast<double>(linear.in)), 0, hold);
      if (linear.bias) load(name + ".bias", {linear.out}, 0.1, 0, plain);
    }
}

}  // namespace pipelora::test
