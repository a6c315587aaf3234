// Operations of the kinds of attention beyond softmax over heads: what Ops is asked, in float32 inside whatever the compute dtype.
#pragma once

#include "pipelora/ops/norm_rule.h"
#include "pipelora/ops/sequences.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// A causal convolution over a row's tokens, a channel each, and SiLU: y[t, c] = silu(sum_j weight[c, j] x[t - (N - 1) + j, c]) with N taps. Before a
/// row's first token stand zeros.
struct ShortConv {
  Tensor x;       // [T, C] compute
  Tensor weight;  // [C, N] f32
  Tensor y;       // [T, C] compute
  /// [S, (N - 1) C] f32 or empty: the row's last N - 1 inputs, the earliest first. Read where a row has earlier tokens, then replaced.
  Tensor state;
  const Sequences* sequences = nullptr;
};
struct ShortConvBackward {
  Tensor x, weight;
  Tensor dy;  // [T, C]
  Tensor dx;  // [T, C], not dy
  const Sequences* sequences = nullptr;
};

/// Heads of the gated delta rule. Value head h goes with key head h / (value_heads / key_heads).
struct DeltaShape {
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0;
  std::int64_t taps = 0;  // of the convolution

  std::int64_t keys() const { return key_heads * key_dim; }
  std::int64_t values() const { return value_heads * value_dim; }
  /// Of q, k and v side by side.
  std::int64_t mixed() const { return 2 * keys() + values(); }
  /// Floats of a row's state: a matrix [key_dim, value_dim] a value head.
  std::int64_t state() const { return value_heads * key_dim * value_dim; }
};

/// The gated delta rule (Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024), as the recurrence it is defined by. A value head, token by token:
///
///   S <- exp(g) S;  S <- S + k (beta (v - Sᵀ k))ᵀ;  out = Sᵀ q
///
/// with q and k brought to length 1 (q then divided by sqrt(key_dim)), beta = sigmoid(b), g = -exp(a_log) softplus(a + dt_bias). A row starts from
/// S = 0.
struct DeltaRule {
  Tensor qkv;             // [T, mixed()] compute: q, k, v
  Tensor b, a;            // [T, value_heads] compute
  Tensor a_log, dt_bias;  // [1, value_heads] f32
  Tensor out;             // [T, values()] compute
  /// [S, state()] f32 or empty: read where a row has earlier tokens, then replaced.
  Tensor state;
  const Sequences* sequences = nullptr;
  DeltaShape shape;
};
struct DeltaRuleBackward {
  Tensor qkv, b, a, a_log, dt_bias;
  Tensor dout;          // [T, values()]
  Tensor dqkv, db, da;  // written
  const Sequences* sequences = nullptr;
  DeltaShape shape;
};

/// A gate on what heads of `head_dim` columns gave. With a weight y = rmsnorm(x) weight silu(gate), a head each; without y = x sigmoid(gate).
struct HeadGate {
  Tensor x, gate;  // [T, H E] compute
  Tensor weight;   // [1, E] f32 or empty
  NormRule rule;
  std::int64_t head_dim = 0;
  Tensor y;  // [T, H E]
};
struct HeadGateBackward {
  Tensor x, gate, weight;
  NormRule rule;
  std::int64_t head_dim = 0;
  Tensor dy;
  Tensor dx;     // may be dy
  Tensor dgate;
};

/// Heads of multi-head latent attention (DeepSeek-V2, 2024).
struct LatentShape {
  std::int64_t heads = 0;
  std::int64_t plain = 0, turning = 0;  // columns of a head of q and k: those without positions, then those with
  std::int64_t value = 0;               // columns of a head of v and of the output
  std::int64_t head_dim() const { return plain + turning; }
};

/// q, k and v for attention. q's turning columns turn; k's plain ones are each head's own, its turning ones are one for all heads.
struct LatentHeads {
  Tensor q;         // [T, H (plain + turning)]
  Tensor expanded;  // [T, H (plain + value)]: k's plain columns and v of each head
  Tensor shared;    // [T, turning]
  Tensor q_out;     // [T, H (plain + turning)], may be q
  Tensor k_out;     // [T, H (plain + turning)]
  Tensor v_out;     // [T, H value]
  Tensor rope;      // [P, turning] f32: cos, then sin; or empty: nothing turns
  const Indices* rope_row = nullptr;
  bool interleaved = false;
  LatentShape shape;
};
struct LatentHeadsBackward {
  Tensor dq_out, dk_out, dv_out;
  Tensor dq;  // may be dq_out
  Tensor dexpanded, dshared;
  Tensor rope;
  const Indices* rope_row = nullptr;
  bool interleaved = false;
  LatentShape shape;
};

}  // namespace pipelora
