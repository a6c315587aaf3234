// The gated delta net's launchers: its convolution and its rule. mixer_calls.h has the formulas, delta_backward.cu those of the backward pass.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pipelora/ops/mixer_calls.h"

namespace pipelora::cuda {

// short_conv.cu
void short_conv_forward(const ShortConv& call, cudaStream_t stream);
/// dx is not dy.
void short_conv_backward(const ShortConvBackward& call, cudaStream_t stream);

/// Most columns of a key or value head. src/plan/engine-limits.ts refuses wider ones before a weight is read.
inline constexpr std::int64_t kMostDeltaDim = 128;
/// Tokens of a chunk of the backward pass, whose first state is kept.
inline constexpr std::int64_t kDeltaChunk = 32;

/// q and k of a call at length 1, and what b and a make: f32, from delta_prepare().
struct DeltaInputs {
  Tensor q, k;      // [T, key_heads * padded key_dim], zeros behind a head's columns; q divided by sqrt(key_dim)
  Tensor lengths;   // [T, 2 key_heads]: what q and k were multiplied by
  Tensor gates;     // [T, 2 value_heads]: beta, g
  std::int64_t key_width = 0;  // padded key_dim
};
/// Columns that delta_prepare() pads a key head to.
std::int64_t delta_key_width(std::int64_t key_dim);
/// States before the chunks of all rows, a row's first chunk left out: before it stands nothing. That of chunk n of a row that begins at token t is
/// number t / kDeltaChunk + n - 1.
inline std::int64_t delta_chunks(std::int64_t tokens) { return tokens / kDeltaChunk; }

// delta_rule.cu
void delta_prepare(const Tensor& qkv, const Tensor& b, const Tensor& a, const Tensor& a_log, const Tensor& dt_bias, const DeltaShape& shape,
                   const DeltaInputs& inputs, cudaStream_t stream);
/// What the recurrence leaves for the backward pass instead of an output; all f32, empty: the output is wanted.
struct DeltaRecord {
  Tensor changes;  // [T, values()]: d = beta (v - Pᵀ k)
  Tensor states;   // [delta_chunks, state()]: S before each chunk but the first
};
void delta_scan(const Tensor& qkv, const DeltaInputs& inputs, const Tensor& out, const Tensor& state, const DeltaRecord& record, const Sequences& sequences,
                const DeltaShape& shape, cudaStream_t stream);

// delta_backward.cu
/// Bytes of shared memory that a block asks for.
std::size_t delta_backward_shared(const DeltaShape& shape);
/// `grads` [T, 2 value_heads key_dim] f32: scratch for gradients of q and k, a value head each.
void delta_backward(const DeltaRuleBackward& call, const DeltaInputs& inputs, const DeltaRecord& record, const Tensor& grads, cudaStream_t stream);

}  // namespace pipelora::cuda
