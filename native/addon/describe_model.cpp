// What describes a model to the engine (src/engine/description.ts), to the core's records.
#include "addon/convert.h"

#include <optional>

#include "pipelora/core/error.h"

namespace pipelora::addon {

namespace {

std::string optional_text(const Napi::Value& value, const char* what) { return absent(value) ? std::string() : to_text(value, what); }

std::optional<LoraSpec> to_lora(const Napi::Value& value) {
  if (absent(value)) return std::nullopt;
  const Napi::Object lora = to_object(value, "lora");
  LoraSpec spec;
  spec.r = to_int(lora.Get("r"), "lora.r");
  spec.scale = static_cast<float>(to_number(lora.Get("scale"), "lora.scale"));
  spec.dropout = static_cast<float>(to_number(lora.Get("dropout"), "lora.dropout"));
  spec.module_id = static_cast<std::uint32_t>(to_int(lora.Get("moduleId"), "lora.moduleId"));
  spec.dora = lora.Has("dora") && to_bool(lora.Get("dora"), "lora.dora");
  return spec;
}

/// The value that `table` has under a text; `expected` names them all.
template <class T, std::size_t kCount>
T named_in(const std::pair<const char*, T> (&table)[kCount], const Napi::Value& value, const char* expected, const char* what) {
  const std::string name = to_text(value, what);
  for (const auto& [known, found] : table)
    if (name == known) return found;
  mismatch(expected, what, value);
}

Activation to_activation(const Napi::Value& value) {
  constexpr std::pair<const char*, Activation> activations[] = {
      {"silu", Activation::silu}, {"gelu_tanh", Activation::gelu_tanh}, {"gelu", Activation::gelu}};
  return named_in(activations, value, "silu, gelu_tanh or gelu", "arch.activation");
}

Role to_role(const Napi::Value& value) {
  constexpr std::pair<const char*, Role> roles[] = {
      {"qkv", Role::qkv},           {"q", Role::q},
      {"k", Role::k},               {"v", Role::v},
      {"o", Role::o},               {"gate_up", Role::gate_up},
      {"gate", Role::gate},         {"up", Role::up},
      {"down", Role::down},         {"router", Role::router},
      {"shared_gate", Role::shared_gate}, {"delta_qkv", Role::delta_qkv},
      {"delta_z", Role::delta_z},   {"delta_b", Role::delta_b},
      {"delta_a", Role::delta_a},   {"delta_qkvz", Role::delta_qkvz},
      {"delta_ba", Role::delta_ba}, {"q_a", Role::q_a},
      {"q_b", Role::q_b},           {"kv_a", Role::kv_a},
      {"kv_b", Role::kv_b}};
  return named_in(roles, value, "a role that linears have (EngineLinear)", "role");
}

LinearSpec to_linear(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "a linear");
  LinearSpec linear;
  linear.role = to_role(from.Get("role"));
  linear.name = to_text(from.Get("name"), "linear.name");
  linear.in = to_int(from.Get("in"), "linear.in");
  linear.out = to_int(from.Get("out"), "linear.out");
  linear.bias = to_bool(from.Get("bias"), "linear.bias");
  linear.lora = to_lora(from.Get("lora"));
  linear.trained_bias = optional_text(from.Get("trainedBias"), "linear.trainedBias");
  return linear;
}

std::vector<LinearSpec> to_linears(const Napi::Value& value, const char* what) {
  const Napi::Array array = to_array(value, what);
  std::vector<LinearSpec> linears;
  for (std::uint32_t i = 0; i < array.Length(); ++i) linears.push_back(to_linear(array.Get(i)));
  return linears;
}

RouteScore to_score(const Napi::Value& value) {
  constexpr std::pair<const char*, RouteScore> scores[] = {{"softmax", RouteScore::softmax},
                                                           {"sigmoid", RouteScore::sigmoid},
                                                           {"softmax_of_chosen", RouteScore::softmax_of_chosen},
                                                           {"sigmoid_of_chosen", RouteScore::sigmoid_of_chosen}};
  return named_in(scores, value, "softmax, sigmoid, softmax_of_chosen or sigmoid_of_chosen", "route.score");
}

RouteRule to_route(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "experts.route");
  RouteRule rule;
  rule.experts = to_int(from.Get("experts"), "route.experts");
  rule.chosen = to_int(from.Get("chosen"), "route.chosen");
  rule.score = to_score(from.Get("score"));
  rule.normalise = to_bool(from.Get("normalise"), "route.normalise");
  rule.groups = to_int(from.Get("groups"), "route.groups");
  rule.chosen_groups = to_int(from.Get("chosenGroups"), "route.chosenGroups");
  rule.group_score = to_bool(from.Get("twoBest"), "route.twoBest") ? GroupScore::two_best : GroupScore::best;
  rule.factor = static_cast<float>(to_number(from.Get("factor"), "route.factor"));
  return rule;
}

std::optional<ExpertsSpec::Pair> to_pair(const Napi::Value& value) {
  if (absent(value)) return std::nullopt;
  const Napi::Object from = to_object(value, "experts' pair");
  return ExpertsSpec::Pair{to_text(from.Get("name"), "pair.name"), *to_lora(value), to_bool(from.Get("crossed"), "pair.crossed")};
}

std::optional<ExpertsSpec> to_experts(const Napi::Value& value) {
  if (absent(value)) return std::nullopt;
  const Napi::Object from = to_object(value, "block.experts");
  ExpertsSpec experts;
  experts.route = to_route(from.Get("route"));
  experts.gate.activation = to_activation(from.Get("activation"));
  experts.gate.interleaved = to_bool(from.Get("interleaved"), "experts.interleaved");
  experts.gate.limit = static_cast<float>(to_number(from.Get("limit"), "experts.limit"));
  experts.gate.alpha = static_cast<float>(to_number(from.Get("alpha"), "experts.alpha"));
  experts.gate.weight_before = to_bool(from.Get("weightBefore"), "experts.weightBefore");
  experts.router = to_linear(from.Get("router"));
  experts.correction = optional_text(from.Get("correction"), "experts.correction");
  experts.linears = to_linears(from.Get("linears"), "experts.linears");
  experts.gate_up_lora = to_pair(from.Get("gateUpLora"));
  experts.down_lora = to_pair(from.Get("downLora"));
  return experts;
}

DeltaNetSpec to_delta(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "block.delta");
  DeltaNetSpec spec;
  spec.shape = {to_int(from.Get("keyHeads"), "delta.keyHeads"), to_int(from.Get("valueHeads"), "delta.valueHeads"), to_int(from.Get("keyDim"), "delta.keyDim"),
                to_int(from.Get("valueDim"), "delta.valueDim"), to_int(from.Get("taps"), "delta.taps")};
  spec.conv = to_text(from.Get("conv"), "delta.conv");
  spec.a_log = to_text(from.Get("aLog"), "delta.aLog");
  spec.dt_bias = to_text(from.Get("dtBias"), "delta.dtBias");
  spec.norm = to_text(from.Get("norm"), "delta.norm");
  return spec;
}

LatentSpec to_latent(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "block.latent");
  LatentSpec spec;
  spec.shape = {to_int(from.Get("heads"), "latent.heads"), to_int(from.Get("plain"), "latent.plain"), to_int(from.Get("turning"), "latent.turning"),
                to_int(from.Get("value"), "latent.value")};
  spec.q_rank = to_int(from.Get("qRank"), "latent.qRank");
  spec.kv_rank = to_int(from.Get("kvRank"), "latent.kvRank");
  spec.q_norm = optional_text(from.Get("qNorm"), "latent.qNorm");
  spec.kv_norm = to_text(from.Get("kvNorm"), "latent.kvNorm");
  spec.norm_eps = static_cast<float>(to_number(from.Get("normEps"), "latent.normEps"));
  return spec;
}

BlockSpec to_block(const Napi::Object& layer) {
  BlockSpec block;
  block.index = to_int(layer.Get("index"), "block.index");
  block.attn_norm = optional_text(layer.Get("attnNorm"), "block.attnNorm");
  block.attn_post_norm = optional_text(layer.Get("attnPostNorm"), "block.attnPostNorm");
  block.mlp_norm = optional_text(layer.Get("mlpNorm"), "block.mlpNorm");
  block.mlp_post_norm = optional_text(layer.Get("mlpPostNorm"), "block.mlpPostNorm");
  block.q_norm = optional_text(layer.Get("qNorm"), "block.qNorm");
  block.k_norm = optional_text(layer.Get("kNorm"), "block.kNorm");
  block.plain_head_norms = to_bool(layer.Get("plainHeadNorms"), "block.plainHeadNorms");
  block.rotary = to_int(layer.Get("rotary"), "block.rotary");
  block.sliding_window = to_int(layer.Get("slidingWindow"), "block.slidingWindow");
  block.chunked = to_bool(layer.Get("chunked"), "block.chunked");
  block.gated = to_bool(layer.Get("gated"), "block.gated");
  if (!absent(layer.Get("delta"))) block.delta = to_delta(layer.Get("delta"));
  if (!absent(layer.Get("latent"))) block.latent = to_latent(layer.Get("latent"));
  block.sinks = optional_text(layer.Get("sinks"), "block.sinks");
  block.linears = to_linears(layer.Get("linears"), "block.linears");
  block.experts = to_experts(layer.Get("experts"));
  return block;
}

RotarySpec to_rotary(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "arch.rotary");
  const auto frequencies = [&](const char* key, const char* what) { return to_doubles(from.Get(key), what); };
  RotarySpec rotary;
  rotary.base = to_number(from.Get("base"), "rotary.base");
  rotary.inv_freq = frequencies("invFreq", "rotary.invFreq");
  rotary.attention_scaling = to_number(from.Get("attentionScaling"), "rotary.attentionScaling");
  rotary.long_inv_freq = frequencies("longInvFreq", "rotary.longInvFreq");
  rotary.long_from = to_int(from.Get("longFrom"), "rotary.longFrom");
  rotary.dynamic_factor = to_number(from.Get("dynamicFactor"), "rotary.dynamicFactor");
  return rotary;
}

EmbeddingSpec to_embedding(const Napi::Object& layer) {
  EmbeddingSpec spec{to_text(layer.Get("weight"), "embedding.weight"), to_text(layer.Get("name"), "embedding.name")};
  spec.trained = optional_text(layer.Get("trained"), "embedding.trained");
  spec.lora = to_lora(layer.Get("lora"));
  spec.padding = static_cast<std::int32_t>(to_int(layer.Get("padding"), "embedding.padding"));
  if (!absent(layer.Get("tokenRows"))) spec.token_rows = to_int32s(layer.Get("tokenRows"), "embedding.tokenRows");
  return spec;
}

HeadSpec to_head(const Napi::Object& layer) {
  HeadSpec spec{to_text(layer.Get("weight"), "head.weight"), to_text(layer.Get("name"), "head.name"), to_lora(layer.Get("lora"))};
  spec.trained = optional_text(layer.Get("trained"), "head.trained");
  if (!absent(layer.Get("tokenRows"))) spec.token_rows = to_int32s(layer.Get("tokenRows"), "head.tokenRows");
  return spec;
}

}  // namespace

Arch to_arch(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "arch");
  Arch arch;
  arch.hidden = to_int(from.Get("hidden"), "arch.hidden");
  arch.heads = to_int(from.Get("heads"), "arch.heads");
  arch.kv_heads = to_int(from.Get("kvHeads"), "arch.kvHeads");
  arch.head_dim = to_int(from.Get("headDim"), "arch.headDim");
  arch.ffn = to_int(from.Get("ffn"), "arch.ffn");
  arch.vocab = to_int(from.Get("vocab"), "arch.vocab");
  arch.rms_eps = static_cast<float>(to_number(from.Get("rmsEps"), "arch.rmsEps"));
  const auto factor = [&](const char* key, const char* what) { return static_cast<float>(to_number(from.Get(key), what)); };
  const Napi::Array rotary = to_array(from.Get("rotary"), "arch.rotary");
  for (std::uint32_t i = 0; i < rotary.Length(); ++i) arch.rotary.push_back(to_rotary(rotary.Get(i)));
  arch.rotary_interleaved = to_bool(from.Get("rotaryInterleaved"), "arch.rotaryInterleaved");
  arch.activation = to_activation(from.Get("activation"));
  arch.norm_centred = to_bool(from.Get("normCentred"), "arch.normCentred");
  arch.norm_offset = factor("normOffset", "arch.normOffset");
  arch.head_norm_whole = to_bool(from.Get("headNormWhole"), "arch.headNormWhole");
  arch.head_norm_after_rotary = to_bool(from.Get("headNormAfterRotary"), "arch.headNormAfterRotary");
  arch.parallel = to_bool(from.Get("parallel"), "arch.parallel");
  arch.qkv_by_kv_head = to_bool(from.Get("qkvByKvHead"), "arch.qkvByKvHead");
  arch.embedding_scale = factor("embeddingScale", "arch.embeddingScale");
  arch.residual_scale = factor("residualScale", "arch.residualScale");
  arch.logit_scale = factor("logitScale", "arch.logitScale");
  arch.score_scale = factor("scoreScale", "arch.scoreScale");
  arch.score_cap = factor("scoreCap", "arch.scoreCap");
  arch.logit_cap = factor("logitCap", "arch.logitCap");
  arch.query_scale_beta = to_number(from.Get("queryScaleBeta"), "arch.queryScaleBeta");
  arch.query_scale_length = to_int(from.Get("queryScaleLength"), "arch.queryScaleLength");
  arch.query_scale_first = to_int(from.Get("queryScaleFirst"), "arch.queryScaleFirst");
  arch.query_scale_unturned = to_bool(from.Get("queryScaleUnturned"), "arch.queryScaleUnturned");
  arch.attention_chunk = to_int(from.Get("attentionChunk"), "arch.attentionChunk");
  arch.qwen_long_seq_length = to_int(from.Get("qwenLongSeqLength"), "arch.qwenLongSeqLength");
  arch.qwen_dynamic_ntk = to_bool(from.Get("qwenDynamicNtk"), "arch.qwenDynamicNtk");
  arch.qwen_logn = to_bool(from.Get("qwenLogn"), "arch.qwenLogn");
  return arch;
}

SegmentSpec to_segment(const Napi::Value& value) {
  const Napi::Object from = to_object(value, "the segment's description");
  SegmentSpec spec;
  if (from.Has("offloadedBlocks")) spec.offloaded_blocks = to_int(from.Get("offloadedBlocks"), "offloadedBlocks");
  spec.checkpointed_blocks = to_int(from.Get("checkpointedBlocks"), "checkpointedBlocks");
  spec.cached_blocks = to_int(from.Get("cachedBlocks"), "cachedBlocks");
  if (from.Has("fp8")) spec.fp8 = to_bool(from.Get("fp8"), "fp8");
  spec.needs_input_grad = to_bool(from.Get("needsInputGrad"), "needsInputGrad");
  spec.layers = to_layers(from.Get("layers"));
  return spec;
}

std::vector<LayerSpec> to_layers(const Napi::Value& value) {
  const Napi::Array from = to_array(value, "layers");
  std::vector<LayerSpec> layers;
  for (std::uint32_t i = 0; i < from.Length(); ++i) {
    const Napi::Object layer = to_object(from.Get(i), "layers");
    const std::string kind = to_text(layer.Get("kind"), "kind");
    if (kind == "embedding")
      layers.emplace_back(to_embedding(layer));
    else if (kind == "block")
      layers.emplace_back(to_block(layer));
    else if (kind == "norm")
      layers.emplace_back(NormSpec{to_text(layer.Get("weight"), "norm.weight")});
    else if (kind == "head")
      layers.emplace_back(to_head(layer));
    else
      mismatch("embedding, block, norm or head", "kind", layer.Get("kind"));
  }
  return layers;
}

}  // namespace pipelora::addon
