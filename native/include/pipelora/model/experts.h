// A mixture of experts: the router, the experts' weights and adapters, and the passes through them.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/ops/batch.h"
#include "pipelora/model/lora.h"
#include "pipelora/model/weight_slots.h"

namespace pipelora {

/// What the backward pass needs. T tokens, N experts, C choices a token, P = T C.
struct ExpertsSaved {
  Buffer logits;                                  // [T, N] f32
  Buffer experts, weights, order, place, starts;  // of Routes
  std::vector<std::int32_t> host_starts;          // [N + 1], or empty: see ExpertRows
  Buffer gate_up;                                 // [P, 2F]
  Buffer inner_router, inner_gate_up;             // LoRA's, f32
  Buffer before_router;                           // the router's product before DoRA's gains, if there are any

  Routes routes() const { return {experts, weights, order, place, starts}; }
  ExpertRows rows() { return {starts, &host_starts}; }
};

class Experts {
 public:
  Experts(Ops& ops, Arena& arena, std::int64_t hidden, const ExpertsSpec& spec, BaseWeights& base);

  bool trainable() const { return router_.trainable() || !learners().empty(); }
  /// Of all experts: gate and up, then down, where they have one.
  std::vector<Learner*> learners() const;
  LinearGroup& router() { return router_; }
  /// `form`: of the experts' products.
  void add_slots(WeightSlots& slots, ProductForm form);

  /// Fills `saved` from h [T, D]: routes, and gate and up of the chosen experts' rows. `keep`: the backward pass comes.
  void begin(const Batch& batch, const Tensor& h, ExpertsSaved& saved, bool keep, Placement place);
  /// out = residual (or nothing) + the experts' weighted sum, from what begin() left. `keep`: the backward pass comes.
  void finish(const Tensor& residual, ExpertsSaved& saved, bool keep, const Tensor& out);
  /// dh += the gradient of h, where `into_h`; adapters' gradients are added up. Uses up saved.gate_up.
  void backward(const Batch& batch, const Tensor& h, const Tensor& dout, ExpertsSaved& saved, bool into_h, const Tensor& dh);

 private:
  /// One product of every expert, with the pair that all of them share, if there is one.
  struct Product {
    std::int64_t in = 0, out = 0, experts = 0;
    std::vector<LinearSpec> linears;  // of any expert: '*' stands for its number
    BaseProduct* base = nullptr;
    std::unique_ptr<LoraPair> pair;
    std::vector<LoraView> views;
    std::int64_t rank() const { return views.empty() ? 0 : views.front().a.rows; }
    ExpertsWeight weight() const { return {base->weights, experts}; }
  };
  Product make_product(std::vector<LinearSpec> linears, const std::optional<ExpertsSpec::Pair>& pair, bool bias, BaseWeights& base);
  void add_slots(WeightSlots& slots, const Product& product, bool bias, ProductForm form);
  Buffer rank_rows(const char* what, const Product& product, std::int64_t rows);

  Ops& ops_;
  Arena& arena_;
  ExpertsSpec spec_;
  LinearGroup router_;
  Product gate_up_, down_;
  Tensor correction_, router_bias_;       // [1, N] or empty
  Tensor down_bias_;                      // [N, D] or empty
};

}  // namespace pipelora
