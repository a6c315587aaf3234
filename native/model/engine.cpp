#include "pipelora/model/engine.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <deque>
#include <utility>

#include "pipelora/core/e4m3.h"
#include "pipelora/core/error.h"
#include "pipelora/core/mapped_file.h"
#include "pipelora/model/scaled_codes.h"

namespace pipelora {

namespace {

/// Marks the work queued during its lifetime as one range of the device's timeline.
class Stretch {
 public:
  explicit Stretch(Ops& ops) : ops_(ops) { ops_.stretch_begins(); }
  ~Stretch() { ops_.stretch_ends(); }
  Stretch(const Stretch&) = delete;
  Stretch& operator=(const Stretch&) = delete;

 private:
  Ops& ops_;
};

/// Whether a rule has frequencies for heads of that width.
bool turns(const RotarySpec& rotary, std::int64_t head_dim) {
  const auto count = static_cast<std::int64_t>(rotary.inv_freq.size());
  return count > 0 && count <= head_dim / 2 && (rotary.long_inv_freq.empty() || rotary.long_inv_freq.size() == rotary.inv_freq.size()) &&
         (rotary.dynamic_factor == 0 || (rotary.dynamic_factor > 0 && rotary.long_from > 0 && count > 1));
}

/// [cols, rows] -> [rows, cols], in squares that stay in the cache.
std::vector<std::byte> transposed(const HostTensor& from, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kSquare = 64;
  std::vector<std::byte> to(from.bytes());
  const auto turn = [&]<class T>(T*) {
    const auto* in = static_cast<const T*>(from.data);
    auto* out = reinterpret_cast<T*>(to.data());
    for (std::int64_t r0 = 0; r0 < rows; r0 += kSquare)
      for (std::int64_t c0 = 0; c0 < cols; c0 += kSquare)
        for (std::int64_t r = r0; r < std::min(rows, r0 + kSquare); ++r)
          for (std::int64_t c = c0; c < std::min(cols, c0 + kSquare); ++c) out[r * cols + c] = in[c * rows + r];
  };
  if (dtype_bytes(from.dtype) == 2)
    turn(static_cast<std::uint16_t*>(nullptr));
  else
    turn(static_cast<std::uint32_t*>(nullptr));
  return to;
}

}  // namespace

Engine::Engine(std::unique_ptr<Ops> ops, Arch arch, std::size_t arena_bytes, std::size_t host_bytes)
    : Engine(FrozenLayers{std::move(ops), {}}, std::move(arch), arena_bytes, host_bytes) {}

Engine::Engine(FrozenLayers held, Arch arch, std::size_t arena_bytes, std::size_t host_bytes)
    : ops_(std::move(held.ops)), arch_(std::move(arch)), host_bytes_(host_bytes), held_(std::move(held.layers)) {
  const auto good = [](std::int64_t n) { return n > 0 && n < (std::int64_t{1} << 31); };
  if (!good(arch_.hidden) || !good(arch_.heads) || !good(arch_.kv_heads) || !good(arch_.ffn) || !good(arch_.vocab) ||
      arch_.head_dim <= 0 || arch_.head_dim > 1024 || arch_.head_dim % 2 != 0 || arch_.heads % arch_.kv_heads != 0 ||
      !std::all_of(arch_.rotary.begin(), arch_.rotary.end(), [&](const RotarySpec& rotary) { return turns(rotary, arch_.head_dim); }) ||
      (arch_.query_scale_beta != 0 && arch_.query_scale_length <= 0))
    throw Error(kTensorMismatch, "arch: expected positive sizes, an even headDim of at most 1024, between 1 and headDim / 2 frequencies of every "
                                 "rotary rule, as many long ones or none, and heads a multiple of kvHeads");
  arena_memory_ = ops_->allocate("the arena", arena_bytes, false);
  arena_ = std::make_unique<Arena>(arena_memory_->data(), arena_bytes);
  ops_->use_arena(*arena_);
  ops_->reserve_host(host_bytes);
  rope_ = std::make_unique<RopeTables>(*ops_, arch_);
}

Engine::~Engine() = default;

FrozenLayers Engine::release() {
  ops_->finish();
  caches_.clear();
  FrozenLayers frozen{nullptr, std::move(held_)};
  for (const auto& held : segments_) held->release(frozen.layers);
  learned_.clear();
  segments_.clear();
  rope_.reset();
  arena_.reset();
  arena_memory_.reset();
  ops_->reserve_host(0);
  frozen.ops = std::move(ops_);
  return frozen;
}

Segment& Engine::segment(std::size_t index) const {
  if (index >= segments_.size())
    throw Error(kEngineFailed, "segment " + std::to_string(index) + ": the engine has " + std::to_string(segments_.size()));
  return *segments_[index];
}

const Engine::Learned& Engine::learned(std::size_t adapter) const {
  if (adapter >= learned_.size())
    throw Error(kEngineFailed, "adapter " + std::to_string(adapter) + ": the engine has " + std::to_string(learned_.size()));
  return learned_[adapter];
}

NamedMatrix& Engine::matrix(const std::string& name, std::size_t adapter) const {
  const auto& by_name = learned(adapter).by_name;
  const auto found = by_name.find(name);
  if (found == by_name.end()) throw Error(kTensorMismatch, "this engine learns no matrix " + name);
  return *found->second;
}

void Engine::learns(std::size_t adapter, const std::vector<NamedMatrix*>& matrices) {
  if (adapter >= learned_.size()) learned_.resize(adapter + 1);
  Learned& own = learned_[adapter];
  for (const NamedMatrix* held : matrices)
    if (own.by_name.contains(held->name())) throw Error(kTensorMismatch, "two segments learn a matrix " + held->name());
  for (NamedMatrix* held : matrices) {
    own.by_name.emplace(held->name(), held);
    own.matrices.push_back(held);
  }
}

std::size_t Engine::add_segment(SegmentSpec spec) {
  auto made = std::make_unique<Segment>(*ops_, *arena_, *rope_, arch_, std::move(spec), &held_);
  learns(0, made->matrices());
  segments_.push_back(std::move(made));
  return segments_.size() - 1;
}

std::size_t Engine::add_adapter(std::size_t index, const std::vector<LayerSpec>& layers) {
  Segment& target = segment(index);
  const std::size_t adapter = target.add_adapter(layers);
  learns(adapter, target.matrices(adapter));
  return adapter;
}

void Engine::load_weight(std::size_t index, const std::string& name, const TensorSource& source, const HoldSpec& hold) {
  std::uint64_t elements = 1;
  for (const std::int64_t extent : source.shape) {
    if (extent <= 0 || elements > (std::uint64_t{1} << 48) / static_cast<std::uint64_t>(extent))
      throw Error(kCheckpointInvalid, name + ": its shape has an extent of " + std::to_string(extent));
    elements *= static_cast<std::uint64_t>(extent);
  }
  if (elements * dtype_bytes(source.dtype) != source.bytes)
    throw Error(kCheckpointInvalid, name + ": expected " + std::to_string(elements * dtype_bytes(source.dtype)) +
                                        " bytes for its shape and dtype, the file's header says " + std::to_string(source.bytes));
  for (const DType dtype : {source.dtype, hold.dtype})
    if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16)
      throw Error(kTensorMismatch, name + ": expected float32, bfloat16 or float16, got " + dtype_name(dtype));
  const MappedFile file(source.path);
  HostTensor data{nullptr, source.dtype, 1, static_cast<std::int64_t>(elements)};
  std::vector<bf16> made;
  if (source.scales.block_rows > 0) {
    made = expand_codes(name, file, source);
    data.data = made.data();
  } else {
    data.data = file.range(source.offset, source.bytes);
  }
  std::vector<std::byte> turned;
  if (source.transposed) {
    if (source.shape.size() != 2) throw Error(kCheckpointInvalid, name + ": only a matrix can stand transposed");
    turned = transposed(data, source.shape[0], source.shape[1]);
    data.data = turned.data();
  }
  segment(index).slots().load(name, source.shape, data, hold);
  ops_->finish();
}

void Engine::load_values(std::size_t index, const std::string& name, const std::vector<std::int64_t>& shape, const float* values, const HoldSpec& hold) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= extent;
  segment(index).slots().load(name, shape, HostTensor{values, DType::f32, 1, elements}, hold);
  ops_->finish();
}

void Engine::load_packed(std::size_t index, const std::string& name, const PackedArrays<TensorSource>& source) {
  PackedArrays<HostBytes> arrays;
  arrays.hold = source.hold;
  arrays.rows = source.rows;
  arrays.cols = source.cols;
  arrays.nested_offset = source.nested_offset;
  std::deque<MappedFile> files;
  const auto map = [&](const TensorSource& from) {
    if (from.path.empty()) return HostBytes{};
    files.emplace_back(from.path);
    return HostBytes{files.back().range(from.offset, from.bytes), static_cast<std::size_t>(from.bytes)};
  };
  arrays.codes = map(source.codes);
  arrays.absmax = map(source.absmax);
  arrays.quant_map = map(source.quant_map);
  arrays.nested_absmax = map(source.nested_absmax);
  arrays.nested_quant_map = map(source.nested_quant_map);
  PackedState state;
  try {
    state = unpack(arrays);
  } catch (const Error& error) {
    throw Error(error.code(), name + ": " + error.what());
  }
  segment(index).slots().load(name, std::move(state), source.hold);
  ops_->finish();
}

std::vector<std::string> Engine::missing_weights(std::size_t index) const { return segment(index).slots().missing(); }

void Engine::set_matrix(const std::string& name, MatrixPart part, const float* values, std::size_t count, std::size_t adapter) {
  matrix(name, adapter).set(*ops_, part, values, count);
}
std::vector<float> Engine::get_matrix(const std::string& name, MatrixPart part, std::size_t adapter) {
  return matrix(name, adapter).get(*ops_, part);
}
std::vector<std::string> Engine::matrix_names(std::size_t adapter) const {
  std::vector<std::string> names;
  for (const NamedMatrix* held : learned(adapter).matrices) names.push_back(held->name());
  return names;
}

ForwardResult Engine::forward(std::size_t index, const MicroBatch& micro, Buffer input) {
  const Stretch stretch(*ops_);
  return segment(index).forward(micro, std::move(input));
}
Buffer Engine::backward(std::size_t index, std::int64_t batch_index, Buffer dout) {
  const Stretch stretch(*ops_);
  return segment(index).backward(batch_index, std::move(dout));
}
std::vector<std::string> Engine::watch_inputs(const std::vector<std::string>& modules) {
  for (const auto& [name, own] : watched_) own->group->watch(nullptr);
  watched_.clear();
  std::vector<std::string> here;
  for (const std::string& module : modules)
    for (const auto& held : segments_) {
      LinearGroup* group = held->group_of(module);
      const bool taken = std::any_of(watched_.begin(), watched_.end(), [&](const auto& other) { return other.second->group == group; });
      if (group == nullptr || taken) continue;
      auto own = std::make_unique<Watched>(Watched{group, {}});
      group->watch(&own->rows);
      watched_.emplace(module, std::move(own));
      here.push_back(module);
    }
  return here;
}

std::vector<float> Engine::take_inputs(const std::string& module) {
  const auto found = watched_.find(module);
  if (found == watched_.end()) throw Error(kTensorMismatch, "inputs: " + module + " is not watched");
  return std::exchange(found->second->rows.values, {});
}

void Engine::first_values(std::size_t adapter) {
  for (const auto& held : segments_) held->first_values(adapter);
  ops_->finish();
}
void Engine::discard() {
  for (const auto& held : segments_) held->discard();
}

namespace {
/// A dense matrix as one row.
Tensor run(const Tensor& matrix) { return Tensor(matrix.data, matrix.dtype, 1, matrix.size()); }
}  // namespace

std::int64_t Engine::gradient_count(std::size_t adapter) const {
  std::int64_t count = 0;
  for (const NamedMatrix* held : learned(adapter).matrices) count += held->part(MatrixPart::grad).size();
  return count;
}

std::vector<float> Engine::gradients(std::size_t adapter) {
  std::vector<float> values(static_cast<std::size_t>(gradient_count(adapter)));
  float* next = values.data();
  for (const NamedMatrix* held : learned(adapter).matrices) {
    const Tensor source = held->part(MatrixPart::grad);
    ops_->download(source, next);
    next += source.size();
  }
  return values;
}

void Engine::expect_gradients(std::int64_t count, std::size_t adapter) const {
  if (count != gradient_count(adapter))
    throw Error(kTensorMismatch,
                "gradients: expected " + std::to_string(gradient_count(adapter)) + " values, got " + std::to_string(count));
}

void Engine::set_gradients(const std::vector<float>& values, std::size_t adapter) {
  expect_gradients(static_cast<std::int64_t>(values.size()), adapter);
  const float* next = values.data();
  for (const NamedMatrix* held : learned(adapter).matrices) {
    const Tensor target = held->part(MatrixPart::grad);
    ops_->upload(target, next);
    next += target.size();
  }
}

void Engine::gradients_into(const Tensor& values, std::size_t adapter) {
  expect_gradients(values.size(), adapter);
  std::int64_t next = 0;
  for (const NamedMatrix* held : learned(adapter).matrices) {
    const Tensor source = run(held->part(MatrixPart::grad));
    ops_->copy(source, values.columns(next, source.size()));
    next += source.size();
  }
}

void Engine::set_gradients_from(const Tensor& values, std::size_t adapter) {
  expect_gradients(values.size(), adapter);
  std::int64_t next = 0;
  for (const NamedMatrix* held : learned(adapter).matrices) {
    const Tensor target = run(held->part(MatrixPart::grad));
    ops_->copy(values.columns(next, target.size()), target);
    next += target.size();
  }
}

std::vector<double> Engine::grad_squares(std::size_t adapter) {
  const Stretch stretch(*ops_);
  return pipelora::grad_squares(*ops_, learned(adapter).matrices);
}
void Engine::optimizer_step(const AdamSettings& settings, std::span<const MatrixRate> rates, std::size_t adapter) {
  const Stretch stretch(*ops_);
  adamw_step(*ops_, learned(adapter).matrices, settings, rates);
}
void Engine::zero_grad(std::size_t adapter) { pipelora::zero_grad(*ops_, learned(adapter).matrices); }

std::size_t Engine::create_cache(std::int64_t sequences, std::int64_t rows) {
  std::vector<CacheShape> blocks;
  for (const auto& held : segments_)
    for (const CacheShape& shape : held->cache_shapes()) blocks.push_back(shape);
  caches_.emplace(next_cache_, std::make_unique<KvCache>(*ops_, sequences, rows, blocks));
  return next_cache_++;
}
void Engine::free_cache(std::size_t cache) { caches_.erase(cache); }

Buffer Engine::infer(std::size_t index, std::size_t cache, const CachedSequences& of, const std::vector<std::int32_t>& tokens, Buffer input,
                     std::size_t adapter) {
  Segment& target = segment(index);
  const auto found = caches_.find(cache);
  if (found == caches_.end()) throw Error(kEngineFailed, "there is no cache " + std::to_string(cache));
  std::size_t first_block = 0;
  for (std::size_t i = 0; i < index; ++i) first_block += segments_[i]->block_count();
  return target.infer(*found->second, first_block, of, tokens, std::move(input), adapter);
}

Drawn Engine::sample(Sampling call, std::int64_t likeliest) {
  const Tensor& logits = call.logits;
  if (logits.dtype != DType::f32 || logits.rows != 1 || logits.cols < 1)
    throw Error(kTensorMismatch, "logits to draw from: expected float32 [1, V], got " + std::string(dtype_name(logits.dtype)) + " [" +
                                     std::to_string(logits.rows) + ", " + std::to_string(logits.cols) + "]");
  if (!(call.temperature > 0) || !(call.repetition_penalty > 0) || !(call.top_p >= 0) || call.top_k < 0 || !(call.min_p >= 0 && call.min_p <= 1))
    throw Error(kTensorMismatch, "drawing a token: expected a temperature and a repetition penalty above 0, top_p and top_k of 0 or more, min_p in [0, 1]");
  for (const std::int32_t id : call.seen)
    if (id < 0 || id >= logits.cols)
      throw Error(kTensorMismatch, "tokens seen: " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(logits.cols));
  if (static_cast<std::int64_t>(call.seen.size()) > logits.cols) throw Error(kTensorMismatch, "tokens seen: more than the vocabulary has");
  if (call.biased.size() != call.biases.size() || static_cast<std::int64_t>(call.biased.size()) > logits.cols)
    throw Error(kTensorMismatch, "biases: expected one for each of at most " + std::to_string(logits.cols) + " ids, got " +
                                     std::to_string(call.biases.size()) + " for " + std::to_string(call.biased.size()));
  for (const std::int32_t id : call.biased)
    if (id < 0 || id >= logits.cols)
      throw Error(kTensorMismatch, "biases: " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(logits.cols));
  if (likeliest < 0) return {ops_->sample(call), 0, {}};
  std::vector<float> plain(static_cast<std::size_t>(logits.cols));
  ops_->download(logits, plain.data());
  const std::int32_t token = ops_->sample(call);
  return log_probabilities(plain, token, std::min(likeliest, logits.cols));
}

Drawn log_probabilities(const std::vector<float>& logits, std::int32_t token, std::int64_t likeliest) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - top);
  const double whole = top + std::log(sum);
  const auto of = [&](std::int32_t id) { return static_cast<float>(static_cast<double>(logits[static_cast<std::size_t>(id)]) - whole); };
  std::vector<std::int32_t> order(logits.size());
  for (std::size_t id = 0; id < order.size(); ++id) order[id] = static_cast<std::int32_t>(id);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float of_a = logits[static_cast<std::size_t>(a)], of_b = logits[static_cast<std::size_t>(b)];
    return of_a > of_b || (of_a == of_b && a < b);
  };
  std::partial_sort(order.begin(), order.begin() + likeliest, order.end(), before);
  Drawn drawn{token, of(token), {}};
  for (std::int64_t i = 0; i < likeliest; ++i) drawn.likeliest.push_back({order[static_cast<std::size_t>(i)], of(order[static_cast<std::size_t>(i)])});
  return drawn;
}

namespace {

std::size_t total(std::span<const HostSpan> pieces) {
  std::size_t sum = 0;
  for (const HostSpan& piece : pieces) sum += piece.bytes;
  return sum;
}

/// Calls `copy(part of the tensor, host memory)` for each piece. The tensor lies dense, and pieces end between elements.
template <class Copy>
void over_pieces(const Tensor& tensor, std::span<const HostSpan> pieces, Copy copy) {
  if (total(pieces) != tensor.bytes())
    throw Error(kTensorMismatch, "host memory: expected " + std::to_string(tensor.bytes()) + " bytes for the tensor, got " +
                                     std::to_string(total(pieces)));
  if (pieces.size() == 1) return copy(tensor, pieces[0].data);
  const std::size_t element = dtype_bytes(tensor.dtype);
  std::size_t done = 0;
  for (const HostSpan& piece : pieces) {
    if (!tensor.dense() || piece.bytes % element != 0) throw Error(kTensorMismatch, "host memory: a piece cuts an element");
    if (piece.bytes == 0) continue;
    copy(Tensor(static_cast<char*>(tensor.data) + done, tensor.dtype, 1, static_cast<std::int64_t>(piece.bytes / element)),
         piece.data);
    done += piece.bytes;
  }
}

}  // namespace

void Engine::read(const Tensor& tensor, std::span<const HostSpan> pieces) {
  over_pieces(tensor, pieces, [this](const Tensor& part, std::uint8_t* host) { ops_->download(part, host); });
}
std::vector<std::uint8_t> Engine::read(const Tensor& tensor) {
  std::vector<std::uint8_t> bytes(tensor.bytes());
  ops_->download(tensor, bytes.data());
  return bytes;
}
Buffer Engine::write(std::span<const HostSpan> pieces, DType dtype, std::int64_t rows, std::int64_t cols) {
  Buffer buffer = arena_->tensor("a written tensor", dtype, rows, cols);
  over_pieces(buffer, pieces, [this](const Tensor& part, const std::uint8_t* host) { ops_->upload(part, host); });
  return buffer;
}

Buffer Engine::take_in(const Tensor& from) {
  Buffer buffer = arena_->tensor("a received tensor", from.dtype, from.rows, from.cols);
  ops_->copy(from, buffer);
  return buffer;
}

namespace {

/// Whether a link's tensors of this dtype are rows of codes, each with its scale.
bool in_codes(DType dtype) {
  if (dtype != DType::f8 && dtype != DType::bf16) throw Error(kTensorMismatch, std::string("a link carries bfloat16 or float8_e4m3fn, not ") + dtype_name(dtype));
  return dtype == DType::f8;
}

}  // namespace

Buffer Engine::encode(const Tensor& tensor, DType dtype) {
  const bool coded = in_codes(dtype);
  Buffer buffer = arena_->tensor("a tensor for a link", dtype, tensor.rows, tensor.cols + (coded ? kScaleColumns : 0));
  if (coded)
    ops_->encode_rows(tensor, buffer);
  else
    ops_->copy(tensor, buffer);
  return buffer;
}

Buffer Engine::decode(const Tensor& tensor) {
  const bool coded = in_codes(tensor.dtype);
  if (coded && tensor.cols <= kScaleColumns)
    throw Error(kTensorMismatch, "rows in e4m3 from a link: expected a scale behind the numbers, got " + shape_text(tensor.rows, tensor.cols));
  Buffer buffer = arena_->tensor("a tensor of a link", ops_->compute_dtype(), tensor.rows, tensor.cols - (coded ? kScaleColumns : 0));
  if (coded)
    ops_->decode_rows(tensor, buffer);
  else
    ops_->copy(tensor, buffer);
  return buffer;
}

EngineMemory Engine::memory() const {
  EngineMemory memory;
  memory.host_bytes = host_bytes_;
  for (const auto& held : segments_) {
    memory.weight_bytes += held->weight_bytes();
    memory.host_bytes += held->host_bytes();
  }
  for (const Learned& own : learned_)
    for (const NamedMatrix* held : own.matrices) memory.lora_bytes += kMatrixParts * held->part(MatrixPart::weight).bytes();
  for (const auto& [number, cache] : caches_) memory.cache_bytes += cache->bytes();
  memory.arena_bytes = arena_->capacity();
  memory.arena_peak_bytes = arena_->peak();
  return memory;
}

}  // namespace pipelora
