// One transformer block: forward, recompute and backward. Families differ only in what the description holds.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/ops/batch.h"
#include "pipelora/model/experts.h"
#include "pipelora/model/kv_cache.h"
#include "pipelora/model/lora.h"
#include "pipelora/model/mixer.h"

namespace pipelora {

/// What a block keeps for its backward pass. Checkpointed: only x and LoRA's inner vectors.
struct BlockSaved {
  Buffer x;        // [T, D] the block's input
  Buffer qkv;      // [T, the mixer's in_cols()]: q, k, v after rotary, or before the heads' norm where there is one
  Buffer expanded; // what latent vectors expand to
  Buffer attn;     // [T, the mixer's out_cols()], before its gate, and room for LoRA's inner vectors where there is none
  Buffer lse;      // [H, T] f32
  Buffer mid;      // [T, D] after attention's residual
  Buffer gate_up;  // [T, 2F]
  Buffer attn_out, mlp_out;  // [T, D] what attention and MLP add before its norm, where it has one
  Buffer inner_qkv, inner_o, inner_gate_up, inner_down, inner_shared_gate;  // [T, sum of R] f32
  Buffer share;  // [T, 1] f32 of the shared expert
  ExpertsSaved experts;
  Buffer inner_q_b, inner_kv_b;
  /// Products before DoRA's gains, where there are any.
  Buffer before_qkv, before_o, before_gate_up, before_down, before_shared_gate, before_q_b, before_kv_b;
};

class Block {
 public:
  Block(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base);

  const BlockSpec& spec() const { return spec_; }
  bool trainable() const;
  std::vector<LinearGroup*> groups();
  /// null: an MLP.
  Experts* experts() { return experts_.get(); }
  /// Weights beside the linears: norms, and what the mixer has.
  const std::vector<WeightPlace>& places() const { return places_; }
  CacheShape cache_shape() const { return mixer_->cache_shape(); }

  /// What a forward pass leaves in `saved` for the backward pass: nothing; x and inner vectors; all, or all of it soon elsewhere.
  enum class Keeps { nothing, inputs, all, all_for_now };
  /// Consumes x. `saved` is needed unless nothing is kept. `cache`: what is remembered of earlier tokens, added to.
  Buffer forward(const Batch& batch, Buffer x, BlockSaved* saved, Keeps keeps, const BlockCache* cache);
  /// Consumes dout and saved. Accumulates LoRA gradients; returns dx, or nothing if not asked for.
  Buffer backward(const Batch& batch, BlockSaved saved, Buffer dout, bool needs_input_grad);

 private:
  /// The forward pass; `again`: from `saved`, all of which it makes again, without an output.
  Buffer run(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, const BlockCache* cache);
  /// The half behind attention where it is a mixture of experts: as run() and backward(), dout becoming the gradient of saved.mid
  /// where `into_input`.
  Buffer run_experts(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, Placement place);
  void experts_backward(const Batch& batch, BlockSaved& saved, const Tensor& dout, bool into_input);
  Buffer normed_mid(const BlockSaved& saved);
  /// The product's columns to where the mixer has them, or back.
  void arrange(const Tensor& product, const Tensor& arranged, bool back);
  /// out = residual + factor * branch, or its norm.
  void add_branch(const Tensor& residual, const Tensor& branch, const Tensor& post, const Tensor& out);
  /// The gradient of a branch from that of its sum; empty: they are the same.
  Buffer branch_grad(const Tensor& dout, const Tensor& branch, const Tensor& post);

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  BlockSpec spec_;
  std::unique_ptr<Mixer> mixer_;
  std::vector<ColumnMove> moves_;
  std::unique_ptr<LinearGroup> qkv_, o_, gate_up_, down_;  // with experts the last two are the shared one's, if there is one
  std::unique_ptr<LinearGroup> shared_gate_;
  std::unique_ptr<Experts> experts_;
  std::int64_t ffn_ = 0;  // of gate and up, each
  std::vector<WeightPlace> places_;  // those below that there are, and the mixer's
  Tensor attn_norm_, mlp_norm_, attn_post_norm_, mlp_post_norm_;
};

}  // namespace pipelora
