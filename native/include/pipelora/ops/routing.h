// How tokens choose experts, and the operations around the experts' products.
//
// Shape suffixes beside tensor.h's: N experts, C experts that a token chooses, P = T C rows, sorted by expert.
#pragma once

#include <cstdint>

#include "pipelora/core/arena.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

enum class Activation : std::uint8_t;

/// What logits become before the best are chosen: shares of all, or a sigmoid each; or the best logits are chosen, and become shares of
/// each other or a sigmoid each.
enum class RouteScore : std::uint8_t { softmax, sigmoid, softmax_of_chosen, sigmoid_of_chosen };
/// Whether weights are sigmoids, each of its own logit alone.
inline bool is_sigmoid(RouteScore score) { return score == RouteScore::sigmoid || score == RouteScore::sigmoid_of_chosen; }
/// What a group of experts is judged by.
enum class GroupScore : std::uint8_t { best, two_best };

struct RouteRule {
  std::int64_t experts = 0;
  std::int64_t chosen = 0;
  RouteScore score = RouteScore::softmax;
  /// Weights are divided by their sum.
  bool normalise = false;
  /// Experts stand in that many groups; the best groups alone are chosen from.
  std::int64_t groups = 1, chosen_groups = 1;
  GroupScore group_score = GroupScore::best;
  float factor = 1;  // on weights
};

/// Most experts, and most that a token chooses (kernels keep them in registers and shared memory).
inline constexpr std::int64_t kMostExperts = 1024;
inline constexpr std::int64_t kMostChosen = 32;

/// Choices of T tokens. Choice c of token t is number t C + c; sorted by expert, equal experts by number.
struct Routes {
  Tensor experts;  // [T, C] i32, the best first; equal scores: the lower expert
  Tensor weights;  // [T, C] f32
  Tensor order;    // [1, P] i32: sorted row p is choice order[p]
  Tensor place;    // [1, P] i32: choice i is sorted row place[i]
  Tensor starts;   // [1, N + 1] i32: rows of expert e are starts[e] … starts[e + 1]
};

/// Writes all of `routes`.
struct Route {
  Tensor logits;      // [T, N] f32
  Tensor bias;        // [1, N] f32 added to logits, or empty
  Tensor correction;  // [1, N] f32 added to scores when the best are chosen, not to weights; or empty
  RouteRule rule;
  Routes routes;
};

/// dlogits from the weights' gradients. Where experts have output biases, weights scale those too.
struct RouteBackward {
  Tensor logits;        // [T, N] f32
  Tensor bias;          // as in Route
  Tensor weight_grads;  // [1, P] f32 by choice
  Tensor dout;          // [T, D] compute, or empty
  Tensor out_bias;      // [N, D] f32, or empty
  RouteRule rule;
  Routes routes;
  Tensor dlogits;  // [T, N] compute
};

/// The gate of an MLP. limit 0: activation(g) u. Else (gpt-oss) g' sigma(alpha g') (u' + 1), g' = min(g, limit), u' = u in ±limit.
struct GateRule {
  Activation activation{};
  bool interleaved = false;  // gate and up are columns 2 f and 2 f + 1, else F of each
  float limit = 0;
  float alpha = 1;
  /// Llama 4: a row's weight stands on what gate and up take: they are made of the row without it, and get it here.
  bool weight_before = false;
};

/// act[p] = weight gate(gate_up[p]), or gate(weight gate_up[p]); the weight is weights[order[p]], weights[p] where order is empty, 1 where
/// weights are.
struct GateForward {
  Tensor gate_up;  // [P, 2 F] compute
  Tensor weights;  // f32, dense
  Tensor order;    // [1, P] i32
  GateRule rule;
  Tensor act;  // [P, F] compute
};

/// In place: gate_up becomes its gradient, dact becomes act again. weight_grads[order[p]] = the gradient of weights[order[p]].
struct GateBackward {
  Tensor gate_up, weights, order;
  GateRule rule;
  Tensor dact;          // [P, F] compute
  Tensor weight_grads;  // as weights; empty without
};

/// out[t] = residual[t] + sum over c of rows[place[t C + c]] (+ weight bias[expert]), c rising. out may be residual.
struct Combine {
  Tensor rows;      // [P, D] compute
  Routes routes;
  Tensor residual;  // [T, D] compute, or empty
  Tensor bias;      // [N, D] f32, or empty
  Tensor out;       // [T, D] compute
};

/// A sink is a score that takes its share of a head's softmax and has no value: what attention without it left is scaled.
struct AttentionSinks {
  Tensor out;    // [T, H E] compute, in place
  Tensor lse;    // [H, T] f32, in place
  Tensor sinks;  // [1, H] f32
  std::int64_t head_dim = 0;
};

}  // namespace pipelora
