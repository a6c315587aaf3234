// One device's share of a model: segments, what they learn, caches, the arena. Synchronous and for one thread; the addon queues.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pipelora/model/optimizer.h"
#include "pipelora/model/segment.h"

namespace pipelora {

struct EngineMemory {
  std::size_t weight_bytes = 0, lora_bytes = 0, cache_bytes = 0, arena_bytes = 0, arena_peak_bytes = 0;
  /// In the host's memory, of a device that has its own: the embedding, and room for offloaded activations.
  std::size_t host_bytes = 0;
};

class Engine {
 public:
  /// `host_bytes`: room in the host's memory for activations of offloaded blocks (SegmentSpec).
  Engine(std::unique_ptr<Ops> ops, Arch arch, std::size_t arena_bytes, std::size_t host_bytes = 0);
  /// Segments find the layers that `held` has, of the same model and held as they ask for it.
  Engine(FrozenLayers held, Arch arch, std::size_t arena_bytes, std::size_t host_bytes = 0);
  ~Engine();
  /// Frees all but the frozen weights of layers that have them all. The engine is of no more use.
  FrozenLayers release();

  /// With the first adapter.
  std::size_t add_segment(SegmentSpec spec);
  /// Another adapter over a segment's base, see Segment; each of an engine's adapters is added to all of its segments. Returns its number.
  std::size_t add_adapter(std::size_t segment, const std::vector<LayerSpec>& layers);
  void load_weight(std::size_t segment, const std::string& name, const TensorSource& source, const HoldSpec& hold);
  /// The same of values at hand.
  void load_values(std::size_t segment, const std::string& name, const std::vector<std::int64_t>& shape, const float* values, const HoldSpec& hold);
  void load_packed(std::size_t segment, const std::string& name, const PackedArrays<TensorSource>& source);
  std::vector<std::string> missing_weights(std::size_t segment) const;

  void set_matrix(const std::string& name, MatrixPart part, const float* values, std::size_t count, std::size_t adapter = 0);
  std::vector<float> get_matrix(const std::string& name, MatrixPart part, std::size_t adapter = 0);
  /// Of all matrices that an adapter learns, in the order of grad_squares() and of an optimizer step's rates.
  std::vector<std::string> matrix_names(std::size_t adapter = 0) const;

  ForwardResult forward(std::size_t segment, const MicroBatch& micro, Buffer input);
  Buffer backward(std::size_t segment, std::int64_t batch_index, Buffer dout);
  /// From here on what these modules' products take is kept, call after call, for the first of them of each product; of those before no more.
  /// Returns those that are here.
  std::vector<std::string> watch_inputs(const std::vector<std::string>& modules);
  /// What a watched module took since, row after row. Throws PL_TENSOR_MISMATCH for another name.
  std::vector<float> take_inputs(const std::string& module);

  /// See Segment.
  void first_values(std::size_t adapter = 0);
  void discard();

  /// Gradients of all of an adapter's matrices back to back, in an order of the engine's own: for adding up over replicas of the same segments.
  std::vector<float> gradients(std::size_t adapter = 0);
  /// Throws PL_TENSOR_MISMATCH for another count than gradients() gives.
  void set_gradients(const std::vector<float>& values, std::size_t adapter = 0);
  /// The same to and from f32 [1, count] of this device's memory outside the arena, queued.
  void gradients_into(const Tensor& values, std::size_t adapter = 0);
  void set_gradients_from(const Tensor& values, std::size_t adapter = 0);
  std::int64_t gradient_count(std::size_t adapter = 0) const;
  std::vector<double> grad_squares(std::size_t adapter = 0);
  /// `rates`: one a matrix, or none: all as `settings` says.
  void optimizer_step(const AdamSettings& settings, std::span<const MatrixRate> rates = {}, std::size_t adapter = 0);
  void zero_grad(std::size_t adapter = 0);

  /// `rows`: tokens of all sequences together.
  std::size_t create_cache(std::int64_t sequences, std::int64_t rows);
  void free_cache(std::size_t cache);
  Buffer infer(std::size_t segment, std::size_t cache, const CachedSequences& of, const std::vector<std::int32_t>& tokens, Buffer input,
               std::size_t adapter = 0);

  /// The token drawn from logits [1, V] f32, which may change (Sampling), with the log-probabilities of as many of the likeliest tokens before
  /// that, and its own; none where `likeliest` is negative. Throws PL_TENSOR_MISMATCH for what is out of range.
  Drawn sample(Sampling call, std::int64_t likeliest = -1);

  /// Copies a tensor out, into pieces of host memory that make up its bytes one after the other.
  void read(const Tensor& tensor, std::span<const HostSpan> pieces);
  std::vector<std::uint8_t> read(const Tensor& tensor);
  /// Copies a tensor in, from pieces of host memory that make up its bytes.
  Buffer write(std::span<const HostSpan> pieces, DType dtype, std::int64_t rows, std::int64_t cols);

  /// A tensor copied in from device memory outside the arena, queued.
  Buffer take_in(const Tensor& from);

  /// A tensor as a link carries it: rounded to `dtype`, of f8 by rows (Ops::encode_rows). Throws PL_TENSOR_MISMATCH for another dtype.
  Buffer encode(const Tensor& tensor, DType dtype);
  /// And back, in the compute dtype.
  Buffer decode(const Tensor& tensor);

  EngineMemory memory() const;
  Ops& ops() { return *ops_; }
  Arena& arena() { return *arena_; }

 private:
  Segment& segment(std::size_t index) const;
  /// What an adapter learns in all segments.
  struct Learned {
    std::vector<NamedMatrix*> matrices;
    std::map<std::string, NamedMatrix*> by_name;
  };
  const Learned& learned(std::size_t adapter) const;
  void learns(std::size_t adapter, const std::vector<NamedMatrix*>& matrices);
  NamedMatrix& matrix(const std::string& name, std::size_t adapter) const;
  void expect_gradients(std::int64_t count, std::size_t adapter) const;

  std::unique_ptr<Ops> ops_;
  Arch arch_;
  std::size_t host_bytes_;
  std::unique_ptr<DeviceMemory> arena_memory_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<RopeTables> rope_;
  HeldLayers held_;
  std::vector<std::unique_ptr<Segment>> segments_;
  std::vector<Learned> learned_{1};  // by adapter
  struct Watched {
    LinearGroup* group;
    InputRows rows;
  };
  std::map<std::string, std::unique_ptr<Watched>> watched_;  // by module
  std::map<std::size_t, std::unique_ptr<KvCache>> caches_;
  std::size_t next_cache_ = 0;
};

}  // namespace pipelora
