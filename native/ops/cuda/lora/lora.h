// LoRA's skinny products around a base product; which run when: kernel_choice.h. How each works: inner.cu, few.cu, norm.cu, append.cu,
// a_grad.cu, b_grad.cu, outer_plain.cu, input_grad.cu, swiglu_grad.cu, dropped.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "ops/cuda/pointwise/pointwise.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

/// Columns that LoRA adds to a product's inner dimension: the inner vectors, padded to what products take at a time.
inline constexpr std::int64_t kTailAlign = 64;
constexpr std::int64_t tail_columns(std::int64_t inner_cols) {
  return (inner_cols + kTailAlign - 1) / kTailAlign * kTailAlign;
}

/// Up to eight rows of one pair's A (forward) or Bᵀ (backward) against the columns of x they apply to.
struct LoraTile {
  const float* rows = nullptr;  // [rank, columns]
  std::int64_t stride = 0;
  std::int64_t first_column = 0, columns = 0;
  int rank = 0;
  int inner_column = 0;
  float factor = 1;       // of the inner vector
  float tail_factor = 1;  // of the inner vector's copy behind x
  std::uint32_t module = 0, threshold = 0;
  bool masked = false;
  bool same_mask = false;  // as the tile before
  bool rounded = false;    // on tensor cores: to 16 bits, where eight ranks alone are split into two such numbers
};

// Dropout apart from products, for LoRA that runs through cuBLASLt.

/// Whether what dropout leaves is multiplied by 1 / (1 - p).
enum class Kept { as_it_is, scaled };

/// to = what each pair's dropout leaves of x [T, in], pair after pair: to [T, pairs * width], width >= in.
void lora_drop(const Tensor& x, const LoraSet& lora, const Sequences& sequences, const Tensor& to, cudaStream_t stream, Kept kept = Kept::as_it_is);
/// to [T, in] += what each pair's dropout leaves of its term, which lie as lora_drop writes.
void lora_add_kept(const Tensor& terms, const LoraSet& lora, const Sequences& sequences, const Tensor& to, cudaStream_t stream, Kept kept = Kept::as_it_is);
/// act = activation(gate) * up, and what the one pair's dropout leaves of it.
void swiglu_dropped(const Tensor& gate, const Tensor& up, const LoraSet& lora, const Sequences& sequences, const Tensor& act, const Tensor& dropped,
                    Activation activation, cudaStream_t stream);
/// The backward pass: dact becomes what the one pair's dropout leaves of act; dgate and dup (may be gate and up) are the gradients for
/// dact + what dropout leaves of term.
struct SwiGluDroppedGrad {
  Tensor gate, up, dact, term, dgate, dup;
};
void swiglu_dropped_grad(const SwiGluDroppedGrad& call, const LoraSet& lora, const Sequences& sequences, Activation activation, cudaStream_t stream);

/// Where partial sums wait for each other: `partial` has the bytes that the operation asks for, `counters` kLoraCounters
/// entries, zero before the first call and again after each.
struct LoraScratch {
  void* partial = nullptr;
  std::uint32_t* counters = nullptr;
};
inline constexpr std::size_t kLoraCounters = 65536;

std::size_t lora_inner_bytes(const Tensor& x, std::size_t tiles);
/// inner = factor * drop(x) rowsᵀ (f32), and, with a copy: copy[:, :cols] = x, copy[:, cols + j] = tail_factor * inner[:, j].
/// The copy may be x itself where `tail` columns of room stand behind it. `tensor_cores`: as chosen.
void lora_inner(const Tensor& x, const std::vector<LoraTile>& tiles, const DropoutKey* dropout, const Sequences* sequences, const Tensor& inner,
                const Tensor& copy, std::int64_t tail, bool tensor_cores, const LoraScratch& scratch, cudaStream_t stream);
/// The same of act = activation(gate) * up, which is written to `act` with the tail behind it (tail 0: without).
void swiglu_lora_inner(const Tensor& gate, const Tensor& up, Activation activation, const std::vector<LoraTile>& tiles, const DropoutKey* dropout,
                       const Sequences* sequences, const Tensor& inner, const Tensor& act, std::int64_t tail, const LoraScratch& scratch,
                       cudaStream_t stream);

/// y = rmsnorm(x) with lora_inner of it (known: `inner` is read, not written), the tail behind y's columns (tail 0: without). With codes y may be
/// empty: it is not written in 16 bits then.
void rmsnorm_lora_inner(const Tensor& x, const Tensor& weight, float eps, const LoraSet& lora, bool known, const Sequences* sequences,
                        const Tensor& inner, const Tensor& y, std::int64_t tail, const RowCodes& to, cudaStream_t stream);

/// A few tokens' input of a linear: x itself, or made: rmsnorm(before_norm), or activation(gate) * up.
struct FewInput {
  Tensor x{};
  Tensor before_norm{}, norm{};
  float eps = 0;
  Tensor gate{}, up{};
  Activation activation = Activation::silu;
};
/// Makes x, and inner = factor * x rowsᵀ (f32); tiles of a given x may apply to a part of its columns.
void lora_inner_few(const FewInput& input, const std::vector<LoraTile>& tiles, const Tensor& inner, cudaStream_t stream);

std::vector<LoraTile> forward_tiles(const LoraSet& lora, std::int64_t in);
std::vector<LoraTile> backward_tiles(const LoraSet& lora);

/// The tail behind x's columns from inner vectors that are known.
void append_inner(const LoraSet& lora, const Tensor& inner, const Tensor& x, std::int64_t tail, cudaStream_t stream);
/// The gradient of the inner vectors behind dy's columns.
void append_inner_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dy, std::int64_t tail, cudaStream_t stream);
/// Writes B behind the rows of an expanded weight [out, in]: weight[o, in + j] for the inner columns j, zero where a pair does
/// not apply to a row. The rest of the tail is zero from the start.
void append_columns(const Tensor& weight, const LoraSet& lora, cudaStream_t stream);
/// Writes A below it: weight[out + j, c].
void append_rows(const Tensor& weight, const LoraSet& lora, std::int64_t tail, cudaStream_t stream);

/// dx += sum over pairs of keep * (inner_grad A) / (1 - p). `tensor_cores`: as chosen.
void lora_add_input_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dx, const Sequences* sequences, bool tensor_cores,
                         cudaStream_t stream);

/// The same before rmsnorm_backward, whose dy is dx.
void lora_add_input_grad_norm(const LoraSet& lora, const Tensor& inner_grad, const Sequences* sequences, const RmsNormBackward& norm,
                              cudaStream_t stream);

/// grad_bt += scale * innerᵀ dy, and inner_grad = scale * dy B.
struct LoraBGrad {
  Tensor dy, inner, inner_grad;
  LoraSet lora;
};
/// Both gradients in one reading of dy.
std::size_t lora_b_grad_bytes(const LoraBGrad& call);
void lora_b_grad(const LoraBGrad& call, void* scratch, cudaStream_t stream);
/// Everywhere; the gradient of B alone.
std::size_t lora_b_grad_plain_bytes(const LoraBGrad& call);
void lora_b_grad_plain(const LoraBGrad& call, const LoraScratch& scratch, cudaStream_t stream);

std::size_t lora_a_grad_bytes(const LoraAGrad& call);
void lora_a_grad(const LoraAGrad& call, void* scratch, cudaStream_t stream);
std::size_t lora_a_grad_plain_bytes(const LoraAGrad& call);
void lora_a_grad_plain(const LoraAGrad& call, const LoraScratch& scratch, cudaStream_t stream);

/// call.x is the gradient of act = activation(gate) * up, without LoRA's term if `adds_term`. Adds the term, then swiglu_backward: dgate
/// and dup (may be gate and up), and lora_a_grad of act; call.x is only read. Scratch as lora_a_grad's.
void lora_swiglu_grad(const LoraAGrad& call, bool adds_term, const Tensor& gate, const Tensor& up, const Tensor& dgate, const Tensor& dup,
                      Activation activation, void* scratch, cudaStream_t stream);

}  // namespace pipelora::cuda
