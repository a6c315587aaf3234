// A micro-batch (or one call of inference) made ready for the layers: index arrays and rotary tables on the device.
#pragma once

#include <memory>

#include "pipelora/ops/ops.h"
#include "pipelora/model/spec.h"

namespace pipelora {

/// What a sequence's positions differ in from the tables: fixed when the sequence starts.
struct RowRotary {
  double ntk_alpha = 1;   // dynamic NTK: the base's factor
  bool extended = false;  // longrope: the long frequencies
  bool plain() const { return ntk_alpha == 1.0 && !extended; }
};

/// Rotary tables of an engine, one a rule of Arch::rotary: rows are positions, cos then sin. Grown on demand and shared by all batches.
class RopeTables {
 public:
  RopeTables(Ops& ops, const Arch& arch) : ops_(ops), arch_(arch) {}
  struct Table {
    Tensor values;  // [P, R] f32
    std::shared_ptr<DeviceMemory> memory;
  };
  /// At least `positions` rows of every table.
  const std::vector<Table>& at_least(std::int64_t positions);
  /// One row: cos and sin of every frequency at `position`. The angle is made in float32 as the reference implementations do.
  static void fill_row(const RotarySpec& rotary, std::int64_t position, const RowRotary& own, float* row);

 private:
  Ops& ops_;
  const Arch& arch_;
  std::vector<Table> tables_;
};

/// New tokens of sequences whose earlier ones a cache holds. All but cu_seqlens [S].
struct CachedSequences {
  std::vector<std::int32_t> cu_seqlens;  // [S + 1] over the new tokens
  std::vector<std::int32_t> slots;       // whose state is the sequence's
  std::vector<std::int32_t> starts;      // the row of the cache that its first token stands in
  std::vector<std::int32_t> past;        // tokens before the new ones; 0: it begins, whatever rows and state held
  std::vector<std::int32_t> lengths;     // tokens that it was begun with, in one call or several: its frequencies hang on them

  std::size_t count() const { return slots.size(); }
};

struct Batch {
  std::int64_t index = 0;
  bool training = false;
  double loss_scale = 1;  // of gradients
  DropoutKey key;
  Sequences sequences;
  Sequences chunks;  // the same tokens cut at chunks' ends, for blocks that attend within theirs; without sequences: no row reaches a second one
  Indices rope_row;
  std::vector<RopeTables::Table> rope;  // as Arch::rotary
  std::vector<Buffer> rope_storage;     // tables of this batch alone, where a sequence has its own frequencies
  Buffer q_scale;       // [1, T] or empty
  Indices cache_row;    // [T], where a cache takes each token's key and value; empty without a cache

  /// What attention goes by: its rows, or their chunks.
  const Sequences& attended(bool chunked) const { return chunked && chunks.count() > 0 ? chunks : sequences; }
  const DropoutKey* dropout() const { return training ? &key : nullptr; }
};

/// Uploads indices, to what `room(count)` gives on a device that needs them there.
template <class Room>
void upload_indices(Ops& ops, Indices& indices, Room&& room) {
  if (ops.needs_device_indices() && indices.size() > 0) indices.storage = room(indices.size());
  ops.upload(indices);
}

/// Rows that stand for themselves (no cache). Checks cu_seqlens and row_ids: PL_TENSOR_MISMATCH.
std::unique_ptr<Batch> make_batch(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const MicroBatch& micro);
/// New tokens behind earlier ones in a cache of so many rows. Checks all that is said of the sequences but `slots`: PL_TENSOR_MISMATCH.
std::unique_ptr<Batch> make_cached_batch(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, const CachedSequences& of, std::int64_t rows);

/// Qwen (v1): the NTK factor of a sequence of `length` tokens in evaluation.
double qwen_ntk_alpha(std::int64_t length, std::int64_t seq_length);

}  // namespace pipelora
