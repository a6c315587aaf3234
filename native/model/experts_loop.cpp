// A mixture's products where a device has none of all experts together: one expert after the other.
#include "pipelora/ops/ops.h"

namespace pipelora {

namespace {

Tensor rows_of(const Tensor& t, std::int64_t first, std::int64_t count) { return t ? t.row_range(first, count) : t; }

/// body(expert, first row, rows) of each expert that has any.
template <class Body>
void each(const std::vector<std::int32_t>& starts, Body&& body) {
  for (std::size_t e = 0; e + 1 < starts.size(); ++e) {
    const std::int64_t first = starts[e], count = starts[e + 1] - first;
    if (count > 0) body(e, first, count);
  }
}

LoraSet lora_of(std::span<const LoraView> lora, std::size_t expert) {
  return lora.empty() ? LoraSet() : LoraSet{lora.subspan(expert, 1), lora[expert].a.rows, nullptr};
}

struct OneExpert {
  const LinearWeight* weight;
  WeightParts parts;
};
OneExpert one(const ExpertsWeight& all, std::size_t expert) {
  const auto together = static_cast<std::size_t>(all.together());
  const LinearWeight* weight = all.weights[expert / together].get();
  if (together == 1) return {weight, {}};
  const std::size_t parts = weight->part_rows.size() / together;
  return {weight, {expert % together * parts, parts}};
}

}  // namespace

const std::vector<std::int32_t>& Ops::starts_of(const ExpertRows& rows) {
  if (rows.host->empty()) {
    rows.host->resize(static_cast<std::size_t>(rows.starts.cols));
    download(rows.starts, rows.host->data());
  }
  return *rows.host;
}

void Ops::experts_forward(const ExpertsForward& call) {
  each(starts_of(call.rows), [&](std::size_t e, std::int64_t first, std::int64_t count) {
    const auto [weight, parts] = one(call.weight, e);
    LinearForward own{call.x.row_range(first, count), weight, lora_of(call.lora, e), rows_of(call.inner, first, count), Tensor(), rows_of(call.y, first, count)};
    own.parts = parts;
    linear_forward(own);
  });
}

void Ops::experts_input_grad(const ExpertsInputGrad& call) {
  each(starts_of(call.rows), [&](std::size_t e, std::int64_t first, std::int64_t count) {
    const auto [weight, parts] = one(call.weight, e);
    LinearInputGrad own{call.dy.row_range(first, count),        weight, lora_of(call.lora, e), rows_of(call.inner, first, count),
                        rows_of(call.inner_grad, first, count), rows_of(call.dx, first, count)};
    own.parts = parts;
    linear_input_grad(own);
  });
}

void Ops::gathered_experts_forward(const Tensor& from, const Routes& routes, const ExpertsForward& call) {
  gather_choices(from, routes, call.x);
  experts_forward(call);
}

void Ops::gathered_experts_input_grad(const Tensor& from, const Routes& routes, const ExpertsInputGrad& call) {
  gather_choices(from, routes, call.dy);
  experts_input_grad(call);
}

void Ops::experts_a_grad(const ExpertsAGrad& call) {
  each(starts_of(call.rows), [&](std::size_t e, std::int64_t first, std::int64_t count) {
    lora_a_grad({call.x.row_range(first, count), call.inner_grad.row_range(first, count), lora_of(call.lora, e)});
  });
}

}  // namespace pipelora
