#include "pipelora/model/segment.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pipelora/core/error.h"
#include "pipelora/core/half.h"
#include "pipelora/model/offload.h"

namespace pipelora {

namespace {
/// A weight beside the linears, f32 [rows, n], with `offset` added to its values.
void load_plain(Ops& ops, const HostTensor& data, float offset, const Tensor& to) {
  if (offset == 0) return ops.load(data, to);
  std::vector<float> values;
  const auto widen = [&]<class T>() {
    for (std::int64_t i = 0; i < data.rows * data.cols; ++i) values.push_back(to_float(static_cast<const T*>(data.data)[i]) + offset);
  };
  switch (data.dtype) {
    case DType::bf16: widen.template operator()<bf16>(); break;
    case DType::f16: widen.template operator()<f16>(); break;
    case DType::f32: widen.template operator()<float>(); break;
    default: throw Error(kTensorMismatch, std::string("a norm's or a convolution's weight: expected float32, bfloat16 or float16, got ") + dtype_name(data.dtype));
  }
  ops.upload(to, values.data());
}

/// Rows are numbered within the step, in the order of the data.
std::string not_finite(const Batch& batch, const HeadResult& loss) {
  std::string where = std::isnan(loss.loss_sum) ? "NaN" : "infinite";
  if (loss.first_not_finite < 0) return where;
  const auto token = static_cast<std::size_t>(loss.first_not_finite);
  return where + ", first at token " + std::to_string(batch.sequences.position.host[token]) + " of row " + std::to_string(batch.sequences.row.host[token]);
}
}  // namespace

/// A layer with what one adapter learns of it. Exactly one is set for those kinds, none for a norm.
struct Segment::Adapted {
  std::unique_ptr<Embedding> embedding;
  std::unique_ptr<Block> block;
  std::unique_ptr<Head> head;
  bool reached = false;  // backward reaches it: something trainable lies in it or before it

  /// Whether the layer's own weight is trained whole: what is held is not the base's then.
  bool trains_weight() const { return (embedding && embedding->trains_table()) || (head && head->trains_table()); }
  bool trainable() const {
    return (embedding && embedding->trainable()) || (block && block->trainable()) || (head && head->trainable());
  }
  std::vector<LinearGroup*> groups() const { return block ? block->groups() : std::vector<LinearGroup*>(); }
};

struct Segment::Layer {
  enum class Kind { embedding, block, norm, head } kind;
  BaseWeights base;
  Tensor weight;  // of a norm
  bool checkpointed = false;
  bool offloaded = false;  // its activations wait on the host
  std::vector<Adapted> adapted = {};

  Layer(const LayerSpec& spec, BaseWeights weights) : kind(static_cast<Kind>(spec.index())), base(std::move(weights)) {}
  const Adapted& first() const { return adapted.front(); }
};

/// What forward left for the backward pass of one micro-batch.
struct Segment::Saved {
  std::size_t adapter = 0;
  std::unique_ptr<Batch> batch;
  std::vector<std::int32_t> tokens;  // of an embedding that learns
  std::vector<BlockSaved> blocks;  // one a layer; empty for other kinds
  std::vector<Buffer> inputs;      // one a layer: a norm's input
  std::unique_ptr<HeadSaved> head;
  std::unique_ptr<Offloads> offloads;  // where any of the segment's blocks is offloaded
};

Segment::Segment(Ops& ops, Arena& arena, RopeTables& rope, const Arch& arch, SegmentSpec spec, HeldLayers* held)
    : ops_(ops), arena_(arena), rope_(rope), arch_(arch), spec_(std::move(spec)) {
  std::int64_t blocks = 0, others = 0;
  const std::int64_t offloaded = spec_.offloaded_blocks, all = std::count_if(spec_.layers.begin(), spec_.layers.end(), [](const LayerSpec& layer) {
    return std::holds_alternative<BlockSpec>(layer);
  });
  for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
    auto found = held == nullptr ? HeldLayers::node_type() : held->extract(layer_name(spec_.layers[i]));
    layers_.push_back(std::make_unique<Layer>(spec_.layers[i], found.empty() ? BaseWeights(ops) : std::move(found.mapped())));
    Layer* at = layers_.back().get();
    slots_.begin_layer(i);
    if (at->kind == Layer::Kind::embedding && i != 0) throw Error(kTensorMismatch, "the embedding must be a segment's first layer");
    if (at->kind == Layer::Kind::head && i + 1 != spec_.layers.size()) throw Error(kTensorMismatch, "the head must be a segment's last layer");
    adapt(*at, spec_.layers[i]);
    if (at->kind == Layer::Kind::norm) {
      at->weight = Tensor(at->base.memory("a norm's weight", static_cast<std::size_t>(arch_.hidden) * sizeof(float)), DType::f32, 1, arch_.hidden);
      slots_.add(std::get<NormSpec>(spec_.layers[i]).weight, 0, arch_.hidden,
                 [this, at](const HostTensor& data, const HoldSpec&) { load_plain(ops_, data, arch_.norm_offset, at->weight); });
    }
    if (at->kind == Layer::Kind::block) {
      at->offloaded = blocks * offloaded % all < offloaded;
      at->checkpointed = !at->offloaded && others++ < spec_.checkpointed_blocks;
      add_block_slots(*at->first().block, blocks++ < spec_.cached_blocks);
    }
    if (!found.empty()) slots_.take_over(i);
  }
  if (layers_.empty()) throw Error(kTensorMismatch, "a segment needs at least one layer");
}

void Segment::add_block_slots(Block& block, bool cached) {
  for (const WeightPlace& place : block.places()) {
    slots_.add(place.name, place.shape,
               [this, to = place.weight, offset = place.offset](const HostTensor& data, const HoldSpec&) { load_plain(ops_, data, offset, to); });
  }
  for (LinearGroup* group : block.groups())
    for (std::size_t part = 0; part < group->linears().size(); ++part) {
      const LinearSpec& linear = group->linears()[part];
      LinearWeight* weight = &group->weight();
      slots_.add(linear.name + ".weight", linear.out, linear.in, *weight, part, {.keep_expanded = cached, .fp8 = spec_.fp8 && linear.role != Role::router});
      if (linear.bias)
        slots_.add(linear.name + ".bias", 0, linear.out, [weight, part](const HostTensor& data, const HoldSpec&) { weight->load_bias(part, data); });
    }
  if (Experts* experts = block.experts()) experts->add_slots(slots_, {.keep_expanded = cached, .fp8 = spec_.fp8});
}

Segment::~Segment() = default;

void Segment::release(HeldLayers& held) {
  saved_.clear();
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = *layers_[i];
    const bool trained = std::any_of(layer.adapted.begin(), layer.adapted.end(), [](const Adapted& one) { return one.trains_weight(); });
    layer.adapted.clear();
    if (trained || !slots_.whole(i)) continue;
    layer.base.give_up_adapters();
    held.emplace(layer_name(spec_.layers[i]), std::move(layer.base));
  }
}

/// Layers are adapted from the first on.
void Segment::adapt(Layer& layer, const LayerSpec& spec) {
  Adapted own;
  layer.base.rewind();
  if (const auto* embedding = std::get_if<EmbeddingSpec>(&spec)) {
    own.embedding = std::make_unique<Embedding>(ops_, arena_, arch_, *embedding, layer.base);
    own.embedding->add_slot(slots_);
  } else if (const auto* block = std::get_if<BlockSpec>(&spec)) {
    own.block = std::make_unique<Block>(ops_, arena_, arch_, *block, layer.base);
  } else if (const auto* head = std::get_if<HeadSpec>(&spec)) {
    own.head = std::make_unique<Head>(ops_, arena_, arch_, *head, layer.base);
    own.head->add_slot(slots_);
  }
  const std::size_t adapter = layer.adapted.size();
  const bool before = &layer == layers_.front().get() ? spec_.needs_input_grad : false;
  own.reached = before || own.trainable();
  for (const auto& other : layers_) {
    if (other.get() == &layer) break;
    own.reached = own.reached || other->adapted[adapter].reached;
  }
  layer.adapted.push_back(std::move(own));
}

std::size_t Segment::add_adapter(const std::vector<LayerSpec>& layers) {
  bool same = layers.size() == layers_.size();
  for (std::size_t i = 0; same && i < layers.size(); ++i) same = layers[i].index() == spec_.layers[i].index();
  if (!same) throw Error(kTensorMismatch, "an adapter's layers: expected the " + std::to_string(layers_.size()) + " that the segment has");
  const std::size_t number = adapters();
  try {
    for (std::size_t i = 0; i < layers.size(); ++i) {
      slots_.begin_layer(i);
      adapt(*layers_[i], layers[i]);
    }
  } catch (...) {
    for (const auto& layer : layers_)
      if (layer->adapted.size() > number) layer->adapted.pop_back();
    throw;
  }
  return number;
}

std::size_t Segment::adapters() const { return layers_.back()->adapted.size(); }

bool Segment::starts_with_embedding() const { return layers_.front()->kind == Layer::Kind::embedding; }
bool Segment::ends_with_head() const { return layers_.back()->kind == Layer::Kind::head; }

std::size_t Segment::block_count() const {
  return static_cast<std::size_t>(std::count_if(layers_.begin(), layers_.end(), [](const auto& layer) { return layer->kind == Layer::Kind::block; }));
}

std::vector<CacheShape> Segment::cache_shapes() const {
  std::vector<CacheShape> shapes;
  for (const auto& layer : layers_)
    if (layer->kind == Layer::Kind::block) shapes.push_back(layer->first().block->cache_shape());
  return shapes;
}

std::size_t Segment::weight_bytes() const {
  std::size_t bytes = 0;
  for (const auto& layer : layers_) {
    bytes += layer->base.bytes();
    for (const Adapted& own : layer->adapted) {
      if (own.embedding) bytes += own.embedding->extra_bytes();
      if (own.head) bytes += own.head->extra_bytes();
      for (const LinearGroup* group : own.groups()) bytes += group->extra_bytes();
    }
  }
  return bytes;
}

std::size_t Segment::host_bytes() const {
  const DeviceMemory* memory = layers_.front()->base.table().memory.get();
  return memory != nullptr && memory->on_host() ? memory->bytes() : 0;
}

std::vector<NamedMatrix*> Segment::matrices(std::size_t adapter) {
  std::vector<NamedMatrix*> found;
  const auto add = [&](const std::vector<Learner*>& learners) {
    for (Learner* learner : learners)
      for (NamedMatrix& matrix : learner->matrices()) found.push_back(&matrix);
  };
  for (const auto& layer : layers_) {
    const Adapted& own = layer->adapted.at(adapter);
    if (own.embedding) add(own.embedding->learners());
    if (own.head) add(own.head->learners());
    for (LinearGroup* group : own.groups()) add(group->learners());
    if (const Experts* experts = own.block ? own.block->experts() : nullptr) add(experts->learners());
  }
  return found;
}

void Segment::require_adapter(std::size_t adapter, const char* what) const {
  if (adapter < adapters()) return;
  throw Error(kEngineFailed, std::string(what) + " of adapter " + std::to_string(adapter) + ": the segment has " + std::to_string(adapters()));
}

void Segment::follow(std::size_t adapter) {
  for (const auto& layer : layers_) {
    const Adapted& own = layer->adapted[adapter];
    if (own.embedding) own.embedding->follow();
    if (own.head) own.head->follow();
    for (LinearGroup* group : own.groups()) group->follow();
  }
}

void Segment::first_values(std::size_t adapter) {
  slots_.require_loaded();
  for (const auto& layer : layers_) {
    const Adapted& own = layer->adapted.at(adapter);
    if (own.embedding) own.embedding->first_values();
    if (own.head) own.head->first_values();
    for (LinearGroup* group : own.groups()) group->first_values();
  }
}

void Segment::check_input(const Buffer& input, std::int64_t tokens) const {
  if (starts_with_embedding()) {
    if (input) throw Error(kTensorMismatch, "a segment that starts with the embedding takes no input tensor");
    return;
  }
  if (!input) throw Error(kTensorMismatch, "this segment needs an input tensor " + shape_text(tokens, arch_.hidden));
  const Tensor& x = input;
  if (x.rows != tokens || x.cols != arch_.hidden || x.dtype != ops_.compute_dtype())
    throw Error(kTensorMismatch, "input: expected " + shape_text(tokens, arch_.hidden) + " " + dtype_name(ops_.compute_dtype()) +
                                     ", got " + shape_text(x.rows, x.cols) + " " + dtype_name(x.dtype));
}

void Segment::check_tokens(const std::vector<std::int32_t>& tokens, std::int64_t expected) const {
  if (static_cast<std::int64_t>(tokens.size()) != expected)
    throw Error(kTensorMismatch, "tokens: expected " + std::to_string(expected) + " ids, got " + std::to_string(tokens.size()));
  for (const std::int32_t id : tokens)
    if (id < 0 || id >= arch_.vocab)
      throw Error(kTensorMismatch, "tokens: id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(arch_.vocab));
}

/// The same values in the lowest hole that has room for them: the head's logits need what is free in one piece.
Buffer Segment::lowest(Buffer x) {
  Buffer to = arena_.tensor("a block's output", x.tensor().dtype, x.tensor().rows, x.tensor().cols);
  if (to.tensor().data > x.tensor().data) return x;
  ops_.copy(x, to);
  return to;
}

LinearGroup* Segment::group_of(const std::string& module) {
  for (const auto& layer : layers_)
    for (LinearGroup* group : layer->first().groups())
      for (const LinearSpec& linear : group->linears())
        if (linear.name == module) return group;
  return nullptr;
}

ForwardResult Segment::forward(const MicroBatch& micro, Buffer input) {
  slots_.require_loaded();
  require_adapter(micro.adapter, "a micro-batch");
  follow(micro.adapter);
  auto saved = std::make_unique<Saved>();
  saved->adapter = micro.adapter;
  saved->batch = make_batch(ops_, arena_, rope_, arch_, micro);
  const Batch& batch = *saved->batch;
  const std::int64_t tokens = batch.sequences.tokens;
  check_input(input, tokens);
  saved->blocks.resize(layers_.size());
  saved->inputs.resize(layers_.size());
  if (micro.training && spec_.offloaded_blocks > 0) saved->offloads = std::make_unique<Offloads>(ops_, layers_.size());

  ForwardResult result;
  Buffer x = std::move(input);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = *layers_[i];
    const Adapted& own = layer.adapted[micro.adapter];
    const bool keep = micro.training && own.reached;
    switch (layer.kind) {
      case Layer::Kind::embedding:
        check_tokens(micro.tokens, tokens);
        x = own.embedding->forward(micro.tokens);
        if (keep) saved->tokens = micro.tokens;
        if (micro.training && micro.noise_alpha != 0) ops_.add_noise({x, &batch.sequences, batch.key, micro.noise_alpha});
        break;
      case Layer::Kind::block: {
        const bool sent = keep && saved->offloads && (layer.offloaded || layer.checkpointed);
        if (sent) saved->offloads->make_room(layer.offloaded);
        const Block::Keeps keeps = !keep                ? Block::Keeps::nothing
                                   : layer.checkpointed ? Block::Keeps::inputs
                                   : sent               ? Block::Keeps::all_for_now
                                                        : Block::Keeps::all;
        x = own.block->forward(batch, std::move(x), &saved->blocks[i], keeps, nullptr);
        if (sent) saved->offloads->send(i, saved->blocks[i], layer.offloaded);
        break;
      }
      case Layer::Kind::norm: {
        if (saved->offloads) {
          saved->offloads->settle();
          x = lowest(std::move(x));
        }
        Buffer y = arena_.tensor("the final norm's output", ops_.compute_dtype(), tokens, arch_.hidden);
        ops_.rmsnorm_forward(x, layer.weight, norm_rule(arch_), y);
        if (keep) saved->inputs[i] = std::move(x);
        x = std::move(y);
        break;
      }
      case Layer::Kind::head: {
        HeadResult loss = own.head->forward(batch, micro, x, keep);
        x.reset();
        result.loss_sum = loss.loss_sum;
        result.label_tokens = loss.label_tokens;
        result.correct_tokens = loss.correct_tokens;
        saved->head = std::move(loss.saved);
        if (!std::isfinite(loss.loss_sum)) result.not_finite = not_finite(batch, loss);
        break;
      }
    }
  }
  if (saved->offloads) saved->offloads->settle();
  result.output = std::move(x);
  if (micro.training && layers_.back()->adapted[micro.adapter].reached) saved_[micro.index] = std::move(saved);
  return result;
}

Buffer Segment::backward(std::int64_t batch_index, Buffer dout) {
  const auto found = saved_.find(batch_index);
  if (found == saved_.end()) {
    const auto& all = layers_.back()->adapted;
    // Of an adapter that learns nothing here or before.
    if (std::any_of(all.begin(), all.end(), [](const Adapted& one) { return !one.reached; })) return Buffer();
    throw Error(kEngineFailed, "backward of micro-batch " + std::to_string(batch_index) + ": forward kept nothing for it");
  }
  const std::unique_ptr<Saved> saved = std::move(found->second);
  saved_.erase(found);
  follow(saved->adapter);
  const Batch& batch = *saved->batch;
  if (!ends_with_head()) {
    const Tensor& d = dout;
    if (!dout || d.rows != batch.sequences.tokens || d.cols != arch_.hidden || d.dtype != ops_.compute_dtype())
      throw Error(kTensorMismatch, "gradient: expected " + shape_text(batch.sequences.tokens, arch_.hidden) + " " +
                                       dtype_name(ops_.compute_dtype()) + ", got " + shape_text(d.rows, d.cols) + " " +
                                       dtype_name(d.dtype));
  } else if (dout) {
    throw Error(kTensorMismatch, "a segment that ends with the head takes no gradient");
  }
  Buffer gradient = std::move(dout);
  for (std::size_t i = layers_.size(); i-- > 0;) {
    Layer& layer = *layers_[i];
    const Adapted& own = layer.adapted[saved->adapter];
    if (!own.reached) break;
    const bool below = i > 0 ? layers_[i - 1]->adapted[saved->adapter].reached : spec_.needs_input_grad;
    switch (layer.kind) {
      case Layer::Kind::head:
        gradient = own.head->backward(batch, *saved->head, below);
        saved->head.reset();
        break;
      case Layer::Kind::norm:
        if (below) {
          ops_.rmsnorm_backward({saved->inputs[i], layer.weight, gradient, Tensor(), gradient, Tensor(), norm_rule(arch_)});
          saved->inputs[i].reset();
        }
        break;
      case Layer::Kind::block:
        if (saved->offloads) saved->offloads->restore(i, saved->blocks[i]);
        gradient = own.block->backward(batch, std::move(saved->blocks[i]), std::move(gradient), below);
        break;
      case Layer::Kind::embedding: own.embedding->backward(saved->tokens, gradient); break;
    }
  }
  return spec_.needs_input_grad ? std::move(gradient) : Buffer();
}

void Segment::discard() { saved_.clear(); }

namespace {
/// Whether the slots are consecutive, so that they can be used as rows of the state without a copy.
bool in_a_row(const std::vector<std::int32_t>& slots) {
  for (std::size_t i = 1; i < slots.size(); ++i)
    if (slots[i] != slots[0] + static_cast<std::int32_t>(i)) return false;
  return true;
}
}  // namespace

Buffer Segment::infer(KvCache& cache, std::size_t first_block, const CachedSequences& of, const std::vector<std::int32_t>& tokens, Buffer input,
                      std::size_t adapter) {
  slots_.require_loaded();
  require_adapter(adapter, "sequences");
  follow(adapter);
  const auto batch = make_cached_batch(ops_, arena_, rope_, arch_, of, cache.rows());
  cache.check_slots(of.slots);
  check_input(input, batch->sequences.tokens);
  const auto count = static_cast<std::int64_t>(of.count());
  const bool gathered = !in_a_row(of.slots);
  Indices slots;
  Buffer x = std::move(input);
  std::size_t block = first_block;
  for (const auto& layer : layers_) {
    const Adapted& own_layer = layer->adapted[adapter];
    switch (layer->kind) {
      case Layer::Kind::embedding:
        check_tokens(tokens, batch->sequences.tokens);
        x = own_layer.embedding->forward(tokens);
        break;
      case Layer::Kind::block: {
        const BlockCache& held = cache.layer(block++);
        BlockCache own = held;
        Buffer state;
        if (held.state && gathered) {
          if (slots.host.empty()) {
            slots.host = of.slots;
            upload_indices(ops_, slots, [&](std::int64_t n) { return arena_.tensor("slots of sequences", DType::i32, 1, n); });
          }
          state = arena_.tensor("states of sequences", DType::f32, count, held.state.cols);
          ops_.gather_rows(held.state, slots, state);
          own.state = state;
        } else if (held.state) {
          own.state = held.state.row_range(of.slots.front(), count);
        }
        x = own_layer.block->forward(*batch, std::move(x), nullptr, Block::Keeps::nothing, &own);
        if (state) ops_.scatter_rows(state, slots, 1, held.state);
        break;
      }
      case Layer::Kind::norm: {
        Buffer y = arena_.tensor("the final norm's output", ops_.compute_dtype(), batch->sequences.tokens, arch_.hidden);
        ops_.rmsnorm_forward(x, layer->weight, norm_rule(arch_), y);
        x = std::move(y);
        break;
      }
      case Layer::Kind::head: x = own_layer.head->last_logits(*batch, x); break;
    }
  }
  return x;
}

}  // namespace pipelora
