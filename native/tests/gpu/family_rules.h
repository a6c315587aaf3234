// What families have beyond Llama's rules, for tests on a GPU: enough kinds that every general part stands in one of them.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pipelora/model/spec.h"
#include "tests/support/mixtures.h"

namespace pipelora::test {

enum class Attend { softmax, gated, delta, delta_by_key_head, latent, latent_q };
inline Attend all_softmax(std::int64_t) { return Attend::softmax; }

/// As Qwen3.5 has it at real widths; at a test's, heads of two uneven widths.
inline DeltaShape delta_of(const Arch& arch) { return arch.hidden >= 512 ? DeltaShape{16, 32, 128, 128, 4} : DeltaShape{2, 4, 12, 20, 4}; }
/// Rule 0 says how many columns turn. At a test's widths heads of v are wider than those of q.
inline LatentShape latent_of(const Arch& arch) {
  const auto turning = static_cast<std::int64_t>(2 * arch.rotary[0].inv_freq.size());
  return {arch.heads, arch.head_dim - turning, turning, arch.hidden >= 512 ? arch.head_dim - turning : arch.head_dim + 4};
}

struct FamilyRules {
  const char* name;
  bool fused_qkv, fused_gate_up, head_norms, pre_norms, post_norms;
  std::int64_t window;
  void (*rules)(Arch& arch);
  std::int64_t (*rotary)(std::int64_t block);
  Attend (*attend)(std::int64_t block) = all_softmax;

  /// linear(role, name, in, out, bias) of a block's attention, in the order of modules, and what else it has.
  template <class Linear>
  void attention(BlockSpec& block, const std::string& at, const Arch& arch, bool fused, bool bias, Linear&& linear) const {
    const Attend kind = attend(block.index);
    const std::int64_t d = arch.hidden, q = arch.heads * arch.head_dim, kv = arch.kv_heads * arch.head_dim;
    if (kind == Attend::delta || kind == Attend::delta_by_key_head) {
      const DeltaShape s = delta_of(arch);
      block.delta = DeltaNetSpec{s, at + "conv", at + "a_log", at + "dt_bias", at + "delta_norm"};
      block.q_norm.clear();
      block.k_norm.clear();
      if (kind == Attend::delta) {
        linear(Role::delta_qkv, "delta_qkv", d, s.mixed(), false);
        linear(Role::delta_z, "delta_z", d, s.values(), false);
        linear(Role::delta_b, "delta_b", d, s.value_heads, false);
        linear(Role::delta_a, "delta_a", d, s.value_heads, false);
      } else {
        linear(Role::delta_qkvz, "delta_qkvz", d, s.mixed() + s.values(), false);
        linear(Role::delta_ba, "delta_ba", d, 2 * s.value_heads, false);
      }
      linear(Role::o, "o", s.values(), d, false);
      return;
    }
    if (kind == Attend::latent || kind == Attend::latent_q) {
      const LatentShape s = latent_of(arch);
      const std::int64_t q_rank = kind == Attend::latent_q ? d * 3 / 8 : 0, kv_rank = d / 4;
      block.latent = LatentSpec{s, q_rank, kv_rank, q_rank > 0 ? at + "q_a_norm" : "", at + "kv_a_norm", 1e-6f};
      if (q_rank > 0) {
        linear(Role::q_a, "q_a", d, q_rank, bias);
        linear(Role::q_b, "q_b", q_rank, q, false);
      } else {
        linear(Role::q, "q", d, q, false);
      }
      linear(Role::kv_a, "kv_a", d, kv_rank + s.turning, bias);
      linear(Role::kv_b, "kv_b", kv_rank, s.heads * (s.plain + s.value), false);
      linear(Role::o, "o", s.heads * s.value, d, false);
      return;
    }
    block.gated = kind == Attend::gated;
    if (fused) {
      linear(Role::qkv, "qkv", d, q + 2 * kv, bias);
    } else {
      linear(Role::q, "q", d, block.gated ? 2 * q : q, bias);
      linear(Role::k, "k", d, kv, bias);
      linear(Role::v, "v", d, kv, bias);
    }
    linear(Role::o, "o", q, d, false);
  }

  void name_norms(BlockSpec& block, const std::string& at, const Arch& arch) const {
    if (pre_norms) block.attn_norm = at + "norm1";
    if (pre_norms && !arch.parallel) block.mlp_norm = at + "norm2";
    if (post_norms) {
      block.attn_post_norm = at + "post_norm1";
      block.mlp_post_norm = at + "post_norm2";
    }
    if (head_norms) {
      block.q_norm = at + "q_norm";
      block.k_norm = at + "k_norm";
    }
    block.rotary = rotary(block.index);
    block.sliding_window = window;
    // Llama 4: where blocks turn.
    block.chunked = block.plain_head_norms = arch.attention_chunk > 0 && block.rotary >= 0;
  }
};

/// Names and sizes of a block's norms.
inline std::vector<std::pair<std::string, std::int64_t>> norms_of(const BlockSpec& block, const Arch& arch) {
  const std::int64_t q = arch.head_norm_whole ? arch.heads * arch.head_dim : arch.head_dim;
  const std::int64_t k = arch.head_norm_whole ? arch.kv_heads * arch.head_dim : arch.head_dim;
  std::vector<std::pair<std::string, std::int64_t>> found;
  const auto add = [&](const std::string& name, std::int64_t size) {
    if (!name.empty()) found.emplace_back(name, size);
  };
  for (const std::string* name : {&block.attn_norm, &block.mlp_norm, &block.attn_post_norm, &block.mlp_post_norm}) add(*name, arch.hidden);
  add(block.q_norm, q);
  add(block.k_norm, k);
  if (block.delta) add(block.delta->norm, block.delta->shape.value_dim);
  if (block.latent) {
    add(block.latent->q_norm, block.latent->q_rank);
    add(block.latent->kv_norm, block.latent->kv_rank);
  }
  return found;
}

/// load(name, shape, scale, mean, how it is held) of every weight below the head, in the model's order: `hold` is how linears are held,
/// `plain` everything else.
template <class Load>
void load_base(const SegmentSpec& spec, const Arch& arch, const HoldSpec& plain, const HoldSpec& hold, Load&& load) {
  load("embedding", {arch.vocab, arch.hidden}, 1, 0, plain);
  for (const LayerSpec& layer : spec.layers) {
    const auto* block = std::get_if<BlockSpec>(&layer);
    if (block == nullptr) continue;
    for (const auto& [name, size] : norms_of(*block, arch)) load(name, {size}, 0.1, 1, plain);
    if (block->delta) {
      const DeltaShape& s = block->delta->shape;
      load(block->delta->conv, {s.mixed(), 1, s.taps}, 0.5, 0, plain);
      load(block->delta->a_log, {s.value_heads}, 0.7, -1, plain);
      load(block->delta->dt_bias, {s.value_heads}, 0.7, 0, plain);
    }
    for (const LinearSpec& l : block->linears) {
      load(l.name + ".weight", {l.out, l.in}, 1 / std::sqrt(static_cast<double>(l.in)), 0, hold);
      if (l.bias) load(l.name + ".bias", {l.out}, 0.1, 0, plain);
    }
    load_mixture(*block, arch.heads, plain, hold, load);
  }
  load("norm", {arch.hidden}, 0.1, 1, plain);
}

inline std::int64_t first_rule(std::int64_t) { return 0; }

inline constexpr FamilyRules kLlamaRules{"Llama", false, false, false, true, false, 0, [](Arch&) {}, first_rule};
inline constexpr FamilyRules kFamilyRules[] = {
    {"Gemma 2", false, false, false, true, true, 6,
     [](Arch& arch) {
       arch.activation = Activation::gelu_tanh;
       arch.norm_offset = 0.5f;
       arch.embedding_scale = 0.7f;
       arch.score_cap = 3;
       arch.logit_cap = 4;
     },
     first_rule},
    {"Gemma 3", false, false, true, true, true, 5,
     [](Arch& arch) {
       arch.activation = Activation::gelu_tanh;
       arch.rotary.push_back(rotary_rule(500, arch.head_dim));
       arch.logit_scale = 0.5f;
     },
     [](std::int64_t block) { return block % 2; }},
    {"GLM-4", false, true, false, true, true, 0,
     [](Arch& arch) {
       arch.rotary = {rotary_rule(10000, arch.head_dim / 2)};
       arch.rotary_interleaved = true;
     },
     first_rule},
    {"Phi-4-mini", true, true, false, true, false, 0, [](Arch& arch) { arch.rotary = {rotary_rule(10000, arch.head_dim / 4 * 2)}; }, first_rule},
    {"Granite", false, false, false, true, false, 0,
     [](Arch& arch) {
       arch.embedding_scale = 2;
       arch.residual_scale = 0.4f;
       arch.logit_scale = 0.5f;
       arch.score_scale = 0.1f;
     },
     first_rule},
    {"OLMo 2", false, false, true, false, true, 0, [](Arch& arch) { arch.head_norm_whole = true; }, first_rule},
    {"Cohere 2", false, false, false, true, false, 7,
     [](Arch& arch) {
       arch.norm_centred = true;
       arch.parallel = true;
       arch.rotary_interleaved = true;
     },
     [](std::int64_t block) -> std::int64_t { return block == 1 ? -1 : 0; }},
    {"Hunyuan", false, false, true, true, false, 0,
     [](Arch& arch) {
       arch.head_norm_after_rotary = true;
       arch.activation = Activation::gelu;
     },
     first_rule},
    {"Ministral 3", false, false, false, true, false, 0,
     [](Arch& arch) {
       arch.query_scale_beta = 0.3;
       arch.query_scale_length = 4;
     },
     first_rule},
    {"InternLM 2", true, false, false, true, false, 0, [](Arch& arch) { arch.qkv_by_kv_head = true; }, first_rule},
    {"Qwen3.5", false, false, true, true, false, 0,
     [](Arch& arch) {
       arch.rotary = {rotary_rule(10000, arch.head_dim / 4)};
       arch.norm_offset = 0.5f;
     },
     first_rule, [](std::int64_t block) { return block == 1 ? Attend::gated : Attend::delta; }},
    {"Qwen3-Next", false, false, true, true, false, 0, [](Arch& arch) { arch.rotary = {rotary_rule(10000, arch.head_dim / 4)}; }, first_rule,
     [](std::int64_t block) { return block == 1 ? Attend::gated : Attend::delta_by_key_head; }},
    {"DeepSeek-V2", false, false, false, true, false, 0,
     [](Arch& arch) {
       arch.rotary = {rotary_rule(10000, arch.hidden >= 512 ? arch.head_dim / 3 : arch.head_dim / 4)};
       arch.rotary_interleaved = true;
     },
     first_rule, [](std::int64_t block) { return block == 1 ? Attend::latent_q : Attend::latent; }},
    {"Llama 4", false, false, false, true, false, 0,
     [](Arch& arch) {
       arch.rotary_interleaved = true;
       arch.head_norm_after_rotary = true;
       arch.attention_chunk = arch.hidden >= 512 ? 100 : 5;
       arch.query_scale_beta = 0.3;
       arch.query_scale_length = 4;
       arch.query_scale_first = 1;
       arch.query_scale_unturned = true;
     },
     [](std::int64_t block) -> std::int64_t { return block == 1 ? -1 : 0; }},
};

}  // namespace pipelora::test
