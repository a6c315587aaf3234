// Published models as the benchmark and the arena's replay describe them: names as in Qwen-7B's checkpoint, LoRA on every linear.
#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pipelora/model/spec.h"
#include "tests/support/mixtures.h"

namespace pipelora::test {

struct Published {
  Arch arch;
  std::int64_t blocks = 0;
  bool fused_qkv = false, fused_gate_up = false, qkv_bias = false;
  bool head_norms = false, post_norms = false, tied = false;
  std::int64_t window = 0;  // of five blocks in six, which turn by rule 0; the sixth by rule 1
  std::optional<Mixture> mixture{};  // in place of every block's MLP
};

inline Published published(std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads, std::int64_t ffn, std::int64_t vocab, std::int64_t blocks) {
  Published model;
  Arch& arch = model.arch;
  arch.hidden = hidden;
  arch.heads = heads;
  arch.kv_heads = kv_heads;
  arch.head_dim = 128;
  arch.ffn = ffn;
  arch.vocab = vocab;
  arch.rms_eps = 1e-6f;
  arch.rotary = {rotary_rule(10000, arch.head_dim)};
  model.blocks = blocks;
  return model;
}
inline Published with_bias(Published model) {
  model.qkv_bias = true;
  return model;
}
inline Published qwen7b() {
  Published model = with_bias(published(4096, 32, 32, 11008, 151936, 32));
  model.fused_qkv = true;
  return model;
}
inline Published qwen25_7b() { return with_bias(published(3584, 28, 4, 18944, 152064, 28)); }
inline Published llama3_8b() { return published(4096, 32, 8, 14336, 128256, 32); }
inline Published llama3_70b() { return published(8192, 64, 8, 28672, 128256, 80); }
inline Published qwen25_32b() { return with_bias(published(5120, 40, 8, 27648, 152064, 64)); }
inline Published phi4() {
  Published model = published(5120, 40, 10, 17920, 100352, 40);
  model.fused_qkv = model.fused_gate_up = true;
  return model;
}
inline Published gemma3_12b() {
  Published model = published(3840, 16, 8, 15360, 262208, 48);
  Arch& arch = model.arch;
  arch.head_dim = 256;
  arch.activation = Activation::gelu_tanh;
  arch.norm_offset = 1;
  arch.embedding_scale = std::sqrt(static_cast<float>(arch.hidden));
  arch.rotary = {rotary_rule(10000, arch.head_dim), rotary_rule(1e6, arch.head_dim)};
  model.head_norms = model.post_norms = model.tied = true;
  model.window = 1024;
  return model;
}
inline Published qwen3_30b_a3b() {
  Published model = published(2048, 32, 4, 6144, 151936, 48);
  model.head_norms = true;
  model.mixture = Mixture{128, 8, 768, RouteScore::softmax, true, 1, 1, false, 0, false};
  return model;
}

/// `expert_rank`: LoRA on every expert of a mixture too, where it is not 0.
/// Some of a model's blocks, with the embedding before them where they are the first, with norm and head behind them where the last.
inline std::vector<LayerSpec> published_layers(const Published& model, std::int64_t blocks, float dropout, std::int64_t rank = 8, bool first = true,
                                               bool last = true, std::int64_t expert_rank = 0) {
  const Arch& arch = model.arch;
  const std::int64_t heads = arch.heads * arch.head_dim, kv = arch.kv_heads * arch.head_dim;
  std::vector<LayerSpec> layers;
  if (first) layers.push_back(EmbeddingSpec{"wte"});
  std::uint32_t module = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::string at = "h." + std::to_string(b) + ".";
    BlockSpec block;
    block.index = b;
    block.attn_norm = at + "ln_1";
    block.mlp_norm = at + "ln_2";
    if (model.post_norms) {
      block.attn_post_norm = at + "ln_1_post";
      block.mlp_post_norm = at + "ln_2_post";
    }
    if (model.head_norms) {
      block.q_norm = at + "q_norm";
      block.k_norm = at + "k_norm";
    }
    if (model.window > 0) {
      const bool whole = b % 6 == 5;
      block.rotary = whole ? 1 : 0;
      block.sliding_window = whole ? 0 : model.window;
    }
    const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias) {
      block.linears.push_back({role, at + name, in, out, bias, LoraSpec{rank, 4.0f, dropout, module++}});
    };
    if (model.fused_qkv) {
      linear(Role::qkv, "attn.c_attn", arch.hidden, heads + 2 * kv, model.qkv_bias);
    } else {
      linear(Role::q, "attn.q", arch.hidden, heads, model.qkv_bias);
      linear(Role::k, "attn.k", arch.hidden, kv, model.qkv_bias);
      linear(Role::v, "attn.v", arch.hidden, kv, model.qkv_bias);
    }
    linear(Role::o, "attn.c_proj", heads, arch.hidden, false);
    if (model.mixture) {
      model.mixture->add_to(block, at, arch.hidden, expert_rank, module);
      module += 2;
      layers.push_back(std::move(block));
      continue;
    }
    if (model.fused_gate_up) {
      linear(Role::gate_up, "mlp.gate_up", arch.hidden, 2 * arch.ffn, false);
    } else {
      linear(Role::gate, "mlp.w2", arch.hidden, arch.ffn, false);
      linear(Role::up, "mlp.w1", arch.hidden, arch.ffn, false);
    }
    linear(Role::down, "mlp.c_proj", arch.ffn, arch.hidden, false);
    layers.push_back(std::move(block));
  }
  if (last) {
    layers.push_back(NormSpec{"ln_f"});
    layers.push_back(HeadSpec{model.tied ? "wte" : "lm_head", "lm_head", std::nullopt});
  }
  return layers;
}

}  // namespace pipelora::test
