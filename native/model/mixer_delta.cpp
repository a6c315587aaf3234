// The gated delta net: a short convolution of q, k and v, the gated delta rule, and a norm with a gate on what it gives. The columns it works on are
// [q | k | v | z | b | a]: z gates the output, b and a make beta and the decay.
#include "pipelora/model/block.h"
#include "pipelora/core/error.h"
#include "pipelora/model/mixer.h"

namespace pipelora {

namespace {

class DeltaMixer final : public Mixer {
 public:
  DeltaMixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base)
      : ops_(ops), arena_(arena), spec_(spec), own_(*spec.delta), shape_(own_.shape), rule_(arch.rms_eps) {
    const DeltaShape& s = shape_;
    if (s.key_heads <= 0 || s.value_heads <= 0 || s.key_dim <= 0 || s.value_dim <= 0 || s.value_heads % s.key_heads != 0 || s.taps < 2 || s.taps > kMostTaps)
      throw Error(kTensorMismatch, "block " + std::to_string(spec.index) + ": a gated delta net needs heads of positive width, value heads a multiple of key "
                                       "heads, and a convolution of 2 to " + std::to_string(kMostTaps) + " taps");
    const std::int64_t total = s.mixed() * s.taps + 2 * s.value_heads + s.value_dim;
    auto* at = static_cast<float*>(base.memory("a gated delta net's own weights", static_cast<std::size_t>(total) * sizeof(float)));
    conv_ = Tensor(at, DType::f32, s.mixed(), s.taps);
    at += conv_.size();
    norm_ = Tensor(at, DType::f32, 1, s.value_dim);
    at += s.value_dim;
    a_log_ = Tensor(at, DType::f32, 1, s.value_heads);
    dt_bias_ = Tensor(at + s.value_heads, DType::f32, 1, s.value_heads);
  }

  std::vector<LinearSpec> inputs() const override {
    return fused() ? pick_linears(spec_, {Role::delta_qkvz, Role::delta_ba})
                   : pick_linears(spec_, {Role::delta_qkv, Role::delta_z, Role::delta_b, Role::delta_a});
  }
  std::int64_t in_cols() const override { return shape_.mixed() + shape_.values() + 2 * shape_.value_heads; }
  std::int64_t out_cols() const override { return shape_.values(); }
  const char* input_name() const override { return "q, k, v, z, b and a of a gated delta net"; }
  CacheShape cache_shape() const override { return {0, conv_floats() + shape_.state()}; }

  std::vector<WeightPlace> weights() override {
    return {{own_.conv, {conv_.rows, 1, conv_.cols}, 0, conv_}, {own_.norm, {norm_.cols}, 0, norm_},
            {own_.a_log, {a_log_.cols}, 0, a_log_}, {own_.dt_bias, {dt_bias_.cols}, 0, dt_bias_}};
  }

  // A key head's q, k, its value heads' v and z; then a key head's b and a.
  std::vector<ColumnMove> moves() const override {
    std::vector<ColumnMove> moves;
    if (!fused()) return moves;
    const DeltaShape& s = shape_;
    const std::int64_t group = s.value_heads / s.key_heads, v = group * s.value_dim, z0 = s.mixed(), b0 = z0 + s.values(), a0 = b0 + s.value_heads;
    for (std::int64_t h = 0; h < s.key_heads; ++h) {
      const std::int64_t first = h * (2 * s.key_dim + 2 * v), gates = b0 + h * 2 * group;
      moves.push_back({first, h * s.key_dim, s.key_dim});
      moves.push_back({first + s.key_dim, s.keys() + h * s.key_dim, s.key_dim});
      moves.push_back({first + 2 * s.key_dim, 2 * s.keys() + h * v, v});
      moves.push_back({first + 2 * s.key_dim + v, z0 + h * v, v});
      moves.push_back({gates, b0 + h * group, group});
      moves.push_back({gates + group, a0 + h * group, group});
    }
    return moves;
  }

  void forward(const Call& call) override {
    const std::int64_t tokens = call.batch.sequences.tokens;
    const Tensor product = call.saved.qkv;
    Tensor conv_state, state;
    if (call.cache != nullptr) {
      conv_state = call.cache->state.columns(0, conv_floats());
      state = call.cache->state.columns(conv_floats(), shape_.state());
    }
    call.saved.attn = arena_.tensor("a delta rule's output", ops_.compute_dtype(), tokens, shape_.values(), call.place);
    const Buffer mixed = convolved(call.batch, product, conv_state);
    ops_.delta_rule_forward({mixed, b(product), a(product), a_log_, dt_bias_, call.saved.attn, state, &call.batch.sequences, shape_});
  }

  Tensor output(const BlockSaved& saved, std::int64_t room, Buffer& storage) override {
    const Tensor attn = saved.attn;
    storage = arena_.workspace("a delta rule's output behind its norm", attn.dtype, attn.rows, shape_.values() + room);
    const Tensor y = storage.tensor().columns(0, shape_.values());
    ops_.head_gate_forward({attn, z(saved.qkv), norm_, rule_, shape_.value_dim, y});
    return y;
  }

  Buffer backward(const Batch& batch, BlockSaved& saved, Buffer dout, bool) override {
    const Tensor product = saved.qkv;
    Buffer gradient = arena_.workspace("gradient of a gated delta net's inputs", ops_.compute_dtype(), batch.sequences.tokens, in_cols());
    ops_.head_gate_backward({saved.attn, z(product), norm_, rule_, shape_.value_dim, dout, dout, z(gradient)});
    const Buffer mixed = convolved(batch, product, Tensor());
    const Buffer dmixed = arena_.workspace("gradient of q, k and v behind their convolution", ops_.compute_dtype(), batch.sequences.tokens, shape_.mixed());
    ops_.delta_rule_backward({mixed, b(product), a(product), a_log_, dt_bias_, dout, dmixed, b(gradient), a(gradient), &batch.sequences, shape_});
    ops_.short_conv_backward({product.columns(0, shape_.mixed()), conv_, dmixed, gradient.tensor().columns(0, shape_.mixed()), &batch.sequences});
    return gradient;
  }

 private:
  static constexpr std::int64_t kMostTaps = 16;

  bool fused() const { return !pick_linears(spec_, {Role::delta_qkvz}).empty(); }
  std::int64_t conv_floats() const { return (shape_.taps - 1) * shape_.mixed(); }
  Tensor z(const Tensor& product) const { return product.columns(shape_.mixed(), shape_.values()); }
  Tensor b(const Tensor& product) const { return product.columns(shape_.mixed() + shape_.values(), shape_.value_heads); }
  Tensor a(const Tensor& product) const { return product.columns(shape_.mixed() + shape_.values() + shape_.value_heads, shape_.value_heads); }

  Buffer convolved(const Batch& batch, const Tensor& product, const Tensor& state) {
    Buffer mixed = arena_.workspace("q, k and v behind their convolution", ops_.compute_dtype(), batch.sequences.tokens, shape_.mixed());
    ops_.short_conv_forward({product.columns(0, shape_.mixed()), conv_, mixed, state, &batch.sequences});
    return mixed;
  }

  Ops& ops_;
  Arena& arena_;
  const BlockSpec& spec_;
  const DeltaNetSpec& own_;
  const DeltaShape& shape_;
  NormRule rule_;
  Tensor conv_, norm_, a_log_, dt_bias_;
};

}  // namespace

std::unique_ptr<Mixer> make_delta_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base) {
  return std::make_unique<DeltaMixer>(ops, arena, arch, spec, base);
}

}  // namespace pipelora
