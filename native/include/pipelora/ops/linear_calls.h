// Frozen weights, the products with them, and LoRA beside those, as operations see them. Shapes and dtypes as in ops.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pipelora/core/rng.h"
#include "pipelora/ops/sequences.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

namespace quant {
struct State4;
struct State8;
}  // namespace quant

/// mxfp4: blocks of 32 values with a power of two each, as a checkpoint holds them; held with scales in f32.
enum class Quantisation : std::uint8_t { none, nf4, fp4, int8, mxfp4 };

/// What a weight is held as.
struct HoldSpec {
  /// Of the values held; for quantised forms the dtype that values are rounded to before they are quantised.
  DType dtype = DType::f32;
  Quantisation quantisation = Quantisation::none;
  std::int64_t block_size = 64;  // nf4, fp4
  bool double_quant = false;     // nf4, fp4
  float threshold = 6.0f;        // int8: columns of the input with a magnitude of at least this stay in 16 bit; 0: none
  /// What products read is kept beside the weight (same results, more memory): quantised forms in the compute dtype, fp8 in e4m3.
  bool keep_expanded = false;
  /// GPUs: the weight's products, forward and back, multiply e4m3 numbers (docs/decisions/compute/fp8.md). Where its shape does not suit, as without.
  bool fp8 = false;

  bool operator==(const HoldSpec&) const = default;
};

/// The frozen weight of one product, opaque: held, converted, packed or quantised as the device likes.
/// One weight may be made of several checkpoint tensors that share their input (q, k, v or gate, up), one below the other.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  /// Columns of the LoRA inner vectors that will come with its products (0: none); before load, by each adapter.
  virtual void expect_lora(std::int64_t inner_cols) { static_cast<void>(inner_cols); }
  /// The weight is so many matrices one below the other, of as many parts and rows each, and a product takes one of them; before load.
  virtual void expect_matrices(std::int64_t count) { static_cast<void>(count); }
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::vector<std::int64_t> part_rows;  // sums to out

  /// [part_rows[part], in]; called once a part.
  virtual void load(std::size_t part, const HostTensor& rows, const HoldSpec& hold) = 0;
  /// Instead of load(): rows that are quantised already, as `hold` says and checked against it (packed.h).
  virtual void load(std::size_t part, quant::State4&& rows, const HoldSpec& hold);
  virtual void load(std::size_t part, quant::State8&& rows, const HoldSpec& hold);
  /// [part_rows[part]]
  virtual void load_bias(std::size_t part, const HostTensor& values) = 0;
  /// Rows [first, first + values.rows) of an unquantised weight again, from f32 values of this device; of the bias, from [1, n].
  virtual void refresh(std::int64_t first, const Tensor& values) = 0;
  virtual void refresh_bias(std::int64_t first, const Tensor& values) = 0;
  /// HoldSpec::keep_expanded of a loaded weight, from now on: the same results with more memory, or less. Of an unquantised one it changes nothing.
  virtual void keep_expanded(bool keep) { static_cast<void>(keep); }
  /// [1, out] as held on the device, or empty.
  virtual Tensor bias_values() const = 0;
  /// Device bytes held.
  virtual std::size_t bytes() const = 0;
};

/// Consecutive parts of a weight, such as one expert's, for a product that uses no others. count 0: all parts.
struct WeightParts {
  std::size_t first = 0, count = 0;
};

/// One LoRA pair as an operation sees it. B is kept transposed: every skinny product then runs along contiguous rows.
struct LoraView {
  Tensor a;       // [R, in]
  Tensor bt;      // [R, out of its own linear]
  Tensor grad_a;  // [R, in], accumulated into
  Tensor grad_bt;
  float scale = 0;
  float dropout = 0;
  std::uint32_t module_id = 0;
  std::int64_t first_column = 0;  // of its linear in the product's output
  std::int64_t first_inner = 0;   // of its R columns in the inner vectors
};

/// Of the pairs that share one product.
struct LoraSet {
  std::span<const LoraView> pairs;
  std::int64_t inner_cols = 0;  // sum of R
  /// null outside training: no dropout.
  const DropoutKey* dropout = nullptr;
};

/// y = x Wᵀ + bias + residual + scale * inner Bᵀ, with inner = drop(x) Aᵀ written for the backward pass.
struct LinearForward {
  Tensor x;  // [T, in] compute
  const LinearWeight* weight = nullptr;
  LoraSet lora;
  Tensor inner;     // [T, inner_cols] f32, written (read, if inner_known); empty without LoRA
  Tensor residual;  // [T, out] compute, or empty
  Tensor y;         // [T, out] compute or f32; empty: only `inner` is made
  const Sequences* sequences = nullptr;
  /// room_for_lora() columns behind x's in the same rows may be written.
  bool x_has_room = false;
  /// `inner` holds what an earlier call with the same x and dropout wrote.
  bool inner_known = false;
  WeightParts parts = {};
  /// Nobody reads x after the call: one that makes x (norm_linear_forward) need not write it.
  bool x_unread = false;
  /// x times the values that the weight stands for: x is not rounded to 8 bits (int8, e4m3), and no bias is added. Without LoRA and residual.
  bool bare = false;
};

/// dx = dy W + drop'(inner_grad A); inner_grad = scale * dy B is written for lora_a_grad; grad_bt += scale * innerᵀ dy.
struct LinearInputGrad {
  Tensor dy;  // [T, out] compute
  const LinearWeight* weight = nullptr;
  LoraSet lora;
  Tensor inner;       // [T, inner_cols] f32, of the forward pass; empty without LoRA
  Tensor inner_grad;  // the same shape, written
  Tensor dx;          // [T, in] compute; empty: not made
  const Sequences* sequences = nullptr;
  WeightParts parts = {};
};

/// grad_a += inner_gradᵀ drop(x).
struct LoraAGrad {
  Tensor x;  // [T, in] compute
  Tensor inner_grad;
  LoraSet lora;
  const Sequences* sequences = nullptr;
};

/// to = drop(x), as the products of a set's one pair take it in training. Back: to += drop'(x), of the same elements.
struct LoraDrop {
  Tensor x;  // [T, in] compute
  LoraSet lora;
  const Sequences* sequences = nullptr;
  Tensor to;  // [T, in] compute
};

/// The same product of every expert of a mixture: expert e's weight is its parts in weights[e / together], as many as each of the others'.
struct ExpertsWeight {
  std::span<const std::unique_ptr<LinearWeight>> weights;
  std::int64_t experts = 0;

  std::int64_t together() const { return experts / static_cast<std::int64_t>(weights.size()); }
};

/// Rows sorted by expert: those of expert e are starts[e] … starts[e + 1].
struct ExpertRows {
  Tensor starts;                             // [1, N + 1] i32, on the device
  std::vector<std::int32_t>* host = nullptr;  // a copy for the caller to keep, made where it is first needed: empty until then
};

// As linear_forward, linear_input_grad and lora_a_grad of every expert with its own rows. `lora`: a pair of each expert, all of one rank
// and below each other in memory; or empty.
struct ExpertsForward {
  Tensor x;  // [P, in] compute
  ExpertsWeight weight;
  std::span<const LoraView> lora;
  Tensor inner;  // [P, R] f32, written
  Tensor y;      // [P, out] compute; empty: only `inner` is made
  ExpertRows rows;
};
struct ExpertsInputGrad {
  Tensor dy;  // [P, out] compute
  ExpertsWeight weight;
  std::span<const LoraView> lora;
  Tensor inner, inner_grad;  // [P, R] f32
  Tensor dx;                 // [P, in] compute; empty: not made
  ExpertRows rows;
};
struct ExpertsAGrad {
  Tensor x;           // [P, in] compute
  Tensor inner_grad;  // [P, R] f32
  std::span<const LoraView> lora;
  ExpertRows rows;
};

}  // namespace pipelora
