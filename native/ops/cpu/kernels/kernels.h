// The loops under CpuOps: each works on a range of rows or columns, on one thread. See simd.h for how they are compiled.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pipelora/ops/ops.h"

namespace pipelora {

/// Scratch of one thread, grown on first use and kept.
class Scratch {
 public:
  float* floats(std::size_t slot, std::size_t count);

 private:
  struct Aligned {
    float* data = nullptr;
    std::size_t count = 0;
    ~Aligned();
  };
  Aligned slots_[4];  // the last keeps a panel of a quantised weight from product to product
};

/// A rank-R term of a tile: tile[t, c] += scale * sum_r inner[t, r] * rows[r, c] over the columns [first, first + rows.cols).
struct LowRankTerm {
  Tensor inner;  // [tile rows, R]
  Tensor rows;   // [R, n] f32
  std::int64_t first = 0;
  float scale = 1;
  /// Kept elements of the term: bit (t * mask_stride + c), or null.
  const std::uint8_t* mask = nullptr;
  std::int64_t mask_stride = 0;  // bytes a row
};

/// y = product (+ bias) (+ residual) (+ terms), where `product` is f32 and may be y itself. Terms without masks cover
/// disjoint columns; terms with masks are added in order.
struct FinishTile {
  Tensor product;
  Tensor y;
  Tensor residual;
  const float* bias = nullptr;
  std::span<const LowRankTerm> terms;
};

/// Rows of a pair's dropout mask: element (t, c) of [T, in].
struct MaskRows {
  DropoutKey key;
  std::uint32_t module = 0;
  std::uint32_t threshold = 0;
  std::int64_t in = 0;
  const std::int32_t* row = nullptr;       // [T]
  const std::int32_t* position = nullptr;  // [T]
};

/// How the heads of q or k turn. `rope` [P, R] may be empty: they do not.
struct RopeHeads {
  NormRule rule;
  Tensor rope;
  const std::int32_t* rope_row = nullptr;  // of the tokens given
  const float* q_scale = nullptr;          // of the tokens given, or null
  std::int64_t head_dim = 0;
  bool interleaved = false;
};

struct Kernels {
  const char* isa;

  void (*convert_row)(const void* from, DType from_dtype, void* to, DType to_dtype, float factor, std::int64_t count);
  void (*add_scaled)(const float* from, float factor, float* to, std::int64_t count);
  /// out = a + factor * b, `a` may be null.
  void (*add_rows)(const void* a, const void* b, float factor, void* out, DType dtype, std::int64_t count);
  /// sum over c of a[c] b[c]
  float (*dot)(const void* a, const float* b, DType dtype, std::int64_t count);
  void (*shape_logits)(float* logits, float factor, float cap, std::int64_t count);

  void (*finish_tile)(const FinishTile& call);
  /// Bits of columns [first, first + count) of tokens [begin, end), `stride` bytes a token; bits past count are zero.
  void (*dropout_mask)(const MaskRows& call, std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t count,
                       std::uint8_t* bits, std::int64_t stride);
  /// out[t, r] = factor * sum_c x[t, c] * w[r, c], with x masked where a mask is given.
  void (*skinny_dot)(const Tensor& x, const Tensor& w, float factor, const std::uint8_t* mask, std::int64_t mask_stride,
                     const Tensor& out);
  /// acc[r, c] += factor * sum_t inner[t, r] * x[t, c], with x masked where a mask is given.
  void (*skinny_outer)(const Tensor& inner, const Tensor& x, float factor, const std::uint8_t* mask,
                       std::int64_t mask_stride, const Tensor& acc);

  void (*rmsnorm_forward)(const Tensor& x, const float* weight, NormRule rule, const Tensor& y);
  void (*rmsnorm_backward)(const RmsNormBackward& call);
  /// One of q and k: tokens of x [n, heads * E]. `rope_row` and `q_scale` (or null) belong to these tokens.
  void (*norm_rope_forward)(const Tensor& x, const Tensor& out, const float* norm, const RopeHeads& heads);
  void (*norm_rope_backward)(const Tensor& dx, const Tensor& x, const float* norm, const RopeHeads& heads);

  void (*swiglu_forward)(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation);
  void (*swiglu_backward)(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate,
                          const Tensor& dup, const Tensor& act, Activation activation);
  /// Rows [first, first + count) of a gate with weights (routing.h).
  void (*gate_forward)(const GateForward& call, std::int64_t first, std::int64_t count);
  void (*gate_backward)(const GateBackward& call, std::int64_t first, std::int64_t count);
  /// One row of the call's.
  void (*cross_entropy_row)(const CrossEntropy& call, std::int64_t row);

  void (*adamw)(float* weight, float* grad, float* exp_avg, float* exp_avg_sq, std::int64_t count,
                const AdamSettings& settings);
  double (*sum_squares)(const float* values, std::int64_t count);

  /// One sequence and one query head.
  void (*attention_forward)(const AttentionForward& call, std::int64_t sequence, std::int64_t head, Scratch& scratch);
  /// One sequence and one kv head: all its query heads. `dq_sum` [T, H * E] f32 takes the running sum (may be dq itself).
  void (*attention_backward)(const AttentionBackward& call, const Tensor& dq_sum, std::int64_t sequence,
                             std::int64_t kv_head, Scratch& scratch);

  /// x[c] += magnitude * noise of element first + c of row `row`.
  void (*add_noise)(void* x, DType dtype, std::int64_t cols, DropoutKey key, std::uint32_t row, std::uint64_t first, float magnitude);
  /// One sequence and some channels.
  void (*short_conv_forward)(const ShortConv& call, std::int64_t sequence, std::int64_t first, std::int64_t count, Scratch& scratch);
  void (*short_conv_backward)(const ShortConvBackward& call, std::int64_t sequence, std::int64_t first, std::int64_t count, Scratch& scratch);
  /// One sequence and one value head; one sequence and one key head with all its value heads.
  void (*delta_forward)(const DeltaRule& call, std::int64_t sequence, std::int64_t head, Scratch& scratch);
  void (*delta_backward)(const DeltaRuleBackward& call, std::int64_t sequence, std::int64_t key_head, Scratch& scratch);
  void (*head_gate_forward)(const HeadGate& call);
  void (*head_gate_backward)(const HeadGateBackward& call);
  /// Tokens [begin, end).
  void (*latent_heads_forward)(const LatentHeads& call, std::int64_t begin, std::int64_t end);
  void (*latent_heads_backward)(const LatentHeadsBackward& call, std::int64_t begin, std::int64_t end);

  /// Elements [first, first + count) of a stream of normal numbers.
  void (*fill_normal)(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::int64_t count, float std,
                      void* out, DType dtype);
};

/// The best set for this machine.
const Kernels& kernels();

}  // namespace pipelora
