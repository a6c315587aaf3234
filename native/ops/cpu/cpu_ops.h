#pragma once

#include <memory>
#include <vector>

#include "ops/cpu/held_weight.h"
#include "ops/cpu/kernels/kernels.h"
#include "pipelora/ops/ops.h"
#include "pipelora/core/parallel.h"

namespace pipelora {

/// A weight in whatever form its first part's HoldSpec says, and its bias.
class CpuLinearWeight final : public LinearWeight {
 public:
  CpuLinearWeight(class CpuOps& ops, std::int64_t in, std::vector<std::int64_t> part_rows, bool bias);
  void load(std::size_t part, const HostTensor& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State4&& rows, const HoldSpec& hold) override;
  void load(std::size_t part, quant::State8&& rows, const HoldSpec& hold) override;
  void load_bias(std::size_t part, const HostTensor& values) override;
  void refresh(std::int64_t first, const Tensor& values) override;
  void refresh_bias(std::int64_t first, const Tensor& values) override;
  void keep_expanded(bool keep) override;
  Tensor bias_values() const override;
  std::size_t bytes() const override;

  const HeldWeight& held() const { return *held_; }
  /// The rows of `parts`.
  struct Rows {
    std::int64_t first = 0, count = 0;
  };
  Rows rows_of(const WeightParts& parts) const;
  const float* bias = nullptr;  // [out]

 private:
  std::int64_t first_row(std::size_t part) const;
  /// Made by the first part's load; the others must be held the same way.
  HeldWeight& held_as(const HoldSpec& hold);
  CpuOps& ops_;
  HoldSpec hold_;
  std::unique_ptr<HeldWeight> held_;  // from the first load
  std::unique_ptr<DeviceMemory> bias_memory_;
};

class CpuOps final : public Ops {
 public:
  CpuOps(DType compute, int threads);

  DType compute_dtype() const override { return compute_; }
  std::unique_ptr<DeviceMemory> allocate(const char* what, std::size_t bytes, bool zeroed) override;
  void use_arena(Arena& arena) override { arena_ = &arena; }

  void upload(const Tensor& to, const void* host) override;
  void download(const Tensor& from, void* host) override;
  void upload(Indices& indices) override;
  bool needs_device_indices() const override { return false; }
  void load(const HostTensor& from, const Tensor& to) override { load_matrix(from, to.dtype, to); }
  void finish() override {}

  void copy(const Tensor& from, const Tensor& to) override;
  void zero(const Tensor& tensor) override;
  void add_scaled(const Tensor& from, float factor, const Tensor& to) override;
  void gather_rows(const Tensor& from, const Indices& rows, const Tensor& to) override;
  void scatter_rows(const Tensor& from, const Indices& rows, float factor, const Tensor& to) override;
  void encode_rows(const Tensor& from, const Tensor& to) override;
  void decode_rows(const Tensor& from, const Tensor& to) override;

  std::unique_ptr<LinearWeight> create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) override;
  void linear_forward(const LinearForward& call) override;
  void linear_input_grad(const LinearInputGrad& call) override;
  void lora_a_grad(const LoraAGrad& call) override;
  void lora_drop(const LoraDrop& call) override;
  void lora_drop_backward(const LoraDrop& call) override;

  void add(const Tensor& a, const Tensor& b, float factor, const Tensor& out) override;
  void shape_logits(const Tensor& logits, float factor, float cap) override;
  void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y) override;
  void rmsnorm_backward(const RmsNormBackward& call) override;
  void qk_rope_forward(const QkRope& call) override;
  void qk_rope_backward(const QkRopeBackward& call) override;
  void attention_forward(const AttentionForward& call) override;
  void attention_backward(const AttentionBackward& call) override;
  void short_conv_forward(const ShortConv& call) override;
  void short_conv_backward(const ShortConvBackward& call) override;
  void delta_rule_forward(const DeltaRule& call) override;
  void delta_rule_backward(const DeltaRuleBackward& call) override;
  void head_gate_forward(const HeadGate& call) override;
  void head_gate_backward(const HeadGateBackward& call) override;
  void latent_heads_forward(const LatentHeads& call) override;
  void latent_heads_backward(const LatentHeadsBackward& call) override;
  void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) override;
  void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                       const Tensor& act, Activation activation) override;
  void route(const Route& call) override;
  void route_backward(const RouteBackward& call) override;
  void gather_choices(const Tensor& from, const Routes& routes, const Tensor& to) override;
  void gate_forward(const GateForward& call) override;
  void gate_backward(const GateBackward& call) override;
  void combine(const Combine& call) override;
  void attention_sinks(const AttentionSinks& call) override;
  void sigmoid(const Tensor& x) override;
  void sigmoid_backward(const Tensor& shares, const Tensor& grads) override;
  void cross_entropy(const CrossEntropy& call) override;
  void sum_rows(const RowSums& call) override;
  void low_rank_forward(const LowRank& call) override;
  void low_rank_backward(const LowRankBackward& call) override;
  void weight_grad(const WeightGrad& call) override;
  void column_sums(const Tensor& dy, float factor, const Tensor& grad) override;
  void add_column_squares(const Tensor& y, const Tensor& squares) override;
  void dora_norms(const DoraNorms& call) override;
  void column_gains(const ColumnGains& call) override;
  void column_gains_backward(const ColumnGainsBackward& call) override;
  void add_noise(const EmbeddingNoise& call) override;
  std::int32_t sample(const Sampling& call) override;

  void adamw(std::span<const AdamTarget> targets, const AdamSettings& settings) override;
  std::vector<double> squared_norms(std::span<const Tensor> tensors) override;

  /// [rows, cols] of the source, rounded to `hold` and then to the compute dtype.
  void load_matrix(const HostTensor& from, DType hold, const Tensor& to);

 private:
  friend class CpuLinearWeight;
  /// body(first row, rows) over a fixed cut of `rows`.
  template <class Body>
  void over_rows(std::int64_t rows, Body&& body);
  void lora_b_grad(const LinearInputGrad& call);
  /// to = drop(x), or to += drop(x).
  void drop_rows(const LoraDrop& call, bool adds);
  /// A row in float32: itself, or converted into `storage`.
  const float* as_floats(const Tensor& t, std::int64_t row, float* storage) const;
  /// Masks of a pair for columns [first, first + count) of tokens [begin, end), or null without dropout.
  const std::uint8_t* mask(const LoraView& pair, const LoraSet& lora, const Sequences* sequences, std::int64_t in,
                           std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t count,
                           std::uint8_t* storage);

  DType compute_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::vector<std::unique_ptr<CpuThread>> threads_;
  Arena* arena_ = nullptr;
};

}  // namespace pipelora
