// What the caller describes: the C++ twins of the records in src/engine/face.ts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "pipelora/tensor.h"

namespace pipelora {

struct Arch {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t ffn = 0;
  std::int64_t vocab = 0;
  float rms_eps = 0;
  double rope_base = 0;
  std::vector<double> rope_inv_freq;  // [E / 2]
  double rope_attention_scaling = 1;
  std::int64_t qwen_long_seq_length = 0;
  bool qwen_dynamic_ntk = false;
  bool qwen_logn = false;
};

struct LoraSpec {
  std::int64_t r = 0;
  float scale = 0;
  float dropout = 0;
  std::uint32_t module_id = 0;
};

enum class Role { qkv, q, k, v, o, gate, up, down };

struct LinearSpec {
  Role role = Role::q;
  std::string name;
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool bias = false;
  std::optional<LoraSpec> lora;
};

struct EmbeddingSpec {
  std::string weight;
};
struct BlockSpec {
  std::int64_t index = 0;
  std::string attn_norm, mlp_norm;
  std::string q_norm, k_norm;  // empty: none
  std::int64_t sliding_window = 0;
  std::vector<LinearSpec> linears;
};
struct NormSpec {
  std::string weight;
};
struct HeadSpec {
  std::string weight;
  std::string name;
  std::optional<LoraSpec> lora;
};
using LayerSpec = std::variant<EmbeddingSpec, BlockSpec, NormSpec, HeadSpec>;

struct SegmentSpec {
  std::vector<LayerSpec> layers;
  /// Blocks whose activations wait for the backward pass in the host's memory, evenly spread: block j of B where j k mod B < k.
  std::int64_t offloaded_blocks = 0;
  /// Of the others the first ones compute theirs again, from inputs that wait on the host too where any block is offloaded.
  std::int64_t checkpointed_blocks = 0;
  std::int64_t cached_blocks = 0;  // the first ones: quantised weights are kept in the compute dtype too
  bool needs_input_grad = false;
};

struct TensorSource {
  std::string path;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
};

struct MicroBatch {
  std::int64_t index = 0;
  std::vector<std::int32_t> cu_seqlens;  // [S + 1]
  std::vector<std::int32_t> row_ids;     // [S]
  std::uint32_t step = 0;
  std::uint64_t seed = 0;
  bool training = false;
  std::vector<std::int32_t> tokens;   // [T] or empty
  std::vector<std::int32_t> targets;  // [T] or empty; -100: no label
  std::vector<float> weights;         // [T] or empty
};

}  // namespace pipelora
