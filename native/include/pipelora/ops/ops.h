// What a device must be able to do. A block is written once (model/) against this interface; cpu and cuda implement it.
//
// Every call is ordered after the ones before it; a device may run behind the caller until download() or finish().
// Tensors are views into the device's memory; the caller owns them, and temporaries come from the arena given to the
// implementation. Results depend only on the arguments: not on threads, and not on how often or where a call is repeated.
//
// Dtypes: "compute" is the engine's compute dtype (activations, hidden states, gradients of activations). Norm weights,
// LoRA matrices and their gradients, optimizer state, log-sum-exp, and LoRA's inner vectors are float32.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pipelora/core/arena.h"
#include "pipelora/core/fence.h"
#include "pipelora/ops/learner_calls.h"
#include "pipelora/ops/linear_calls.h"
#include "pipelora/ops/mixer_calls.h"
#include "pipelora/ops/norm_rule.h"
#include "pipelora/core/rng.h"
#include "pipelora/ops/routing.h"
#include "pipelora/ops/sequences.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

/// Of the gate: x sigma(x); x Phi(x) with tanh in Phi's place, or with erf.
enum class Activation : std::uint8_t { silu, gelu_tanh, gelu };

struct RmsNormBackward {
  Tensor x;         // [T, D]
  Tensor weight;    // [1, D] f32
  Tensor dy;        // [T, D]
  Tensor residual;  // [T, D] added to dx, or empty
  Tensor dx;        // [T, D], may be dy or residual
  Tensor y;         // [T, D] the norm's output again, or empty; may be dy
  NormRule rule;
};

/// The norm over each head (if weights are given), then rotary (if there is a table), then a factor on q.
/// cos/sin are rows of `rope` [P, R], R <= E: cos in the first half, sin in the second; token t uses row rope_row[t]. The first R
/// columns of a head turn: i with i + R / 2, or 2i with 2i + 1 where interleaved.
struct QkRope {
  Tensor q;       // [T, H * E]
  Tensor k;       // [T, K * E]
  Tensor q_out;   // may be q
  Tensor k_out;   // may be k
  Tensor q_norm;  // [1, E] f32 or empty
  Tensor k_norm;
  NormRule rule;
  Tensor rope;             // f32, or empty
  const Indices* rope_row = nullptr;
  Tensor q_scale;  // [1, T] f32 or empty
  std::int64_t head_dim = 0;
  bool interleaved = false;

  /// All columns turn, in halves: what most kernels know.
  bool whole_halves() const { return rope.cols == head_dim && !interleaved; }
};

/// In place on dq and dk (gradients after rotary in, before the norm out). q and k: before the norm, needed with weights only.
struct QkRopeBackward {
  Tensor dq;
  Tensor dk;
  Tensor q;
  Tensor k;
  Tensor q_norm;
  Tensor k_norm;
  NormRule rule;
  Tensor rope;
  const Indices* rope_row = nullptr;
  std::int64_t head_dim = 0;
  Tensor q_scale = {};  // as in QkRope
  bool interleaved = false;

  bool whole_halves() const { return rope.cols == head_dim && !interleaved; }
};

/// Causal inside each sequence: query at position i sees key j iff j <= i and (window == 0 or i - j < window).
/// Query head h uses kv head h / (H / K). Scores are scaled by `scale`, and are cap tanh(score / cap) where there is a cap.
struct AttentionForward {
  Tensor q;    // [T, H * E]
  Tensor k;    // [keys, K * E]
  Tensor v;    // [keys, K * V], V = value_dim
  Tensor out;  // [T, H * V]
  Tensor lse;  // [H, T] f32, or empty
  const Sequences* sequences = nullptr;
  std::int64_t head_dim = 0;
  std::int64_t window = 0;
  float scale = 0;
  float cap = 0;
  std::int64_t value_dim = 0;  // 0: head_dim

  std::int64_t value_width() const { return value_dim > 0 ? value_dim : head_dim; }
};

/// `rope` and `rope_row` as in QkRope. Where they are given, row t of k is token t's, and dq and dk become those of q and k
/// before rotary.
struct AttentionBackward {
  Tensor q, k, v, out, lse, dout;
  Tensor dq, dk, dv;  // written
  const Sequences* sequences = nullptr;
  std::int64_t head_dim = 0;
  std::int64_t window = 0;
  float scale = 0;
  Tensor rope = {};  // [P, E]; empty: dq and dk are those of the q and k given
  const Indices* rope_row = nullptr;
  float cap = 0;
  std::int64_t value_dim = 0;  // as in AttentionForward

  std::int64_t value_width() const { return value_dim > 0 ? value_dim : head_dim; }
};

/// Row-wise softmax cross entropy against (1 - smoothing) onehot + smoothing / V. Gradients are weight * (softmax - that), of what
/// shape_logits(factor, cap) was given.
struct CrossEntropy {
  Tensor logits;   // [L, V] f32
  Tensor dlogits;  // [L, V] compute; each row may begin where its logits do; empty: no gradient
  Tensor targets;  // [1, L] i32
  Tensor weights;  // [1, L] f32
  Tensor loss;     // [1, L] f32, the unweighted loss of each row
  Tensor correct;  // [1, L] i32: 1 where the target is the (first) largest logit
  float factor = 1, cap = 0;
  float smoothing = 0;
};

/// x += u * alpha / sqrt(length of the token's row * width), u uniform in (-1, 1) (rng.h, noise_bits). Rows stand for themselves.
struct EmbeddingNoise {
  Tensor x;  // [T, D] compute
  const Sequences* sequences = nullptr;
  DropoutKey key;
  float alpha = 0;
};

/// All four dense and of the same size, f32.
struct AdamTarget {
  Tensor weight, grad, exp_avg, exp_avg_sq;
};

struct AdamSettings {
  std::int64_t step = 1;
  double learning_rate = 0, grad_scale = 1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
};

/// Device memory outside the arena (weights, LoRA, caches).
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* data() const = 0;
  virtual std::size_t bytes() const = 0;
  /// Whether it lies in the host's memory though the device has its own.
  virtual bool on_host() const { return false; }
};

/// Device memory of this process, where a device has one of its own.
struct DeviceUse {
  std::size_t allocated = 0;  // what was asked for
  std::size_t taken = 0;      // what the device has less free than before it was first used; 0: unknown
};

/// Tensors on their way to the host's memory, there, or on their way back. The destructor leaves nothing in flight.
class Offloaded {
 public:
  virtual ~Offloaded() = default;
  /// Gives their room on the device back: what is queued from now on waits for the copies. May be repeated.
  virtual void leave() = 0;
  /// Takes room on the device and starts to copy back. May be repeated.
  virtual void fetch() = 0;
  /// The tensors in the order they were given, for what is queued from now on. Once; fetches if need be.
  virtual std::vector<Buffer> take() = 0;
};

/// How a token is drawn from logits, in transformers' order: repetition penalty, biases, temperature, top-k, top-p, min-p.
///
/// The tokens stand by falling logit, equal ones by rising id. A token's weight is exp((logit - largest) / temperature) in units of
/// 2^-40, cut off: sums of whole numbers are the same in any order. top_k keeps the first so many (0: all), top_p then the fewest
/// whose weights reach that share of the kept ones' sum, at least one; min_p those of them that are at least so likely as that share of the
/// likeliest. The first token whose weights with those before it exceed draw / 2^32 of what is left is taken.
struct Sampling {
  Tensor logits;                         // [1, V] f32; changed where the penalty is not 1 or there are biases
  std::span<const std::int32_t> seen;    // ids that the penalty applies to, each once
  float repetition_penalty = 1;
  std::span<const std::int32_t> biased;  // ids, each once, whose logits get `biases` added
  std::span<const float> biases;
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  std::uint32_t draw = 0;
};

/// A token drawn, with natural logarithms of probabilities where they were asked for.
struct Drawn {
  std::int32_t token = 0;
  float log_probability = 0;
  struct Likely {
    std::int32_t token = 0;
    float log_probability = 0;
  };
  std::vector<Likely> likeliest;  // falling; equal ones by rising id
};
/// Of softmax(logits), in float64.
Drawn log_probabilities(const std::vector<float>& logits, std::int32_t token, std::int64_t likeliest);
inline constexpr double kSamplingUnit = 0x1p40;

class Ops {
 public:
  virtual ~Ops() = default;

  virtual DType compute_dtype() const = 0;
  /// Reserved at once, committed as touched where the device can; zero-filled where `zeroed`. Throws PL_OUT_OF_MEMORY.
  virtual std::unique_ptr<DeviceMemory> allocate(const char* what, std::size_t bytes, bool zeroed) = 0;
  /// The same in the host's memory, for what the device reads seldom and can read from there; the device's where it has no other.
  virtual std::unique_ptr<DeviceMemory> allocate_on_host(const char* what, std::size_t bytes) { return allocate(what, bytes, false); }
  /// Room for offload(), in bytes of the host's memory, in place of what there was; 0: none. Throws PL_OUT_OF_MEMORY.
  virtual void reserve_host(std::size_t bytes) { static_cast<void>(bytes); }
  /// Starts to copy tensors to the host's memory, behind what is queued so far and beside what follows. Where the device has no
  /// memory of its own they stay where they are. Throws PL_OUT_OF_MEMORY beyond reserve_host().
  virtual std::unique_ptr<Offloaded> offload(std::vector<Buffer> tensors);
  /// Where operations take their temporaries; set before any other call, and again when the arena is another.
  virtual void use_arena(Arena& arena) = 0;

  /// Dense host bytes into a (possibly strided) tensor and back. `host` may be reused on return.
  virtual void upload(const Tensor& to, const void* host) = 0;
  virtual void download(const Tensor& from, void* host) = 0;
  /// Points `device` at a copy of `host`: in `storage`, which the caller allocates where indices need a copy on the device.
  virtual void upload(Indices& indices) = 0;
  virtual bool needs_device_indices() const = 0;
  /// Checkpoint values into a dense weight of another dtype: each value is rounded once to the weight's dtype.
  virtual void load(const HostTensor& from, const Tensor& to) = 0;
  virtual void finish() = 0;
  virtual DeviceUse device_use() { return {}; }
  /// What is queued between the two is one stretch of work.
  virtual void stretch_begins() {}
  virtual void stretch_ends() noexcept {}
  /// Seconds of the stretches that the device is through with, by its own clock; none where work is done when a call returns.
  virtual std::optional<double> worked_seconds() { return std::nullopt; }
  /// Behind everything queued so far; null: nothing is pending when a call returns.
  virtual std::shared_ptr<const Fence> mark() { return nullptr; }

  /// Same shape; dtypes may differ.
  virtual void copy(const Tensor& from, const Tensor& to) = 0;
  virtual void zero(const Tensor& tensor) = 0;
  /// to += factor * from, f32.
  virtual void add_scaled(const Tensor& from, float factor, const Tensor& to) = 0;
  /// to[i] = from[rows[i]]; dtypes may differ.
  virtual void gather_rows(const Tensor& from, const Indices& rows, const Tensor& to) = 0;
  /// to[rows[i]] = factor * from[i]; other rows are left as they are.
  virtual void scatter_rows(const Tensor& from, const Indices& rows, float factor, const Tensor& to) = 0;
  /// Rows as a link may carry them. to [T, D + 4] f8: the row's numbers divided by its scale, then the scale's bytes (f32, the device's order).
  /// The scale is the largest finite magnitude / 448; what is not finite becomes NaN and changes no other number.
  virtual void encode_rows(const Tensor& from, const Tensor& to) = 0;
  /// And back, to [T, D] in 16 or 32 bits: nothing becomes infinite.
  virtual void decode_rows(const Tensor& from, const Tensor& to) = 0;

  virtual std::unique_ptr<LinearWeight> create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) = 0;
  /// Columns that a device would like behind those of a linear's input, to write LoRA's inner vectors there.
  virtual std::int64_t room_for_lora(std::int64_t inner_cols) const { return static_cast<void>(inner_cols), 0; }
  virtual void linear_forward(const LinearForward& call) = 0;
  virtual void linear_input_grad(const LinearInputGrad& call) = 0;
  virtual void lora_a_grad(const LoraAGrad& call) = 0;
  virtual void lora_drop(const LoraDrop& call) = 0;
  virtual void lora_drop_backward(const LoraDrop& call) = 0;

  /// How many of `experts` equal weights a device would have in one LinearWeight: a divisor of them.
  virtual std::int64_t experts_together(std::int64_t experts, std::int64_t in, std::int64_t out) const {
    return static_cast<void>(experts), static_cast<void>(in), static_cast<void>(out), 1;
  }
  /// An expert after the other, where a device has nothing better.
  virtual void experts_forward(const ExpertsForward& call);
  virtual void experts_input_grad(const ExpertsInputGrad& call);
  /// The same of x, or dy, that gather_choices() makes of `from`. The call's is room for it, which need not be written.
  virtual void gathered_experts_forward(const Tensor& from, const Routes& routes, const ExpertsForward& call);
  virtual void gathered_experts_input_grad(const Tensor& from, const Routes& routes, const ExpertsInputGrad& call);
  virtual void experts_a_grad(const ExpertsAGrad& call);

  /// out = a + factor * b; `a` may be empty. All in the compute dtype; out may be a or b.
  virtual void add(const Tensor& a, const Tensor& b, float factor, const Tensor& out) = 0;
  /// In place on f32 logits: cap tanh(factor z / cap), or factor z without a cap.
  virtual void shape_logits(const Tensor& logits, float factor, float cap) = 0;

  virtual void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y) = 0;
  /// y = residual + factor * the norm as rmsnorm_forward writes it; y is another tensor than both.
  virtual void rmsnorm_add(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& residual, float factor, const Tensor& y) {
    rmsnorm_forward(x, weight, rule, y);
    add(residual, y, factor, y);
  }
  virtual void rmsnorm_backward(const RmsNormBackward& call) = 0;
  virtual void qk_rope_forward(const QkRope& call) = 0;
  virtual void qk_rope_backward(const QkRopeBackward& call) = 0;
  virtual void attention_forward(const AttentionForward& call) = 0;
  virtual void attention_backward(const AttentionBackward& call) = 0;
  virtual void short_conv_forward(const ShortConv& call) = 0;
  virtual void short_conv_backward(const ShortConvBackward& call) = 0;
  virtual void delta_rule_forward(const DeltaRule& call) = 0;
  virtual void delta_rule_backward(const DeltaRuleBackward& call) = 0;
  virtual void head_gate_forward(const HeadGate& call) = 0;
  virtual void head_gate_backward(const HeadGateBackward& call) = 0;
  virtual void latent_heads_forward(const LatentHeads& call) = 0;
  virtual void latent_heads_backward(const LatentHeadsBackward& call) = 0;
  /// call.x = rmsnorm(x), then the linear: where a device can do both in one pass over x.
  virtual void norm_linear_forward(const Tensor& x, const Tensor& weight, NormRule rule, const LinearForward& call) {
    rmsnorm_forward(x, weight, rule, call.x);
    linear_forward(call);
  }
  /// The linear's dx, then the backward pass of the norm before it, whose dy is that dx.
  virtual void linear_input_grad_norm(const LinearInputGrad& call, const RmsNormBackward& norm) {
    linear_input_grad(call);
    rmsnorm_backward(norm);
  }
  /// act = activation(gate) * up
  virtual void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) = 0;
  /// One pass over gate and up: dgate and dup (may be gate and up), and act again (may be dact; empty: not made).
  virtual void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate,
                               const Tensor& dup, const Tensor& act, Activation activation) = 0;
  /// call.x = activation(gate) * up, then the linear: where a device can do both in one pass over them.
  virtual void swiglu_linear_forward(const Tensor& gate, const Tensor& up, const LinearForward& call, Activation activation) {
    swiglu_forward(gate, up, call.x, activation);
    linear_forward(call);
  }
  /// The linear's dx, then swiglu_backward of it and lora_a_grad of act: where a device can do them in one pass. call.dx is
  /// scratch.
  virtual void swiglu_linear_input_grad(const LinearInputGrad& call, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                        const Tensor& dup, Activation activation) {
    linear_input_grad(call);
    swiglu_backward(gate, up, call.dx, dgate, dup, call.dx, activation);
    if (!call.lora.pairs.empty()) lora_a_grad({call.dx, call.inner_grad, call.lora, call.sequences});
  }
  /// What a mixture of experts is made of (routing.h).
  virtual void route(const Route& call) = 0;
  virtual void route_backward(const RouteBackward& call) = 0;
  /// to[p] = from[order[p] / C]
  virtual void gather_choices(const Tensor& from, const Routes& routes, const Tensor& to) = 0;
  virtual void gate_forward(const GateForward& call) = 0;
  virtual void gate_backward(const GateBackward& call) = 0;
  virtual void combine(const Combine& call) = 0;
  virtual void attention_sinks(const AttentionSinks& call) = 0;
  /// In place on dense f32: sigma(x); and grads *= s (1 - s), the shares s as sigmoid() left them.
  virtual void sigmoid(const Tensor& x) = 0;
  virtual void sigmoid_backward(const Tensor& shares, const Tensor& grads) = 0;
  virtual void cross_entropy(const CrossEntropy& call) = 0;
  /// What kinds of adapters beside LoRA on linears take (learner_calls.h).
  virtual void sum_rows(const RowSums& call) = 0;
  virtual void low_rank_forward(const LowRank& call) = 0;
  virtual void low_rank_backward(const LowRankBackward& call) = 0;
  virtual void weight_grad(const WeightGrad& call) = 0;
  /// grad [1, N] f32 += factor * the sum of dy's rows.
  virtual void column_sums(const Tensor& dy, float factor, const Tensor& grad) = 0;
  /// squares [1, N] += the sum over rows of y², all f32.
  virtual void add_column_squares(const Tensor& y, const Tensor& squares) = 0;
  virtual void dora_norms(const DoraNorms& call) = 0;
  virtual void column_gains(const ColumnGains& call) = 0;
  virtual void column_gains_backward(const ColumnGainsBackward& call) = 0;
  virtual void add_noise(const EmbeddingNoise& call) = 0;
  /// The token drawn. Throws PL_ENGINE_FAILED where the largest logit is not a finite number.
  virtual std::int32_t sample(const Sampling& call) = 0;

  /// AdamW (Loshchilov & Hutter) over many tensors; gradients are zero afterwards.
  virtual void adamw(std::span<const AdamTarget> targets, const AdamSettings& settings) = 0;
  /// One sum of squares a tensor, in float64.
  virtual std::vector<double> squared_norms(std::span<const Tensor> tensors) = 0;

 protected:
  /// starts [N + 1] on the host; waits for the device where they are not known yet.
  const std::vector<std::int32_t>& starts_of(const ExpertRows& rows);
};

}  // namespace pipelora
