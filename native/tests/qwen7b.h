// Qwen-7B as the benchmark and the arena's replay describe it: names as in its checkpoint, LoRA (r = 8) on every linear.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "pipelora/spec.h"

namespace pipelora::test {

inline Arch qwen7b() {
  Arch arch;
  arch.hidden = 4096;
  arch.heads = arch.kv_heads = 32;
  arch.head_dim = 128;
  arch.ffn = 11008;
  arch.vocab = 151936;
  arch.rms_eps = 1e-6f;
  arch.rope_base = 10000;
  for (int i = 0; i < 64; ++i) arch.rope_inv_freq.push_back(std::pow(10000.0, -2.0 * i / 128));
  return arch;
}

/// Some of its blocks, with the embedding before them where they are the first, with norm and head behind them where the last.
inline std::vector<LayerSpec> qwen7b_layers(const Arch& arch, std::int64_t blocks, float dropout, bool first = true, bool last = true) {
  std::vector<LayerSpec> layers;
  if (first) layers.push_back(EmbeddingSpec{"wte"});
  std::uint32_t module = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::string at = "h." + std::to_string(b) + ".";
    BlockSpec block;
    block.index = b;
    block.attn_norm = at + "ln_1";
    block.mlp_norm = at + "ln_2";
    const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias) {
      block.linears.push_back({role, at + name, in, out, bias, LoraSpec{8, 4.0f, dropout, module++}});
    };
    linear(Role::qkv, "attn.c_attn", arch.hidden, 3 * arch.hidden, true);
    linear(Role::o, "attn.c_proj", arch.hidden, arch.hidden, false);
    linear(Role::gate, "mlp.w2", arch.hidden, arch.ffn, false);
    linear(Role::up, "mlp.w1", arch.hidden, arch.ffn, false);
    linear(Role::down, "mlp.c_proj", arch.ffn, arch.hidden, false);
    layers.push_back(std::move(block));
  }
  if (last) {
    layers.push_back(NormSpec{"ln_f"});
    layers.push_back(HeadSpec{"lm_head", "lm_head", std::nullopt});
  }
  return layers;
}

}  // namespace pipelora::test
