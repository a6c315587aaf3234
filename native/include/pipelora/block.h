// One transformer block: forward, recompute and backward. Families differ only in what the description holds.
#pragma once

#include <memory>
#include <vector>

#include "pipelora/batch.h"
#include "pipelora/experts.h"
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
  Buffer attn_out, mlp_out;  // [T, D] what attention and MLP add before its norm, where it has one
  Buffer inner_qkv, inner_o, inner_gate_up, inner_down, inner_shared_gate;  // [T, sum of R] f32
  Buffer share;  // [T, 1] f32 of the shared expert
  ExpertsSaved experts;
};

class Block {
 public:
  Block(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec);

  const BlockSpec& spec() const { return spec_; }
  bool trainable() const;
  std::vector<LinearGroup*> groups();
  /// null: an MLP.
  Experts* experts() { return experts_.get(); }
  /// Norm weights and sinks, f32 [1, n], by tensor name.
  struct NormSlot {
    std::string name;
    Tensor weight;
    bool sinks = false;
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
  /// The half behind attention where it is a mixture of experts: as run() and backward(), dout becoming the gradient of saved.mid
  /// where `into_input`.
  Buffer run_experts(const Batch& batch, BlockSaved& saved, Keeps keeps, bool again, Placement place);
  void experts_backward(const Batch& batch, BlockSaved& saved, const Tensor& dout, bool into_input);
  Buffer normed_mid(const BlockSaved& saved);
  /// q and k [T, heads E], side by side in one tensor.
  struct Heads {
    Tensor q, k;
  };
  Heads heads(const Tensor& qkv) const;
  float score_scale() const;
  Tensor table(const Batch& batch) const { return batch.rope[static_cast<std::size_t>(spec_.rotary)].values; }
  /// Norms of heads (where weights are given), then this block's rotary and the queries' factors (where asked for); and back.
  void turn(const Batch& batch, const Heads& in, const Heads& out, const Tensor& q_norm, const Tensor& k_norm, bool rotary);
  void turn_back(const Batch& batch, const Heads& grads, const Heads& before, const Tensor& q_norm, const Tensor& k_norm, bool rotary);
  /// What products left in `in` to what attention takes, in `out` where there are norms, else in place.
  void heads_forward(const Batch& batch, const Heads& in, const Heads& out);
  /// `out` again from what heads_forward() left in `in`, where there are norms.
  void heads_again(const Batch& batch, const Heads& in, const Heads& out);
  void heads_backward(const Batch& batch, const Heads& grads, const Heads& in);
  /// Columns by kv head to q, k and v apart, or back.
  void regroup(const Tensor& by_kv_head, const Tensor& apart, bool back);
  /// out = residual + factor * branch, or its norm.
  void add_branch(const Tensor& residual, const Tensor& branch, const Tensor& post, const Tensor& out);
  /// The gradient of a branch from that of its sum; empty: they are the same.
  Buffer branch_grad(const Tensor& dout, const Tensor& branch, const Tensor& post);

  Ops& ops_;
  Arena& arena_;
  const Arch& arch_;
  BlockSpec spec_;
  std::unique_ptr<LinearGroup> qkv_, o_, gate_up_, down_;  // with experts the last two are the shared one's, if there is one
  std::unique_ptr<LinearGroup> shared_gate_;
  std::unique_ptr<Experts> experts_;
  std::int64_t ffn_ = 0;  // of gate and up, each
  std::unique_ptr<DeviceMemory> norm_memory_;
  std::vector<NormSlot> norms_;  // those below that there are
  Tensor attn_norm_, mlp_norm_, attn_post_norm_, mlp_post_norm_, q_norm_, k_norm_;
  Tensor sinks_;  // [1, H] or empty
};

}  // namespace pipelora
