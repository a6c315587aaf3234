// A small model: its description, random weights in a file, and its loss in float64.
#pragma once

#include <unistd.h>

#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "bench_device.h"
#include "mixer_reference.h"
#include "pipelora/model/engine.h"
#include "pipelora/ops/packed.h"

namespace testing {

/// Attention of a block. The latent kind has head_dim = plain + turning, 3/4 and 1/4 of it, heads of v of its own width, and rotary rule 0 of `turning` columns.
enum class Attention { softmax, gated, delta, delta_by_key_head, latent, latent_q };

struct Family {
  bool fused_qkv = false, qkv_bias = false, head_norms = false, head_lora = false;
  std::int64_t window = 0, kv_heads = 2;
  float dropout = 0;
  std::int64_t hidden = 32, heads = 4, head_dim = 8, ffn = 24, vocab = 50, blocks = 3;
  /// Rank of a linear's pair, by the module's name ("block0.q"); 0: none.
  std::function<std::int64_t(const std::string& name)> rank = [](const std::string& name) -> std::int64_t {
    return name.ends_with(".k") || name == "block1.gate" ? 0 : 3;
  };
  HoldSpec hold{};
  bool pre_norms = true, post_norms = false, fused_gate_up = false;
  /// What the arch has beyond sizes and one rotary rule.
  std::function<void(Arch& arch)> rules = [](Arch&) {};
  /// A block's rotary rule; -1: none.
  std::function<std::int64_t(std::int64_t block)> rotary = [](std::int64_t) -> std::int64_t { return 0; };
  std::function<Attention(std::int64_t block)> attention = [](std::int64_t) { return Attention::softmax; };
  DeltaShape delta{2, 4, 10, 5, 4};
  std::int64_t value_dim = 10, kv_rank = 12, q_rank = 9;
  /// Blocks whose tokens see their own chunk alone, and blocks with norms of q and k without weights.
  std::function<bool(std::int64_t block)> chunked = [](std::int64_t) { return false; };
  std::function<bool(std::int64_t block)> plain_norms = [](std::int64_t) { return false; };
  bool dora = false;
};

enum class LoraMatrix { a, b, magnitude };

inline std::string matrix_name(const std::string& module, LoraMatrix matrix) {
  return module + (matrix == LoraMatrix::a ? ".lora_A.weight" : matrix == LoraMatrix::b ? ".lora_B.weight" : ".lora_magnitude_vector");
}

/// Modules that have a pair, in the engine's order.
inline std::vector<std::string> lora_modules(const Engine& engine) {
  std::vector<std::string> modules;
  for (const std::string& name : engine.matrix_names())
    if (const std::size_t at = name.find(".lora_A."); at != std::string::npos) modules.push_back(name.substr(0, at));
  return modules;
}

class TestModel {
 public:
  static constexpr std::int64_t kHidden = 32, kHeads = 4, kHeadDim = 8, kFfn = 24, kVocab = 50, kBlocks = 3, kRank = 3;

  explicit TestModel(const Family& family) : family_(family) {
    arch.hidden = family_.hidden;
    arch.heads = family_.heads;
    arch.kv_heads = family.kv_heads;
    arch.head_dim = family_.head_dim;
    arch.ffn = family_.ffn;
    arch.vocab = family_.vocab;
    arch.rms_eps = 1e-6f;
    arch.rotary = {rotary_rule(10000, family_.head_dim)};
    family_.rules(arch);
    const std::int64_t width = family_.heads * family_.head_dim, kv = family.kv_heads * family_.head_dim;
    layers.emplace_back(EmbeddingSpec{"embed"});
    add("embed", {family_.vocab, family_.hidden}, 1.0);
    for (std::int64_t b = 0; b < family_.blocks; ++b) {
      const std::string p = "block" + std::to_string(b) + ".";
      BlockSpec block;
      block.index = b;
      block.sliding_window = family.window;
      block.rotary = family_.rotary(b);
      block.chunked = family_.chunked(b);
      block.plain_head_norms = family_.plain_norms(b);
      if (family_.pre_norms) {
        block.attn_norm = p + "attn_norm";
        add(block.attn_norm, {family_.hidden}, 1.0);
      }
      if (family_.pre_norms && !arch.parallel) {
        block.mlp_norm = p + "mlp_norm";
        add(block.mlp_norm, {family_.hidden}, 1.0);
      }
      if (family_.post_norms) {
        block.attn_post_norm = p + "attn_post_norm";
        block.mlp_post_norm = p + "mlp_post_norm";
        add(block.attn_post_norm, {family_.hidden}, 1.0);
        add(block.mlp_post_norm, {family_.hidden}, 1.0);
      }
      const Attention kind = family_.attention(b);
      if (family.head_norms && (kind == Attention::softmax || kind == Attention::gated)) {
        block.q_norm = p + "q_norm";
        block.k_norm = p + "k_norm";
        add(block.q_norm, {arch.head_norm_whole ? width : family_.head_dim}, 1.0);
        add(block.k_norm, {arch.head_norm_whole ? kv : family_.head_dim}, 1.0);
      }
      const auto linear = [&](Role role, const char* name, std::int64_t in, std::int64_t out, bool bias) {
        LinearSpec spec{role, p + name, in, out, bias, std::nullopt};
        add(spec.name + ".weight", {out, in}, 0.25 * std::sqrt(32.0 / static_cast<double>(in)));
        if (family_.hold.quantisation != Quantisation::none) quantise(spec.name + ".weight", out, in);
        if (bias) add(spec.name + ".bias", {out}, 0.2);
        spec.lora = add_lora(spec.name, in, out);
        block.linears.push_back(spec);
      };
      if (kind == Attention::gated) {
        block.gated = true;
        linear(Role::q, "q", family_.hidden, 2 * width, family.qkv_bias);
        linear(Role::k, "k", family_.hidden, kv, family.qkv_bias);
        linear(Role::v, "v", family_.hidden, kv, family.qkv_bias);
        linear(Role::o, "o", width, family_.hidden, false);
      } else if (kind == Attention::delta || kind == Attention::delta_by_key_head) {
        const DeltaShape& s = family_.delta;
        block.delta = DeltaNetSpec{s, p + "conv", p + "a_log", p + "dt_bias", p + "delta_norm"};
        add(block.delta->conv, {s.mixed(), 1, s.taps}, 0.5);
        add(block.delta->a_log, {s.value_heads}, 0.7);
        add(block.delta->dt_bias, {s.value_heads}, 0.7);
        add(block.delta->norm, {s.value_dim}, 1.0);
        linear(Role::o, "o", s.values(), family_.hidden, false);
        if (kind == Attention::delta) {
          linear(Role::delta_qkv, "delta_qkv", family_.hidden, s.mixed(), false);
          linear(Role::delta_z, "delta_z", family_.hidden, s.values(), false);
          linear(Role::delta_b, "delta_b", family_.hidden, s.value_heads, false);
          linear(Role::delta_a, "delta_a", family_.hidden, s.value_heads, false);
        } else {
          linear(Role::delta_qkvz, "delta_qkvz", family_.hidden, s.mixed() + s.values(), false);
          linear(Role::delta_ba, "delta_ba", family_.hidden, 2 * s.value_heads, false);
        }
      } else if (kind == Attention::latent || kind == Attention::latent_q) {
        const LatentShape s = latent_shape();
        const bool over = kind == Attention::latent_q;
        block.latent = LatentSpec{s, over ? family_.q_rank : 0, family_.kv_rank, over ? p + "q_a_norm" : "", p + "kv_a_norm", 1e-5f};
        if (over) add(p + "q_a_norm", {family_.q_rank}, 1.0);
        add(p + "kv_a_norm", {family_.kv_rank}, 1.0);
        if (over) {
          linear(Role::q_a, "q_a", family_.hidden, family_.q_rank, family.qkv_bias);
          linear(Role::q_b, "q_b", family_.q_rank, width, false);
        } else {
          linear(Role::q, "q", family_.hidden, width, false);
        }
        linear(Role::kv_a, "kv_a", family_.hidden, family_.kv_rank + s.turning, family.qkv_bias);
        linear(Role::kv_b, "kv_b", family_.kv_rank, s.heads * (s.plain + s.value), false);
        linear(Role::o, "o", s.heads * s.value, family_.hidden, false);
      } else if (family.fused_qkv) {
        linear(Role::qkv, "qkv", family_.hidden, width + 2 * kv, family.qkv_bias);
        linear(Role::o, "o", width, family_.hidden, false);
      } else {
        linear(Role::q, "q", family_.hidden, width, family.qkv_bias);
        linear(Role::k, "k", family_.hidden, kv, family.qkv_bias);
        linear(Role::v, "v", family_.hidden, kv, family.qkv_bias);
        linear(Role::o, "o", width, family_.hidden, false);
      }
      if (family_.fused_gate_up) {
        linear(Role::gate_up, "gate_up", family_.hidden, 2 * family_.ffn, false);
      } else {
        linear(Role::up, "up", family_.hidden, family_.ffn, false);
        linear(Role::gate, "gate", family_.hidden, family_.ffn, false);
      }
      linear(Role::down, "down", family_.ffn, family_.hidden, false);
      layers.emplace_back(block);
    }
    layers.emplace_back(NormSpec{"norm"});
    add("norm", {family_.hidden}, 1.0);
    HeadSpec head{"head", "head", std::nullopt};
    add("head", {family_.vocab, family_.hidden}, 0.3);
    if (family.head_lora) head.lora = add_lora("head", family_.hidden, family_.vocab);
    layers.emplace_back(head);
    write_file();
  }
  ~TestModel() { ::unlink(path_.c_str()); }
  TestModel(const TestModel&) = delete;
  TestModel& operator=(const TestModel&) = delete;

  /// `cuts`: first layers of the second, third, … segment. `others`: layers of more adapters, whose pairs have no values yet.
  std::unique_ptr<Engine> engine(DType dtype, int threads, std::vector<std::size_t> cuts, std::int64_t checkpointed,
                                 std::size_t arena = std::size_t{32} << 20, std::int64_t offloaded = 0,
                                 const std::vector<std::vector<LayerSpec>>& others = {}) const {
    auto made = std::make_unique<Engine>(make_cpu_ops(dtype, threads), arch, arena);
    cuts.insert(cuts.begin(), 0);
    cuts.push_back(layers.size());
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
      SegmentSpec spec;
      const auto part = [&](const std::vector<LayerSpec>& all) {
        return std::vector<LayerSpec>(all.begin() + static_cast<std::ptrdiff_t>(cuts[i]), all.begin() + static_cast<std::ptrdiff_t>(cuts[i + 1]));
      };
      spec.layers = part(layers);
      spec.checkpointed_blocks = checkpointed;
      spec.offloaded_blocks = offloaded;
      spec.needs_input_grad = i > 0;
      const std::size_t segment = made->add_segment(spec);
      for (const std::vector<LayerSpec>& other : others) made->add_adapter(segment, part(other));
      for (const std::string& name : made->missing_weights(segment)) made->load_weight(segment, name, sources_.at(name), held_.contains(name) ? family_.hold : HoldSpec{});
    }
    for (const std::string& name : lora_modules(*made))
      for (const LoraMatrix matrix : lora.at(name).trained()) {
        const Values& from = lora.at(name).matrix(matrix);
        const std::vector<float> values(from.begin(), from.end());
        made->set_matrix(matrix_name(name, matrix), MatrixPart::weight, values.data(), values.size());
      }
    return made;
  }

  MicroBatch batch(std::vector<std::int32_t> lengths, std::int64_t index = 0) const {
    MicroBatch b;
    b.index = index;
    b.step = 4;
    b.seed = 1234567;
    b.training = true;
    b.cu_seqlens = {0};
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      b.row_ids.push_back(static_cast<std::int32_t>(10 * index + static_cast<std::int64_t>(s)));
      for (std::int32_t p = 0; p < lengths[s]; ++p) {
        const auto t = static_cast<std::int64_t>(b.tokens.size());
        b.tokens.push_back(static_cast<std::int32_t>((t * 31 + index * 17 + 5) % family_.vocab));
        const bool label = p + 1 < lengths[s] && t % 3 != 0;
        b.targets.push_back(label ? static_cast<std::int32_t>((t * 7 + 3) % family_.vocab) : -100);
        b.weights.push_back(label ? 0.05f + 0.01f * static_cast<float>(t % 4) : 0.0f);
      }
      b.cu_seqlens.push_back(static_cast<std::int32_t>(b.tokens.size()));
    }
    return b;
  }

  /// The weighted loss sum of a batch in float64.
  double loss(const MicroBatch& b) const {
    const std::size_t t = b.tokens.size(), d = static_cast<std::size_t>(family_.hidden), v = static_cast<std::size_t>(family_.vocab);
    std::vector<std::int32_t> positions, rows;
    for (std::size_t s = 0; s + 1 < b.cu_seqlens.size(); ++s)
      for (std::int32_t p = 0; p < b.cu_seqlens[s + 1] - b.cu_seqlens[s]; ++p) {
        positions.push_back(p);
        rows.push_back(b.row_ids[s]);
      }
    const auto linear = [&](const std::string& name, const Values& x, std::int64_t in, std::int64_t out) {
      const std::string weight = name == "head" ? name : name + ".weight";
      Values y = reference::product(x, weights.at(weight), t, static_cast<std::size_t>(in), static_cast<std::size_t>(out));
      if (const auto bias = weights.find(name + ".bias"); bias != weights.end())
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias->second[i % static_cast<std::size_t>(out)];
      const auto found = lora.find(name);
      if (found == lora.end()) return y;
      const Lora& pair = found->second;
      Values dropped = x;
      if (b.training && pair.spec.dropout > 0)
        for (std::size_t i = 0; i < dropped.size(); ++i) {
          const std::size_t token = i / static_cast<std::size_t>(in);
          const auto element = static_cast<std::uint64_t>(positions[token]) * static_cast<std::uint64_t>(in) + i % static_cast<std::size_t>(in);
          const bool stays = reference::kept({b.seed, b.step}, static_cast<std::uint32_t>(rows[token]), pair.spec.module_id, element, pair.spec.dropout);
          dropped[i] = stays ? dropped[i] / (1.0 - static_cast<double>(pair.spec.dropout)) : 0.0;
        }
      const auto rank = static_cast<std::size_t>(pair.spec.r);
      const Values low = reference::product(reference::product(dropped, pair.a, t, static_cast<std::size_t>(in), rank), pair.b, t, rank, static_cast<std::size_t>(out));
      if (!pair.spec.dora) {
        for (std::size_t i = 0; i < y.size(); ++i) y[i] += static_cast<double>(pair.spec.scale) * low[i];
        return y;
      }
      // peft's lora/dora.py.
      const Values based = reference::product(dropped, weights.at(weight), t, static_cast<std::size_t>(in), static_cast<std::size_t>(out));
      for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t c = i % static_cast<std::size_t>(out);
        const double gain = pair.magnitude[c] / pair.norms[c];
        y[i] += (gain - 1) * based[i] + gain * static_cast<double>(pair.spec.scale) * low[i];
      }
      return y;
    };
    Values x(t * d);
    for (std::size_t i = 0; i < t; ++i)
      for (std::size_t c = 0; c < d; ++c) x[i * d + c] = weights.at("embed")[static_cast<std::size_t>(b.tokens[i]) * d + c] * static_cast<double>(arch.embedding_scale);
    if (b.training && b.noise_alpha != 0)
      for (std::size_t s = 0; s + 1 < b.cu_seqlens.size(); ++s)
        for (std::int32_t i = b.cu_seqlens[s]; i < b.cu_seqlens[s + 1]; ++i)
          for (std::size_t c = 0; c < d; ++c) {
            const auto token = static_cast<std::size_t>(i), length = static_cast<std::size_t>(b.cu_seqlens[s + 1] - b.cu_seqlens[s]);
            const std::uint64_t element = static_cast<std::uint64_t>(positions[token]) * d + c;
            x[token * d + c] += reference::noise({b.seed, b.step}, static_cast<std::uint32_t>(rows[token]), element, static_cast<double>(b.noise_alpha), length, d);
          }
    const auto norm = [&](const Values& in, const std::string& name) {
      const auto weight = weights.find(name);
      return weight == weights.end() ? in : reference::rmsnorm(in, weight->second, 1e-6, arch.norm_centred, static_cast<double>(arch.norm_offset));
    };
    const std::int64_t qw = family_.heads * family_.head_dim, kv = family_.kv_heads * family_.head_dim;
    for (std::int64_t l = 0; l < family_.blocks; ++l) {
      const std::string p = "block" + std::to_string(l) + ".";
      const Values h = norm(x, p + "attn_norm");
      Values q, k, value, gate_of_q, attended;
      const Attention kind = family_.attention(l);
      if (kind == Attention::delta || kind == Attention::delta_by_key_head) {
        attended = delta_rows(p, h, kind == Attention::delta_by_key_head, b, linear);
      } else if (kind == Attention::latent || kind == Attention::latent_q) {
        attended = latent_rows(p, h, kind == Attention::latent_q, b, linear);
      } else if (kind == Attention::gated) {
        const Values both = linear(p + "q", h, family_.hidden, 2 * qw);
        const std::size_t e = static_cast<std::size_t>(family_.head_dim);
        for (std::size_t i = 0; i < both.size(); ++i) (i / e % 2 == 0 ? q : gate_of_q).push_back(both[i]);
        k = linear(p + "k", h, family_.hidden, kv);
        value = linear(p + "v", h, family_.hidden, kv);
      } else if (family_.fused_qkv) {
        const std::size_t width = static_cast<std::size_t>(qw + 2 * kv);
        const Values all = linear(p + "qkv", h, family_.hidden, qw + 2 * kv);
        for (std::size_t i = 0; i < t; ++i) {
          const auto row = all.begin() + static_cast<std::ptrdiff_t>(i * width);
          if (arch.qkv_by_kv_head) {
            const std::int64_t e = family_.head_dim, group = family_.heads / family_.kv_heads * e;
            for (std::int64_t g = 0; g < family_.kv_heads; ++g) {
              const auto at = row + g * (group + 2 * e);
              q.insert(q.end(), at, at + group);
              k.insert(k.end(), at + group, at + group + e);
              value.insert(value.end(), at + group + e, at + group + 2 * e);
            }
            continue;
          }
          q.insert(q.end(), row, row + qw);
          k.insert(k.end(), row + qw, row + qw + kv);
          value.insert(value.end(), row + qw + kv, row + qw + 2 * kv);
        }
      } else {
        q = linear(p + "q", h, family_.hidden, qw);
        k = linear(p + "k", h, family_.hidden, kv);
        value = linear(p + "v", h, family_.hidden, kv);
      }
      const auto turn = [&](const Values& in, std::int64_t width) {
        const std::int64_t rule = family_.rotary(l);
        if (rule < 0) return in;
        Values out;
        for (std::size_t s = 0; s + 1 < b.cu_seqlens.size(); ++s) {
          const std::ptrdiff_t first = b.cu_seqlens[s], last = b.cu_seqlens[s + 1];
          const Values own = reference::rotary(Values(in.begin() + first * width, in.begin() + last * width), {positions.begin() + first, positions.begin() + last},
                                               frequencies(arch.rotary[static_cast<std::size_t>(rule)], last - first), static_cast<std::size_t>(width),
                                               static_cast<std::size_t>(family_.head_dim), arch.rotary_interleaved);
          out.insert(out.end(), own.begin(), own.end());
        }
        return out;
      };
      const auto head_norm = [&](const Values& in, const std::string& name) {
        const Values ones(static_cast<std::size_t>(family_.head_dim), 1.0);
        return family_.plain_norms(l) ? reference::rmsnorm(in, ones, 1e-6, arch.norm_centred, 0) : norm(in, name);
      };
      if (q.empty()) {
        // Other kinds than softmax over heads are through.
      } else if (arch.head_norm_after_rotary) {
        q = head_norm(turn(q, qw), p + "q_norm");
        k = head_norm(turn(k, kv), p + "k_norm");
      } else {
        q = turn(head_norm(q, p + "q_norm"), qw);
        k = turn(head_norm(k, p + "k_norm"), kv);
      }
      const bool scales = arch.query_scale_beta != 0 && !(arch.query_scale_unturned && family_.rotary(l) >= 0);
      for (std::size_t i = 0; i < q.size() && scales; ++i) {
        const std::int64_t place = positions[i / static_cast<std::size_t>(qw)] + arch.query_scale_first;
        q[i] *= 1 + arch.query_scale_beta * std::log(1.0 + static_cast<double>(place / arch.query_scale_length));
      }
      if (!q.empty()) attended = reference::attention(q, k, value, family_.chunked(l) ? chunk_ends(b.cu_seqlens) : b.cu_seqlens, static_cast<std::size_t>(family_.heads), static_cast<std::size_t>(family_.kv_heads), static_cast<std::size_t>(family_.head_dim), family_.window,
                                                 static_cast<double>(arch.score_scale), static_cast<double>(arch.score_cap));
      if (!gate_of_q.empty()) attended = reference::head_gate(attended, gate_of_q, {}, 0);
      const Values before = x;
      const auto grow = [&](const Values& branch, const std::string& post) {
        const Values added = norm(branch, post);
        for (std::size_t i = 0; i < x.size(); ++i) x[i] += static_cast<double>(arch.residual_scale) * added[i];
      };
      grow(linear(p + "o", attended, static_cast<std::int64_t>(attended.size() / t), family_.hidden), p + "attn_post_norm");
      const Values g = arch.parallel ? norm(before, p + "attn_norm") : norm(x, p + "mlp_norm");
      Values gate, up;
      if (family_.fused_gate_up) {
        const Values both = linear(p + "gate_up", g, family_.hidden, 2 * family_.ffn);
        for (std::size_t i = 0; i < t; ++i) {
          const auto row = both.begin() + static_cast<std::ptrdiff_t>(i) * 2 * family_.ffn;
          gate.insert(gate.end(), row, row + family_.ffn);
          up.insert(up.end(), row + family_.ffn, row + 2 * family_.ffn);
        }
      } else {
        gate = linear(p + "gate", g, family_.hidden, family_.ffn);
        up = linear(p + "up", g, family_.hidden, family_.ffn);
      }
      grow(linear(p + "down", reference::swiglu(gate, up, arch.activation), family_.ffn, family_.hidden), p + "mlp_post_norm");
    }
    Values logits = linear("head", norm(x, "norm"), family_.hidden, family_.vocab);
    const auto cap = static_cast<double>(arch.logit_cap);
    for (double& z : logits) {
      z *= static_cast<double>(arch.logit_scale);
      if (cap > 0) z = cap * std::tanh(z / cap);
    }
    double total = 0;
    for (std::size_t i = 0; i < t; ++i)
      if (b.targets[i] != -100) total += static_cast<double>(b.weights[i]) * reference::cross_entropy(logits.data() + i * v, v, b.targets[i], static_cast<double>(b.label_smoothing));
    return total;
  }

  /// Rows cut where chunks end.
  std::vector<std::int32_t> chunk_ends(const std::vector<std::int32_t>& rows) const {
    std::vector<std::int32_t> ends{0};
    for (std::size_t s = 0; s + 1 < rows.size(); ++s)
      for (std::int32_t t = rows[s] + 1; t <= rows[s + 1]; ++t)
        if (t == rows[s + 1] || (t - rows[s]) % arch.attention_chunk == 0) ends.push_back(t);
    return ends;
  }

  LatentShape latent_shape() const {
    const std::int64_t turning = family_.head_dim / 4;
    return {family_.heads, family_.head_dim - turning, turning, family_.value_dim};
  }

  template <class Linear>
  Values delta_rows(const std::string& p, const Values& h, bool by_key_head, const MicroBatch& b, const Linear& linear) const {
    const DeltaShape& s = family_.delta;
    Values product;
    std::vector<std::pair<std::string, std::int64_t>> parts{{"delta_qkv", s.mixed()}, {"delta_z", s.values()}, {"delta_b", s.value_heads}, {"delta_a", s.value_heads}};
    if (by_key_head) parts = {{"delta_qkvz", s.mixed() + s.values()}, {"delta_ba", 2 * s.value_heads}};
    std::vector<Values> made;
    for (const auto& [name, out] : parts) made.push_back(linear(p + name, h, family_.hidden, out));
    for (std::size_t t = 0; t < b.tokens.size(); ++t)
      for (std::size_t i = 0; i < parts.size(); ++i) {
        const auto n = static_cast<std::size_t>(parts[i].second);
        for (std::size_t c = 0; c < n; ++c) product.push_back(made[i][t * n + c]);
      }
    Values out;
    const std::size_t width = product.size() / b.tokens.size();
    for (std::size_t row = 0; row + 1 < b.cu_seqlens.size(); ++row)
      reference::append(out, reference::delta_net(reference::rows_of(product, b.cu_seqlens, row, width), by_key_head, weights.at(p + "conv"), weights.at(p + "delta_norm"),
                                                  weights.at(p + "a_log"), weights.at(p + "dt_bias"), s, 1e-6));
    return out;
  }

  template <class Linear>
  Values latent_rows(const std::string& p, const Values& h, bool over, const MicroBatch& b, const Linear& linear) const {
    const LatentShape s = latent_shape();
    const auto turning = static_cast<std::size_t>(s.turning), rank = static_cast<std::size_t>(family_.kv_rank), width = rank + turning;
    const std::int64_t qw = s.heads * s.head_dim();
    const Values q = over ? linear(p + "q_b", reference::rmsnorm(linear(p + "q_a", h, family_.hidden, family_.q_rank), weights.at(p + "q_a_norm"), 1e-5), family_.q_rank, qw)
                          : linear(p + "q", h, family_.hidden, qw);
    const Values down = linear(p + "kv_a", h, family_.hidden, static_cast<std::int64_t>(width));
    const Values latent = reference::rmsnorm(reference::columns(down, width, 0, rank), weights.at(p + "kv_a_norm"), 1e-5);
    const Values expanded = linear(p + "kv_b", latent, family_.kv_rank, s.heads * (s.plain + s.value)), shared = reference::columns(down, width, rank, turning);
    const double scale = arch.score_scale > 0 ? static_cast<double>(arch.score_scale) : 1 / std::sqrt(static_cast<double>(s.head_dim()));
    Values out;
    for (std::size_t row = 0; row + 1 < b.cu_seqlens.size(); ++row) {
      const auto own = [&](const Values& x) { return reference::rows_of(x, b.cu_seqlens, row, x.size() / b.tokens.size()); };
      const Values inv_freq = arch.rotary.empty() ? Values() : Values(arch.rotary[0].inv_freq);
      reference::append(out, reference::latent_attention(own(q), own(expanded), own(shared), s, inv_freq, arch.rotary_interleaved, scale, static_cast<double>(arch.score_cap)));
    }
    return out;
  }

  /// Of a row of so many tokens.
  static Values frequencies(const RotarySpec& rotary, std::int64_t length) {
    if (length <= rotary.long_from) return rotary.inv_freq;
    if (rotary.dynamic_factor == 0) return rotary.long_inv_freq.empty() ? rotary.inv_freq : rotary.long_inv_freq;
    const auto columns = static_cast<double>(2 * rotary.inv_freq.size());
    const double alpha = rotary.dynamic_factor * static_cast<double>(length) / static_cast<double>(rotary.long_from) - (rotary.dynamic_factor - 1);
    return rotary_rule(rotary.base * std::pow(alpha, columns / (columns - 2)), static_cast<std::int64_t>(columns)).inv_freq;
  }

  struct Lora {
    LoraSpec spec;
    Values a, b;  // [R, in], [out, R]
    Values magnitude;  // [out], of DoRA
    Values norms;      // of W + s B A as it was at first: constants to the gradient, as in peft
    Values& matrix(LoraMatrix m) { return m == LoraMatrix::a ? a : m == LoraMatrix::b ? b : magnitude; }
    const Values& matrix(LoraMatrix m) const { return const_cast<Lora*>(this)->matrix(m); }
    std::vector<LoraMatrix> trained() const {
      std::vector<LoraMatrix> all{LoraMatrix::a, LoraMatrix::b};
      if (spec.dora) all.push_back(LoraMatrix::magnitude);
      return all;
    }
  };

  Arch arch;
  std::vector<LayerSpec> layers;
  std::map<std::string, Values> weights;
  std::map<std::string, Lora> lora;

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape, double scale) {
    std::size_t n = 1;
    for (const std::int64_t extent : shape) n *= static_cast<std::size_t>(extent);
    weights[name] = reference::random_values(n, ++seed_, scale);
    sources_[name] = {"", 0, n * 4, DType::f32, std::move(shape)};
  }
  std::optional<LoraSpec> add_lora(const std::string& name, std::int64_t in, std::int64_t out) {
    const std::int64_t rank = family_.rank(name);
    if (rank == 0) return std::nullopt;
    Lora pair;
    pair.spec = {rank, 1.5f, family_.dropout, module_++};
    // Of one size for any rank.
    const double scale = 0.3 * std::sqrt(3.0 / static_cast<double>(rank));
    pair.a = reference::random_values(static_cast<std::size_t>(rank * in), ++seed_, 0.3);
    pair.b = reference::random_values(static_cast<std::size_t>(rank * out), ++seed_, scale);
    if (family_.dora) add_magnitude(pair, weights.at(name == "head" ? name : name + ".weight"), in, out);
    lora[name] = pair;
    return pair.spec;
  }
  /// Off the norms, so that gains are not 1.
  void add_magnitude(Lora& pair, const Values& weight, std::int64_t in, std::int64_t out) {
    pair.spec.dora = true;
    pair.magnitude = reference::random_values(static_cast<std::size_t>(out), ++seed_, 0.3);
    for (std::int64_t c = 0; c < out; ++c) {
      double sum = 0;
      for (std::int64_t k = 0; k < in; ++k) {
        double value = weight[static_cast<std::size_t>(c * in + k)];
        for (std::int64_t r = 0; r < pair.spec.r; ++r)
          value += static_cast<double>(pair.spec.scale) * pair.b[static_cast<std::size_t>(c * pair.spec.r + r)] * pair.a[static_cast<std::size_t>(r * in + k)];
        sum += value * value;
      }
      pair.norms.push_back(std::sqrt(sum));
      double& magnitude = pair.magnitude[static_cast<std::size_t>(c)];
      magnitude = static_cast<double>(static_cast<float>(std::sqrt(sum) * (1 + magnitude)));
    }
  }
  /// As the engine will hold it: the reference computes with the values of the codes.
  void quantise(const std::string& name, std::int64_t out, std::int64_t in) {
    Values& values = weights.at(name);
    std::vector<float> plain(values.begin(), values.end());
    const PackedState state = quantise_weight(HostTensor{plain.data(), DType::f32, out, in}, family_.hold, 1);
    dequantise_weight(state, plain.data(), DType::f32, 1);
    held_.insert(name);
    plain_[name] = std::exchange(values, Values(plain.begin(), plain.end()));
  }
  void write_file() {
    path_ = "/tmp/pipelora_model_XXXXXX";
    ::close(::mkstemp(path_.data()));
    std::ofstream file(path_, std::ios::binary);
    std::uint64_t offset = 0;
    for (auto& [name, source] : sources_) {
      const auto before = plain_.find(name);
      const Values& from = before == plain_.end() ? weights.at(name) : before->second;
      const std::vector<float> values(from.begin(), from.end());
      file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 4));
      source.path = path_;
      source.offset = offset;
      offset += values.size() * 4;
    }
  }

  Family family_;
  std::set<std::string> held_;       // quantised
  std::map<std::string, Values> plain_;  // their values before
  unsigned seed_ = 100;
  std::uint32_t module_ = 0;
  std::string path_;
  std::map<std::string, TensorSource> sources_;
};

/// Forward through all segments.
inline ForwardResult forward_all(Engine& engine, std::size_t segments, const MicroBatch& batch) {
  ForwardResult result;
  for (std::size_t s = 0; s < segments; ++s) result = engine.forward(s, batch, std::move(result.output));
  return result;
}
inline Buffer backward_all(Engine& engine, std::size_t segments, std::int64_t index) {
  Buffer gradient;
  for (std::size_t s = segments; s-- > 0;) gradient = engine.backward(s, index, std::move(gradient));
  return gradient;
}
inline std::map<std::string, std::vector<float>> gradients(Engine& engine) {
  std::map<std::string, std::vector<float>> out;
  for (const std::string& name : engine.matrix_names()) out[name] = engine.get_matrix(name, MatrixPart::grad);
  return out;
}

}  // namespace testing
