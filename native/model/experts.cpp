// Rows are sorted by expert, so that each expert's rows are consecutive in a product. Routing weights multiply the input of an expert's down
// projection, not its output, or what gate and up give (GateRule). So the outputs are only added up, and the routing weights' gradients come
// from the gate's backward pass, for which no expert's output has to be kept. Output biases are weighted and added with the sum.
#include "pipelora/model/experts.h"

#include "pipelora/core/error.h"

namespace pipelora {

namespace {

std::string numbered(std::string name, std::int64_t expert) {
  if (const auto at = name.find('*'); at != std::string::npos) name.replace(at, 1, std::to_string(expert));
  return name;
}

/// The router's product gives logits in f32, to which the routing adds the bias.
LinearSpec unbiased(LinearSpec linear) {
  linear.bias = false;
  return linear;
}

}  // namespace

Experts::Experts(Ops& ops, Arena& arena, std::int64_t hidden, const ExpertsSpec& spec, BaseWeights& base)
    : ops_(ops), arena_(arena), spec_(spec), router_(ops, arena, {unbiased(spec.router)}, base) {
  const RouteRule& rule = spec_.route;
  const bool grouped = rule.groups > 0 && rule.experts % rule.groups == 0 && rule.chosen_groups > 0 && rule.chosen_groups <= rule.groups;
  if (rule.experts < 1 || rule.experts > kMostExperts || rule.chosen < 1 || rule.chosen > kMostChosen || rule.chosen > rule.experts || !grouped ||
      rule.chosen > rule.experts / rule.groups * rule.chosen_groups || spec_.router.in != hidden || spec_.router.out != rule.experts)
    throw Error(kTensorMismatch, "experts: expected at most " + std::to_string(kMostExperts) + " of them, at most " + std::to_string(kMostChosen) +
                                     " chosen out of groups that divide them, and a router of " + shape_text(rule.experts, hidden));
  std::vector<LinearSpec> gate_up, down;
  bool bias = false;
  for (const LinearSpec& linear : spec_.linears) {
    (linear.role == Role::down ? down : gate_up).push_back(linear);
    bias = bias || linear.bias;
  }
  gate_up_ = make_product(std::move(gate_up), spec_.gate_up_lora, bias, base);
  down_ = make_product(std::move(down), spec_.down_lora, false, base);
  if (gate_up_.in != hidden || down_.out != hidden || gate_up_.out != 2 * down_.in)
    throw Error(kTensorMismatch, "experts: gate and up are " + shape_text(gate_up_.out, gate_up_.in) + ", down is " + shape_text(down_.out, down_.in));
  const std::int64_t corrections = spec_.correction.empty() ? 0 : rule.experts, router_biases = spec_.router.bias ? rule.experts : 0,
                     biases = bias ? rule.experts * hidden : 0, total = corrections + router_biases + biases;
  if (spec_.gate.weight_before && bias)
    throw Error(kTensorMismatch, "experts: weights that stand on what gate and up take go with gates without biases alone");
  if (total == 0) return;
  float* at = static_cast<float*>(base.memory("experts' corrections and biases", static_cast<std::size_t>(total) * sizeof(float)));
  if (corrections > 0) correction_ = Tensor(at, DType::f32, 1, corrections);
  if (router_biases > 0) router_bias_ = Tensor(at + corrections, DType::f32, 1, router_biases);
  if (biases > 0) down_bias_ = Tensor(at + corrections + router_biases, DType::f32, rule.experts, hidden);
}

Experts::Product Experts::make_product(std::vector<LinearSpec> linears, const std::optional<ExpertsSpec::Pair>& pair, bool bias, BaseWeights& base) {
  if (linears.empty()) throw Error(kTensorMismatch, "experts: expected gate, up and down");
  Product product;
  product.experts = spec_.route.experts;
  product.in = linears.front().in;
  for (const LinearSpec& linear : linears) product.out += linear.out;
  if (pair) {
    if (pair->lora.dropout != 0) throw Error(kTensorMismatch, "LoRA of " + pair->name + ": a parameter of all experts takes no dropout");
    product.pair = std::make_unique<LoraPair>(ops_, pair->name, product.in, product.out, pair->lora, product.experts, pair->crossed);
  }
  for (std::int64_t e = 0; pair && e < product.experts; ++e) product.views.push_back(product.pair->view(0, 0, e));
  const std::int64_t together = ops_.experts_together(product.experts, product.in, product.out);
  std::vector<std::int64_t> rows;
  for (std::int64_t e = 0; e < together; ++e)
    for (const LinearSpec& linear : linears) rows.push_back(linear.out);
  product.base = &base.product(product.in, rows, bias, product.rank(), static_cast<std::size_t>((product.experts + together - 1) / together));
  for (const auto& weight : product.base->weights) weight->expect_matrices(together);
  product.linears = std::move(linears);
  return product;
}

std::vector<Learner*> Experts::learners() const {
  std::vector<Learner*> found;
  for (const Product* product : {&gate_up_, &down_})
    if (product->pair) found.push_back(&product->pair->learner());
  return found;
}

void Experts::add_slots(WeightSlots& slots, const Product& product, bool bias, ProductForm form) {
  const auto together = static_cast<std::size_t>(product.weight().together()), parts = product.linears.size();
  for (std::int64_t e = 0; e < product.experts; ++e) {
    const auto expert = static_cast<std::size_t>(e);
    LinearWeight* weight = product.base->weights[expert / together].get();
    for (std::size_t i = 0; i < parts; ++i) {
      const LinearSpec& linear = product.linears[i];
      const std::size_t part = expert % together * parts + i;
      const std::string name = numbered(linear.name, e);
      slots.add(name + ".weight", linear.out, linear.in, *weight, part, form);
      if (bias && linear.bias)
        slots.add(name + ".bias", 0, linear.out, [weight, part](const HostTensor& data, const HoldSpec&) { weight->load_bias(part, data); });
    }
  }
}

void Experts::add_slots(WeightSlots& slots, ProductForm form) {
  add_slots(slots, gate_up_, true, form);
  add_slots(slots, down_, false, form);
  if (down_bias_)
    for (std::int64_t e = 0; e < down_.experts; ++e)
      slots.add(numbered(down_.linears.front().name, e) + ".bias", 0, down_.out,
                [this, e](const HostTensor& data, const HoldSpec&) { ops_.load(data, down_bias_.row_range(e, 1)); });
  if (router_bias_)
    slots.add(spec_.router.name + ".bias", 0, router_bias_.cols, [this](const HostTensor& data, const HoldSpec&) { ops_.load(data, router_bias_); });
  if (correction_)
    slots.add(spec_.correction, 0, correction_.cols, [this](const HostTensor& data, const HoldSpec&) { ops_.load(data, correction_); });
}

Buffer Experts::rank_rows(const char* what, const Product& product, std::int64_t rows) {
  return product.pair ? arena_.workspace(what, DType::f32, rows, product.rank()) : Buffer();
}

void Experts::begin(const Batch& batch, const Tensor& h, ExpertsSaved& saved, bool keep, Placement place) {
  const std::int64_t tokens = h.rows, experts = spec_.route.experts, chosen = spec_.route.chosen, rows = tokens * chosen;
  if (router_.has_pairs()) saved.inner_router = arena_.tensor("LoRA's inner vectors", DType::f32, tokens, router_.inner_cols(), place);
  saved.logits = arena_.tensor("a router's logits", DType::f32, tokens, experts, place);
  saved.experts = arena_.tensor("chosen experts", DType::i32, tokens, chosen, place);
  saved.weights = arena_.tensor("experts' weights", DType::f32, tokens, chosen, place);
  saved.order = arena_.tensor("rows by expert", DType::i32, 1, rows, place);
  saved.place = arena_.tensor("places of rows by expert", DType::i32, 1, rows, place);
  saved.starts = arena_.tensor("experts' first rows", DType::i32, 1, experts + 1, place);
  if (keep && router_.has_gains()) saved.before_router = arena_.tensor("a product before its gains", DType::f32, tokens, experts, place);
  router_.forward({h, &router_.weight(), router_.lora(batch.dropout()), saved.inner_router, Tensor(), saved.logits, &batch.sequences}, saved.before_router);
  ops_.route({saved.logits, router_bias_, correction_, spec_.route, saved.routes()});
  saved.host_starts.clear();

  if (gate_up_.pair) saved.inner_gate_up = arena_.tensor("LoRA's inner vectors", DType::f32, rows, gate_up_.rank(), place);
  saved.gate_up = arena_.tensor("experts' gate and up", h.dtype, rows, gate_up_.out, place);
  const Buffer sorted = arena_.workspace("hidden states by expert", h.dtype, rows, h.cols);
  ops_.gathered_experts_forward(h, saved.routes(), {sorted, gate_up_.weight(), gate_up_.views, saved.inner_gate_up, saved.gate_up, saved.rows()});
}

void Experts::finish(const Tensor& residual, ExpertsSaved& saved, bool keep, const Tensor& out) {
  const Tensor gate_up = saved.gate_up;
  Buffer act = arena_.workspace("experts' activations", gate_up.dtype, gate_up.rows, down_.in);
  ops_.gate_forward({gate_up, saved.weights, saved.order, spec_.gate, act});
  if (!keep) saved.gate_up.reset();
  Buffer inner = rank_rows("LoRA's inner vectors", down_, gate_up.rows);
  const Buffer rows = arena_.workspace("experts' outputs", gate_up.dtype, gate_up.rows, down_.out);
  ops_.experts_forward({act, down_.weight(), down_.views, inner, rows, saved.rows()});
  ops_.combine({rows, saved.routes(), residual, down_bias_, out});
}

void Experts::backward(const Batch& batch, const Tensor& h, const Tensor& dout, ExpertsSaved& saved, bool into_h, const Tensor& dh) {
  const std::int64_t tokens = h.rows, rows = saved.gate_up.tensor().rows;
  const Routes routes = saved.routes();
  const Buffer weight_grads = arena_.workspace("gradient of experts' weights", DType::f32, 1, rows);
  {
    Buffer act = arena_.workspace("experts' activations and their gradient", h.dtype, rows, down_.in);
    Buffer inner_grad = rank_rows("gradient of LoRA's inner vectors", down_, rows);
    {
      Buffer inner;
      if (down_.pair) {  // made again: what it was made of has not been kept either
        inner = rank_rows("LoRA's inner vectors", down_, rows);
        ops_.gate_forward({saved.gate_up, saved.weights, saved.order, spec_.gate, act});
        ops_.experts_forward({act, down_.weight(), down_.views, inner, Tensor(), saved.rows()});
      }
      const Buffer sorted = arena_.workspace("gradient by expert", h.dtype, rows, h.cols);
      ops_.gathered_experts_input_grad(dout, routes, {sorted, down_.weight(), down_.views, inner, inner_grad, act, saved.rows()});
    }
    ops_.gate_backward({saved.gate_up, saved.weights, saved.order, spec_.gate, act, weight_grads});
    if (down_.pair) ops_.experts_a_grad({act, inner_grad, down_.views, saved.rows()});
  }
  if (into_h || gate_up_.pair) {
    Buffer inner_grad = rank_rows("gradient of LoRA's inner vectors", gate_up_, rows);
    const Buffer sorted = arena_.workspace("hidden states by expert, or their gradient", h.dtype, rows, h.cols);
    ops_.experts_input_grad({saved.gate_up, gate_up_.weight(), gate_up_.views, saved.inner_gate_up, inner_grad, into_h ? sorted.tensor() : Tensor(), saved.rows()});
    if (into_h) ops_.combine({sorted, routes, dh, Tensor(), dh});
    if (gate_up_.pair) {
      ops_.gather_choices(h, routes, sorted);
      ops_.experts_a_grad({sorted, inner_grad, gate_up_.views, saved.rows()});
    }
  }
  saved.gate_up.reset();
  if (!into_h && !router_.trainable()) return;
  const Buffer dlogits = arena_.workspace("gradient of a router's logits", h.dtype, tokens, spec_.route.experts);
  ops_.route_backward({saved.logits, router_bias_, weight_grads, dout, down_bias_, spec_.route, routes, dlogits});
  const LoraSet lora = router_.lora(batch.dropout());
  Buffer inner_grad, own;
  if (router_.has_pairs()) inner_grad = arena_.workspace("gradient of LoRA's inner vectors", DType::f32, tokens, router_.inner_cols());
  if (into_h) own = arena_.workspace("a router's gradient of hidden states", h.dtype, tokens, h.cols);
  const Buffer plain = router_.product_grad(dlogits, saved.before_router, batch.dropout());
  router_.input_grad({plain ? plain : dlogits, &router_.weight(), lora, saved.inner_router, inner_grad, own, &batch.sequences}, saved.before_router);
  if (router_.has_pairs()) ops_.lora_a_grad({h, inner_grad, lora, &batch.sequences});
  if (into_h) ops_.add(dh, own, 1, dh);
}

}  // namespace pipelora
