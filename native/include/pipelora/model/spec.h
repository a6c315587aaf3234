// What the caller describes: the C++ twins of the records in src/engine/description.ts.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "pipelora/ops/ops.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// One rule of rotary positions. The first R = 2 inv_freq.size() columns of a head turn, the others stay.
struct RotarySpec {
  double base = 0;               // of Qwen's dynamic NTK
  std::vector<double> inv_freq;  // [R / 2]
  double attention_scaling = 1;  // factor on cos and sin
  /// Longrope: the frequencies of sequences that are longer than `long_from` tokens when they start; empty: none.
  std::vector<double> long_inv_freq;
  std::int64_t long_from = 0;
  /// Dynamic NTK: sequences of n > long_from tokens turn by base alpha^(R / (R - 2)), alpha = factor n / long_from - (factor - 1);
  /// 0: none.
  double dynamic_factor = 0;
};

/// The plain rule: frequencies base^(-2i / columns).
inline RotarySpec rotary_rule(double base, std::int64_t columns) {
  RotarySpec rotary;
  rotary.base = base;
  for (std::int64_t i = 0; i < columns / 2; ++i)
    rotary.inv_freq.push_back(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(columns)));
  return rotary;
}

/// What all blocks share. Defaults are Llama's.
struct Arch {
  std::int64_t hidden = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t ffn = 0;
  std::int64_t vocab = 0;
  float rms_eps = 0;
  std::vector<RotarySpec> rotary;  // blocks name theirs by number
  bool rotary_interleaved = false;  // pairs are columns 2i and 2i + 1, not i and i + R / 2
  Activation activation = Activation::silu;
  bool norm_centred = false;  // LayerNorm without bias
  float norm_offset = 0;      // norms multiply by weight + offset
  /// Norms of q and k: over all heads at once, or of each head behind rotary; else of each head before it.
  bool head_norm_whole = false, head_norm_after_rotary = false;
  bool parallel = false;       // attention and MLP read the same norm's output
  bool qkv_by_kv_head = false; // the fused product holds, a kv head each, its query heads, its key, its value
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  float score_scale = 0;              // 0: 1 / sqrt(E)
  float score_cap = 0, logit_cap = 0; // cap tanh(z / cap); 0: none
  /// Queries at position p are multiplied by 1 + beta ln(1 + floor((p + first) / length)), in all blocks or in those without positions; 0: none.
  double query_scale_beta = 0;
  std::int64_t query_scale_length = 0, query_scale_first = 0;
  bool query_scale_unturned = false;
  std::int64_t attention_chunk = 0;  // positions of a chunk, for the blocks that attend within theirs; 0: none does
  std::int64_t qwen_long_seq_length = 0;
  bool qwen_dynamic_ntk = false;
  bool qwen_logn = false;
};

inline NormRule norm_rule(const Arch& arch) { return {arch.rms_eps, arch.norm_centred}; }

struct LoraSpec {
  std::int64_t r = 0;  // of all experts together
  float scale = 0;
  float dropout = 0;
  std::uint32_t module_id = 0;
  bool dora = false;
};

enum class Role {
  qkv, q, k, v, o, gate_up, gate, up, down,
  router, shared_gate,
  delta_qkv, delta_z, delta_b, delta_a,  // of a gated delta net: q, k and v; the output's gate; beta; the decay
  delta_qkvz, delta_ba,                  // the same, a key head's parts side by side
  q_a, q_b, kv_a, kv_b,                  // of latent attention: down to a latent vector, and up from it
};

struct LinearSpec {
  Role role = Role::q;
  std::string name;
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool bias = false;
  std::optional<LoraSpec> lora;
  std::string trained_bias = {};  // the matrix that the bias is; empty: it is frozen
};

/// A mixture of experts. A block that has one may have an MLP too, which every token goes through (a shared expert).
struct ExpertsSpec {
  RouteRule route;
  GateRule gate;
  LinearSpec router;
  std::string correction;  // [N], added to scores when experts are chosen; empty: none
  /// gate_up, or gate and up, then down, of one expert; "*" in names stands for its number.
  std::vector<LinearSpec> linears;
  /// Pairs of all experts at once: A [N r, in], expert by expert, B [out, r N], in which neighbours are experts.
  struct Pair {
    std::string name;
    LoraSpec lora;
    /// peft takes the parameter for its transpose (LoraPair).
    bool crossed = false;
  };
  std::optional<Pair> gate_up_lora, down_lora;
};

/// A gated delta net in softmax attention's place, with the names of what it has beside linears.
struct DeltaNetSpec {
  DeltaShape shape;
  std::string conv, a_log, dt_bias, norm;  // [mixed, 1, taps], [value_heads] twice, [value_dim]
};

/// Multi-head latent attention: q from the input, or over a vector of q_rank columns; k and v over one of kv_rank columns.
struct LatentSpec {
  LatentShape shape;
  std::int64_t q_rank = 0, kv_rank = 0;  // q_rank 0: q comes from the input
  std::string q_norm, kv_norm;           // [q_rank], [kv_rank]
  float norm_eps = 0;
};

struct EmbeddingSpec {
  std::string weight;
  std::string name = {};     // the module's
  std::string trained = {};  // the matrix that the whole table is; empty: it is frozen
  std::optional<LoraSpec> lora = {};
  std::vector<std::int32_t> token_rows = {};  // tokens whose rows are trained, each once
  std::int32_t padding = -1;  // its row of the table, or of A, gets no gradient (padding_idx); -1: none
};
struct BlockSpec {
  std::int64_t index = 0;
  std::string attn_norm, mlp_norm;            // before attention and MLP; empty: none
  std::string attn_post_norm, mlp_post_norm;  // of what they add; empty: none
  std::string q_norm, k_norm;                 // empty: none
  bool plain_head_norms = false;              // norms of q and k without weights, in their place
  std::int64_t rotary = 0;                    // of Arch::rotary; -1: no positions
  std::int64_t sliding_window = 0;
  bool chunked = false;  // a token sees those of its own chunk alone, Arch::attention_chunk positions
  std::string sinks;  // [H]: a score of each head that has no value; empty: none
  bool gated = false;  // q's product holds, a head each, its query and a gate on its output
  /// At most one of the two; neither: softmax attention over q, k and v.
  std::optional<DeltaNetSpec> delta;
  std::optional<LatentSpec> latent;
  std::vector<LinearSpec> linears;
  std::optional<ExpertsSpec> experts;
};
struct NormSpec {
  std::string weight;
};
struct HeadSpec {
  std::string weight;
  std::string name;
  std::optional<LoraSpec> lora;
  std::string trained = {};  // as in EmbeddingSpec
  std::vector<std::int32_t> token_rows = {};  // of a weight that is the embedding's: as there
};
using LayerSpec = std::variant<EmbeddingSpec, BlockSpec, NormSpec, HeadSpec>;

struct SegmentSpec {
  std::vector<LayerSpec> layers;
  /// Blocks whose activations wait for the backward pass in the host's memory, evenly spread: block j of B where j k mod B < k.
  std::int64_t offloaded_blocks = 0;
  /// Of the others the first ones compute theirs again, from inputs that wait on the host too where any block is offloaded.
  std::int64_t checkpointed_blocks = 0;
  std::int64_t cached_blocks = 0;  // the first ones: quantised weights are kept in the compute dtype too
  bool fp8 = false;  // the blocks' products multiply e4m3 numbers
  bool needs_input_grad = false;
};

struct TensorSource {
  std::string path;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  bool transposed = false;  // the file has [cols, rows] of a shape [rows, cols]
  /// The file has codes of a matrix in e4m3, a scale for each block of so many rows and columns: what is loaded is code times scale in
  /// `dtype`, bf16, rounded once (src/formats/scaled-weights.ts). `bytes` are those of bf16. 0 rows: nothing of the kind.
  struct Scales {
    std::string path;
    std::uint64_t offset = 0, bytes = 0;
    DType dtype = DType::f32;
    std::int64_t block_rows = 0, block_cols = 0;
  } scales{};
};

struct MicroBatch {
  std::int64_t index = 0;
  std::size_t adapter = 0;  // whose it is
  std::vector<std::int32_t> cu_seqlens;  // [S + 1]
  std::vector<std::int32_t> row_ids;     // [S]
  std::uint32_t step = 0;
  std::uint64_t seed = 0;
  bool training = false;
  float label_smoothing = 0;  // CrossEntropy::smoothing
  float noise_alpha = 0;      // EmbeddingNoise::alpha in training; 0: none
  double loss_scale = 1;      // training: gradients are of so many times the loss
  std::vector<std::int32_t> tokens;   // [T] or empty
  std::vector<std::int32_t> targets;  // [T] or empty; -100: no label
  std::vector<float> weights;         // [T] or empty
};

}  // namespace pipelora
