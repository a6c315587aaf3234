// Ops on one NVIDIA GPU. Everything runs on one stream, in call order.
#pragma once

#include <initializer_list>
#include <memory>
#include <vector>

#include "ops/cuda/base/cublaslt.h"
#include "ops/cuda/device/device.h"
#include "ops/cuda/kernel_choice.h"
#include "ops/cuda/base/linear_weight.h"
#include "ops/cuda/lora/lora.h"
#include "ops/cuda/device/offload.h"
#include "ops/cuda/device/work_clock.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

class CudaOps final : public Ops {
 public:
  CudaOps(int device, DType compute);
  ~CudaOps() override;

  DType compute_dtype() const override { return context_.compute; }
  std::unique_ptr<DeviceMemory> allocate(const char* what, std::size_t bytes, bool zeroed) override;
  std::unique_ptr<DeviceMemory> allocate_on_host(const char* what, std::size_t bytes) override;
  void reserve_host(std::size_t bytes) override;
  std::unique_ptr<Offloaded> offload(std::vector<Buffer> tensors) override;
  void use_arena(Arena& arena) override;

  void upload(const Tensor& to, const void* host) override;
  void download(const Tensor& from, void* host) override;
  void upload(Indices& indices) override;
  bool needs_device_indices() const override { return true; }
  void load(const HostTensor& from, const Tensor& to) override;
  void finish() override { device_.finish(); }
  DeviceUse device_use() override { return device_.use(); }
  /// What the GPU had free before this process made a context on it.
  void remember_free(std::size_t bytes) { device_.remember_free(bytes); }
  void stretch_begins() override { clock_.begin(device_.stream()); }
  void stretch_ends() noexcept override { clock_.end(); }
  std::optional<double> worked_seconds() override { return clock_.seconds(); }
  std::shared_ptr<const Fence> mark() override;

  void copy(const Tensor& from, const Tensor& to) override;
  void zero(const Tensor& tensor) override;
  void add_scaled(const Tensor& from, float factor, const Tensor& to) override;
  void gather_rows(const Tensor& from, const Indices& rows, const Tensor& to) override;
  void scatter_rows(const Tensor& from, const Indices& rows, float factor, const Tensor& to) override;
  void encode_rows(const Tensor& from, const Tensor& to) override;
  void decode_rows(const Tensor& from, const Tensor& to) override;

  std::unique_ptr<LinearWeight> create_linear(std::int64_t in, std::vector<std::int64_t> part_rows, bool bias) override;
  std::int64_t room_for_lora(std::int64_t inner_cols) const override { return tail_columns(inner_cols); }
  void linear_forward(const LinearForward& call) override;
  void linear_input_grad(const LinearInputGrad& call) override;
  void lora_a_grad(const LoraAGrad& call) override;
  void lora_drop(const LoraDrop& call) override;
  void lora_drop_backward(const LoraDrop& call) override;
  std::int64_t experts_together(std::int64_t experts, std::int64_t in, std::int64_t out) const override;
  void experts_forward(const ExpertsForward& call) override;
  void experts_input_grad(const ExpertsInputGrad& call) override;
  void gathered_experts_forward(const Tensor& from, const Routes& routes, const ExpertsForward& call) override;
  void gathered_experts_input_grad(const Tensor& from, const Routes& routes, const ExpertsInputGrad& call) override;
  void experts_a_grad(const ExpertsAGrad& call) override;

  void add(const Tensor& a, const Tensor& b, float factor, const Tensor& out) override;
  void shape_logits(const Tensor& logits, float factor, float cap) override;
  void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y) override;
  void rmsnorm_add(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& residual, float factor, const Tensor& y) override;
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
  void norm_linear_forward(const Tensor& x, const Tensor& weight, NormRule rule, const LinearForward& call) override;
  void linear_input_grad_norm(const LinearInputGrad& call, const RmsNormBackward& norm) override;
  void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation) override;
  void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                       const Tensor& act, Activation activation) override;
  void swiglu_linear_forward(const Tensor& gate, const Tensor& up, const LinearForward& call, Activation activation) override;
  void swiglu_linear_input_grad(const LinearInputGrad& call, const Tensor& gate, const Tensor& up, const Tensor& dgate,
                                const Tensor& dup, Activation activation) override;
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

 private:
  struct HeldInputs;
  HeldInputs delta_inputs(const Tensor& qkv, const Tensor& b, const Tensor& a, const Tensor& a_log, const Tensor& dt_bias, const DeltaShape& shape);
  /// Whether the call's heads have two widths, and it was done.
  bool attention_by_widening(const AttentionForward& call);
  bool attention_by_widening(const AttentionBackward& call);
  void multiply(const Product& product);
  /// The product of a weight that is no 8-bit one; `inner_ready`: the inner vectors stand behind x already.
  void forward_product(const LinearForward& call, const HeldView& weight, bool inner_ready);
  /// inner = factor * drop(x) Aᵀ.
  void make_inner(const LinearForward& call);
  void inner_as_products(const Tensor& x, const LoraSet& lora, const Sequences* sequences, const Tensor& inner);
  /// y += scale * inner Bᵀ.
  void add_output(const LoraSet& lora, const Tensor& inner, const Tensor& y);
  /// y = residual (or 0) + scale * inner Bᵀ where pairs apply.
  void write_output(const LoraSet& lora, const Tensor& inner, const Tensor& residual, const Tensor& y);
  /// inner_grad, and the gradient of B.
  void output_grads(const LinearInputGrad& call);
  void output_grads_as_products(const LinearInputGrad& call);
  /// dx += LoRA's term.
  void add_input_grad(const LinearInputGrad& call);
  void a_grad_as_products(const LoraAGrad& call);
  /// inner = factor * input Aᵀ, of inputs as dropped_inputs has them; back, each pair's term of the input's gradient before dropout.
  void inner_of(const LoraSet& lora, const Tensor& inputs, std::int64_t in, const Tensor& inner);
  void terms_of(const LoraSet& lora, const Tensor& rounded, std::int64_t in, const Tensor& terms);
  /// grad_a += factor * roundedᵀ input, of one input for all pairs or one apart for each.
  void a_grad_of(const LoraSet& lora, const Tensor& inputs, bool apart, const Tensor& rounded);
  /// Whether one pair's dropout is made apart from its products, so that SwiGLU can make it.
  bool drops_apart(LoraOp op, const LoraSet& lora, const Tensor& x) const;
  /// SwiGLU with what dropout leaves of its output, and its inner vectors; false, and nothing done, where that does not suit.
  bool swiglu_inner_as_products(const Tensor& gate, const Tensor& up, const LinearForward& call, Activation activation);
  struct SwiGluGrads {
    Tensor gate, up, dgate, dup;
  };
  /// Back: LoRA's term, SwiGLU and A's gradient; call.dx is used up. False, and nothing done, where that does not suit.
  bool swiglu_grad_as_products(const LinearInputGrad& call, const SwiGluGrads& grads, Activation activation);
  /// A workspace in the compute dtype whose rows begin on lines of 128 bytes or more.
  Buffer computed(const char* what, std::int64_t rows, std::int64_t cols);
  Buffer rounded_inner(const Tensor& inner);
  /// The A of all pairs, one below the other as their inner vectors stand.
  Buffer stacked_a(const LoraSet& lora, std::int64_t in);
  /// The B of all pairs (transposed), likewise; as wide as the widest.
  Buffer stacked_b(const LoraSet& lora);
  /// Room for an input of `in` columns for each pair, side by side.
  Buffer dropped_inputs(const char* what, const LoraSet& lora, std::int64_t rows, std::int64_t in);
  /// All but LoRA's term, if it is not joined to the product: gives whether that is left to do.
  bool input_grad_product(const LinearInputGrad& call);
  void forward_int8(const LinearForward& call, const HeldView& weight);
  void forward_values(const LinearForward& call, const HeldView& weight);
  /// An input of products in e4m3.
  struct Fp8Input {
    Buffer codes, scales;
    explicit operator bool() const { return static_cast<bool>(codes); }
    RowCodes rows() const { return {codes.tensor().as<std::uint8_t>(), codes.tensor().stride, scales.tensor().as<float>()}; }
    /// Becomes the first operand of a product with a weight in e4m3, whose rows are those of the output. `weight`: CudaLinear, or a view of one.
    template <class Product, class Weight>
    void into(Product& product, const Weight& weight, bool forward) const {
      product.a = codes;
      product.a_scales = scales.tensor().as<float>();
      product.b_transposed = true;
      product.b_scales = weight.fp8_scales(forward);
    }
  };
  Fp8Input room_in_e4m3(std::int64_t rows, std::int64_t cols);
  Fp8Input in_e4m3(const Tensor& x);
  /// Of gather_choices()' rows, where a product of all experts reads these alone; else nothing.
  Fp8Input gathered_in_e4m3(const Tensor& from, const Routes& routes, const ExpertsWeight& weight, std::span<const LoraView> lora);
  void forward_fp8(const LinearForward& call, const HeldView& weight, Fp8Input x);
  /// A product with scales, in one launch or behind it.
  void multiply_e4m3(const Product& product);
  /// A few tokens: their input, inner vectors and product; false, and nothing done, where that does not suit.
  bool forward_few(const FewInput& input, const LinearForward& call);
  /// The product of a call whose inner vectors are written where it does not take them along; `inner_ready`: the tail behind x is, too. `made`: x in
  /// e4m3, where whoever made x wrote that.
  void known_forward(const LinearForward& call, const HeldView& weight, bool inner_ready, Fp8Input made = {});
  /// Of a product over `rows` rows of all experts.
  ExpertsKernel experts_kernel(const ExpertsWeight& weight, std::int64_t rows) const;
  /// In one launch a weight. `codes`: the input, or the output's gradient, in e4m3, where the kernel takes that.
  void grouped_forward(const ExpertsForward& call, const Fp8Input& codes);
  void grouped_input_grad(const ExpertsInputGrad& call, const Fp8Input& codes);
  /// factor * from in the compute dtype, in the first columns of a workspace whose rows begin on 128 bytes.
  Buffer narrowed(const char* what, const Tensor& from, float factor);
  Buffer bytes(const char* what, std::size_t count);
  LoraScratch scratch(const Buffer& partial) const;
  /// The kernel for a LoRA operation on x [T, columns]; `others`: what else it reads or writes eight elements at a time.
  LoraKernel choose(LoraOp op, const LoraSet& lora, const Tensor& x, std::initializer_list<Tensor> others = {}) const;
  void inner_products(const Tensor& x, const std::vector<LoraTile>& tiles, LoraKernel kernel, const DropoutKey* dropout,
                      const Sequences* sequences, const Tensor& inner, const Tensor& copy, std::int64_t tail);
  /// A table that a kernel reads, in a workspace that lives as long as the buffer given back.
  template <class Entry>
  Buffer table(const char* what, const std::vector<Entry>& entries);

  Device device_;
  WorkClock clock_;
  LinearContext context_;
  GpuKind gpu_;
  Products products_;
  std::unique_ptr<Memory> product_workspace_;
  std::unique_ptr<Memory> counters_;
  std::unique_ptr<Memory> sampling_;  // made when a token is first drawn
  std::unique_ptr<HostRoom> host_room_;
  Arena* arena_ = nullptr;
};

}  // namespace pipelora::cuda
