// A run of consecutive layers on one device: weights, and the passes over them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pipelora/ops/batch.h"
#include "pipelora/model/block.h"
#include "pipelora/model/embedding.h"
#include "pipelora/model/frozen_layers.h"
#include "pipelora/model/head.h"
#include "pipelora/model/kv_cache.h"
#include "pipelora/model/lora.h"
#include "pipelora/model/spec.h"
#include "pipelora/model/weight_slots.h"

namespace pipelora {

struct ForwardResult {
  Buffer output;  // empty after a head
  double loss_sum = 0;
  std::int64_t label_tokens = 0;
  std::int64_t correct_tokens = 0;
  /// Of a loss that is NaN or infinite: which of the two, and where it is first; empty: it is finite.
  std::string not_finite;
};

class Segment {
 public:
  /// With the first adapter's layers. Layers that are in `held` (null: none) are taken out of it, and lack no weight.
  Segment(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, SegmentSpec spec, HeldLayers* held = nullptr);
  ~Segment();

  /// Another adapter of the same base: the same layers, but for what they learn. Before weights are loaded. Returns its number: 1, 2, …
  std::size_t add_adapter(const std::vector<LayerSpec>& layers);
  std::size_t adapters() const;

  bool starts_with_embedding() const;
  bool ends_with_head() const;
  bool needs_input_grad() const { return spec_.needs_input_grad; }
  std::size_t block_count() const;
  /// Of its blocks, in order.
  std::vector<CacheShape> cache_shapes() const;

  /// Gives the frozen weights of those layers to `held` that have them all. The segment is of no more use.
  void release(HeldLayers& held);

  /// What the passes need to be filled first.
  WeightSlots& slots() { return slots_; }
  const WeightSlots& slots() const { return slots_; }
  /// On the device, and in the host's memory beside it (the embedding of a device that has its own).
  std::size_t weight_bytes() const;
  std::size_t host_bytes() const;
  /// What its modules learn for an adapter, layer by layer.
  std::vector<NamedMatrix*> matrices(std::size_t adapter = 0);

  /// The product that the first adapter's module of this name is a part of; null: no block has it.
  LinearGroup* group_of(const std::string& module);

  ForwardResult forward(const MicroBatch& micro, Buffer input);
  /// See face.ts. `dout` is empty for a segment that ends with the head.
  Buffer backward(std::int64_t batch_index, Buffer dout);
  /// What follows from loaded weights: magnitudes, biases, rows of tokens. After weights and first A and B.
  void first_values(std::size_t adapter = 0);
  void discard();

  /// `first_block`: index of this segment's first block among the cache's. After a failure the sequences must begin anew: their states may be
  /// those of no token.
  Buffer infer(KvCache& cache, std::size_t first_block, const CachedSequences& of, const std::vector<std::int32_t>& tokens, Buffer input,
               std::size_t adapter = 0);

 private:
  struct Adapted;
  struct Layer;
  struct Saved;
  void adapt(Layer& layer, const LayerSpec& spec);
  void add_block_slots(Block& block, bool cached);
  void check_input(const Buffer& input, std::int64_t tokens) const;
  Buffer lowest(Buffer x);
  void check_tokens(const std::vector<std::int32_t>& tokens, std::int64_t expected) const;
  void follow(std::size_t adapter);
  void require_adapter(std::size_t adapter, const char* what) const;

  Ops& ops_;
  Arena& arena_;
  RopeTables& rope_;
  const Arch& arch_;
  SegmentSpec spec_;
  std::vector<std::unique_ptr<Layer>> layers_;
  WeightSlots slots_;
  std::map<std::int64_t, std::unique_ptr<Saved>> saved_;
};

}  // namespace pipelora
