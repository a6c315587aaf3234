// A device on paper: addresses without memory behind them, operations that only take the scratch that a GPU's would. What a
// segment asks of an arena at any size can be gone through with it.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "pipelora/core/arena_offload.h"
#include "pipelora/core/error.h"
#include "pipelora/model/segment.h"

namespace testing {

using namespace pipelora;

class PaperMemory final : public DeviceMemory {
 public:
  explicit PaperMemory(std::size_t bytes) : bytes_(std::max<std::size_t>(bytes, 1)) {
    data_ = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  ~PaperMemory() override { munmap(data_, bytes_); }
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  std::size_t bytes_;
  void* data_;
};

class PaperLinear final : public LinearWeight {
 public:
  void load(std::size_t, const HostTensor&, const HoldSpec&) override {}
  void load_bias(std::size_t, const HostTensor&) override {}
  void refresh(std::int64_t, const Tensor&) override {}
  void refresh_bias(std::int64_t, const Tensor&) override {}
  Tensor bias_values() const override { return Tensor(); }
  std::size_t bytes() const override { return 0; }
};

class PaperOffload final : public ArenaOffload {
 public:
  PaperOffload(std::vector<Buffer> tensors, Arena& arena) : ArenaOffload(std::move(tensors), arena) {}

 private:
  void left() override {}
  void bring_back() override {}
  void arrived() override {}
};

class PaperOps final : public Ops {
 public:
  DType compute_dtype() const override { return DType::bf16; }
  std::unique_ptr<DeviceMemory> allocate(const char*, std::size_t bytes, bool) override { return std::make_unique<PaperMemory>(bytes); }
  std::unique_ptr<Offloaded> offload(std::vector<Buffer> tensors) override { return std::make_unique<PaperOffload>(std::move(tensors), *arena_); }
  void use_arena(Arena& arena) override { arena_ = &arena; }
  void upload(const Tensor&, const void*) override {}
  void download(const Tensor& from, void* host) override { std::memset(host, 0, from.bytes()); }
  void upload(Indices& indices) override {
    // As a GPU has it: kernels read what was uploaded.
    if (indices.size() > 0 && !indices.storage) throw Error(kEngineFailed, "indices without room on the device");
    indices.device = indices.storage;
  }
  bool needs_device_indices() const override { return true; }
  void load(const HostTensor&, const Tensor&) override {}
  void finish() override {}
  void copy(const Tensor&, const Tensor&) override {}
  void zero(const Tensor&) override {}
  void add_scaled(const Tensor&, float, const Tensor&) override {}
  void gather_rows(const Tensor&, const Indices&, const Tensor&) override {}
  void scatter_rows(const Tensor&, const Indices&, float, const Tensor&) override {}
  void encode_rows(const Tensor&, const Tensor&) override {}
  void decode_rows(const Tensor&, const Tensor&) override {}
  std::unique_ptr<LinearWeight> create_linear(std::int64_t in, std::vector<std::int64_t> rows, bool) override {
    auto made = std::make_unique<PaperLinear>();
    made->in = in;
    for (const std::int64_t n : rows) made->out += n;
    made->part_rows = std::move(rows);
    return made;
  }
  std::int64_t room_for_lora(std::int64_t inner_cols) const override { return tail(inner_cols); }
  void linear_forward(const LinearForward&) override {}
  void linear_input_grad(const LinearInputGrad& call) override {
    const auto dropped = [](const LoraView& pair) { return pair.dropout > 0; };
    const std::int64_t out = call.weight->out;
    if (call.lora.pairs.empty() || !call.dx || out >= 2 * call.weight->in) return;
    if (call.lora.dropout != nullptr && std::any_of(call.lora.pairs.begin(), call.lora.pairs.end(), dropped)) return;
    arena_->workspace("a gradient with that of LoRA's inner vectors", call.dy.dtype, call.dy.rows, (out + tail(call.lora.inner_cols) + 63) / 64 * 64);
  }
  void lora_a_grad(const LoraAGrad&) override {}
  void lora_drop(const LoraDrop&) override {}
  void lora_drop_backward(const LoraDrop&) override {}
  void add(const Tensor&, const Tensor&, float, const Tensor&) override {}
  void shape_logits(const Tensor&, float, float) override {}
  void rmsnorm_forward(const Tensor&, const Tensor&, NormRule, const Tensor&) override {}
  void rmsnorm_backward(const RmsNormBackward&) override {}
  void qk_rope_forward(const QkRope&) override {}
  void qk_rope_backward(const QkRopeBackward&) override {}
  void attention_forward(const AttentionForward&) override {}
  void attention_backward(const AttentionBackward& call) override {
    const Buffer delta = arena_->workspace("attention's row sums", DType::f32, call.lse.rows, call.lse.cols);
    arena_->spare("attention's slopes", 0, std::size_t{1} << 40);
  }
  void short_conv_forward(const ShortConv&) override {}
  void short_conv_backward(const ShortConvBackward&) override {}
  void delta_rule_forward(const DeltaRule&) override {}
  void delta_rule_backward(const DeltaRuleBackward&) override {}
  void head_gate_forward(const HeadGate&) override {}
  void head_gate_backward(const HeadGateBackward&) override {}
  void latent_heads_forward(const LatentHeads&) override {}
  void latent_heads_backward(const LatentHeadsBackward&) override {}
  void swiglu_forward(const Tensor&, const Tensor&, const Tensor&, Activation) override {}
  void swiglu_backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, Activation) override {}
  void route(const Route&) override {}
  void route_backward(const RouteBackward&) override {}
  void gather_choices(const Tensor&, const Routes&, const Tensor&) override {}
  void gate_forward(const GateForward&) override {}
  void gate_backward(const GateBackward&) override {}
  void combine(const Combine&) override {}
  void attention_sinks(const AttentionSinks&) override {}
  void sigmoid(const Tensor&) override {}
  void sigmoid_backward(const Tensor&, const Tensor&) override {}
  void cross_entropy(const CrossEntropy&) override {}
  void sum_rows(const RowSums&) override {}
  void low_rank_forward(const LowRank&) override {}
  void low_rank_backward(const LowRankBackward&) override {}
  void weight_grad(const WeightGrad&) override {}
  void column_sums(const Tensor&, float, const Tensor&) override {}
  void add_column_squares(const Tensor&, const Tensor&) override {}
  void dora_norms(const DoraNorms&) override {}
  void column_gains(const ColumnGains&) override {}
  void column_gains_backward(const ColumnGainsBackward&) override {}
  void add_noise(const EmbeddingNoise&) override {}
  std::int32_t sample(const Sampling&) override { return 0; }
  void adamw(std::span<const AdamTarget>, const AdamSettings&) override {}
  std::vector<double> squared_norms(std::span<const Tensor> tensors) override { return std::vector<double>(tensors.size(), 0); }

 private:
  static std::int64_t tail(std::int64_t inner_cols) { return (inner_cols + 7) / 8 * 8; }
  Arena* arena_ = nullptr;
};

}  // namespace testing
