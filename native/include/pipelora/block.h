// One transformer block: forward, recompute and backward. Families differ only in what the description holds.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/batch.h"
#include "pipelora/kv_cache.h"
#include "pipelora/lora.h"

namespace pipelora {

/// What a block keeps for its backward pass. Checkpointed: only x and LoRA's inner vectors.
struct BlockSaved {
  Buffer x;        // [T, D] the block's input
  Buffer qkv;      // [T, (H + 2K) E] after rotary, or before the heads' norm where there is one
  Buffer attn;     // [T, H E] and room for LoRA's inner vectors
  Buffer lse;      // [H, T] f32
  Buffer mid;      // [T, D] after attention's residual
  Buffer gate_up;  // [T, 2F]
  Buffer inner_qkv, inner_o, inner_gate_up, inner_down;  // [T, sum of R] f32
};

class Block {
 public:
  Block(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec);

  const BlockSpec& spec() const { return spec_; }
  bool trainable() const;
  std::vector<LinearGroup*> groups();
  /// Norm weights, f32 [1, n], by tensor name.
  struct NormSlot {
    std::string name;
    Tensor weight;
  };
  const std::vector<NormSlot>& norms() const { return norms_; }
  std::size_t norm_bytes() const { return norm_memory_->bytes(); }

  /// What a forward pass leaves in `saved` for the backward pass: nothing; x and inner vectors; all, or all of it soon elsewhere.
  enum class Keeps { nothing, inputs, all, all_for_now };
  /// Consumes x. `saved` is needed unless nothing is kept. `cache`: keys and values of earlier tokens, appended to.
  Buffer forward(const Batch& batch, Buffer x, BlockSaved* saved, Keeps keeps, const Tensor* cache);
  /// Consumes dout and saved. Accumulates LoRA gradients; returns dx, or nothing if not asked for.
  Buffer backward(const Batch& batch, BlockSaved saved, Buffer dout, bool needs_input_grad);

 private:
  /// The forward pass; `again`: from `saved`, all of which it makes again, without an output.
  Buffer run(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, const Tensor* cache);
  Tensor q_norm() const;
  Tensor k_norm() const;

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  BlockSpec spec_;
  std::unique_ptr<LinearGroup> qkv_, o_, gate_up_, down_;
  std::unique_ptr<DeviceMemory> norm_memory_;
  std::vector<NormSlot> norms_;  // attention, mlp, then q and k where there are
};

}  // namespace pipelora
