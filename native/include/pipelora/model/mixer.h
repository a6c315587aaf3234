// What a block has between the product of its normed input and its output projection: attention of one kind or another.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pipelora/ops/batch.h"
#include "pipelora/model/kv_cache.h"
#include "pipelora/model/lora.h"

namespace pipelora {

struct BlockSaved;

/// Columns of a product that stand elsewhere in what a mixer works on.
struct ColumnMove {
  std::int64_t from = 0, to = 0, count = 0;
};

/// A weight beside the linears, f32 [rows, n], which a checkpoint's tensor of `shape` fills; `offset` is added to its values.
struct WeightPlace {
  std::string name;
  std::vector<std::int64_t> shape;
  float offset = 0;
  Tensor weight;
};

class Mixer {
 public:
  struct Call {
    const Batch& batch;
    BlockSaved& saved;
    bool keep;   // for a backward pass
    bool again;  // in a backward pass: LoRA's inner vectors are known
    Placement place;
    const BlockCache* cache;  // or null
    std::int64_t room;        // columns behind those of the output projection's input
  };

  virtual ~Mixer() = default;

  /// The linears that share the block's input, in the order of their columns; their columns in all; and of the output projection's input.
  virtual std::vector<LinearSpec> inputs() const = 0;
  virtual std::int64_t in_cols() const = 0;
  virtual std::int64_t out_cols() const = 0;
  virtual const char* input_name() const = 0;
  /// Columns of the product that must move before they are used; empty: none.
  virtual std::vector<ColumnMove> moves() const { return {}; }
  /// Products of its own, behind the block's.
  virtual std::vector<LinearGroup*> groups() { return {}; }
  virtual std::vector<WeightPlace> weights() { return {}; }
  virtual CacheShape cache_shape() const = 0;
  /// Rows for what groups() leave for the backward pass.
  virtual void make_inner(BlockSaved& saved, std::int64_t tokens) { static_cast<void>(saved), static_cast<void>(tokens); }

  /// From saved.qkv, the product, to saved.attn. What saved.qkv holds may change; what backward() needs is left in `saved`.
  virtual void forward(const Call& call) = 0;
  /// What the output projection takes: saved.attn itself, or made from it in `storage`.
  virtual Tensor output(const BlockSaved& saved, std::int64_t room, Buffer& storage) = 0;
  /// The product's gradient, from that of output(). `input_wanted`: whether it is needed; if not, only the mixer's own LoRA pairs get gradients, and the
  /// result may be empty.
  virtual Buffer backward(const Batch& batch, BlockSaved& saved, Buffer dout, bool input_wanted) = 0;

  bool trainable() {
    for (const LinearGroup* group : groups())
      if (group->trainable()) return true;
    return false;
  }
};

/// Throws PL_TENSOR_MISMATCH where the block's description contradicts itself.
std::unique_ptr<Mixer> make_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base);

std::unique_ptr<Mixer> make_softmax_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base);
std::unique_ptr<Mixer> make_delta_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base);
std::unique_ptr<Mixer> make_latent_mixer(Ops& ops, Arena& arena, const Arch& arch, const BlockSpec& spec, BaseWeights& base);

/// The block's linears of these roles, in this order.
std::vector<LinearSpec> pick_linears(const BlockSpec& spec, std::initializer_list<Role> roles);
/// One product; throws PL_TENSOR_MISMATCH unless they add up to [out, in].
std::unique_ptr<LinearGroup> make_group(Ops& ops, Arena& arena, const BlockSpec& spec, const char* what, const std::vector<LinearSpec>& linears,
                                        std::int64_t in, std::int64_t out, BaseWeights& base);

}  // namespace pipelora
