// Times whole optimizer steps of QLoRA at a published model's shape with random weights, through the engine itself: one JSON line a
// workload. usage: cuda_step [--model NAME] [--rank R] [--adapters N] [--expert-rank R] [--profile] [--arena-gib N] [--dropout P]
// [--blocks N] [--fp8] [NAME[:KEPT:OFFLOADED[:CACHED]] …]; without names, all workloads. --adapters: so many over one base; a round is a
// step of each, and step_ms, tokens_per_s are a step's share of it. KEPT and OFFLOADED: how many of 32 blocks keep
// their activations on the GPU and on the host; CACHED: how many keep their weights expanded.
#include <cuda_profiler_api.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "pipelora/ops/cuda.h"
#include "pipelora/core/error.h"
#include "pipelora/core/half.h"
#include "pipelora/model/optimizer.h"
#include "pipelora/model/segment.h"
#include "tests/gpu/family_rules.h"
#include "tests/support/in_turn.h"
#include "tests/support/published.h"

using namespace pipelora;
using namespace pipelora::test;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr std::int64_t kBlocks = 32;  // that KEPT, OFFLOADED and CACHED count of

/// What is trained.
struct Subject {
  std::string name = "qwen-7b";
  Published model = qwen7b();
  std::int64_t rank = 8, blocks = model.blocks, expert_rank = 0;
  std::size_t adapters = 1;
  float dropout = 0.1f;
  bool fp8 = false;
};
/// Enough steps that the card's clocks settle.
constexpr int kWarm = 3, kLeast = 10, kMost = 40, kMostSteps = kWarm + kMost;
constexpr double kSeconds = 2.5;

struct Workload {
  std::string name, base;  // nf4, int8, bf16
  std::vector<int> rows;   // lengths of an optimizer step's rows, all in one pass; none: drawn anew each step
  double labelled;         // share of the tokens, at the end of each row
  double limit;            // tokens/s of the products alone
  /// Of kBlocks, how many keep their activations on the GPU, and on the host; the others compute them again.
  std::int64_t kept = kBlocks, offloaded = 0;
  std::int64_t cached = 0;  // blocks of kBlocks whose weights are kept in 16 bit too
};

SegmentSpec whole_model(const Subject& subject, const Workload& work) {
  const std::int64_t blocks = subject.blocks;
  SegmentSpec spec;
  spec.offloaded_blocks = work.offloaded * blocks / kBlocks;
  spec.checkpointed_blocks = blocks - work.kept * blocks / kBlocks - spec.offloaded_blocks;
  spec.cached_blocks = work.cached * blocks / kBlocks;
  spec.layers = published_layers(subject.model, blocks, subject.dropout, subject.rank, true, true, subject.expert_rank);
  return spec;
}

std::vector<int> tutorial_rows(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::lognormal_distribution<double> length(4.15, 0.36);
  std::vector<int> rows;
  for (int i = 0; i < 16; ++i) rows.push_back(std::clamp(static_cast<int>(length(random)), 29, 250));
  return rows;
}

/// What the host must hold: activations as gpuBlockWork (src/plan/memory/gpu-work.ts) counts them, or inputs.
std::size_t host_bytes(const Arch& arch, const SegmentSpec& spec, std::int64_t tokens) {
  if (spec.offloaded_blocks == 0) return 0;
  const std::int64_t whole = 2 * (6 * arch.hidden + 2 * arch.ffn + 64) + 4 * arch.heads, input = 2 * arch.hidden;
  return static_cast<std::size_t>((spec.offloaded_blocks * whole + spec.checkpointed_blocks * input) * (tokens + 1));
}

/// Numbers that look normal with the given deviation, in bfloat16.
std::vector<std::uint16_t> noise(std::size_t count, float deviation) {
  std::vector<std::uint16_t> values(count);
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      std::uint64_t state = 0x9E3779B97F4A7C15ull * (t + 1);
      for (std::size_t i = count * t / threads; i < count * (t + 1) / threads; ++i) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        float sum = -2;
        for (int k = 0; k < 4; ++k) sum += static_cast<float>(state >> (16 * k) & 0xFFFF) / 65536.0f;
        values[i] = to_bf16(sum * 1.732f * deviation).bits;
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
  return values;
}

std::int64_t sum(const std::vector<int>& rows) { return std::accumulate(rows.begin(), rows.end(), std::int64_t{0}); }

struct Model {
  Arch arch;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<DeviceMemory> arena_memory;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<RopeTables> rope;
  std::unique_ptr<Segment> segment;
  std::vector<std::vector<NamedMatrix*>> matrices;  // by adapter
  double load_seconds = 0, reserve_seconds = 0;

  Model(const Workload& work, std::size_t arena_bytes, const Subject& subject, const std::vector<std::uint16_t>& source) : arch(subject.model.arch) {
    ops = make_cuda_ops(0, DType::bf16);
    arena_memory = ops->allocate("the arena", arena_bytes, false);
    arena = std::make_unique<Arena>(arena_memory->data(), arena_bytes);
    ops->use_arena(*arena);
    rope = std::make_unique<RopeTables>(*ops, arch);
    const SegmentSpec spec = whole_model(subject, work);
    const auto reserve = Clock::now();
    std::int64_t longest = 0;
    for (std::uint32_t step = 1; work.rows.empty() && step <= kMostSteps; ++step) longest = std::max(longest, sum(tutorial_rows(step)));
    ops->reserve_host(host_bytes(arch, spec, std::max(longest, sum(work.rows))));
    reserve_seconds = seconds_since(reserve);
    segment = std::make_unique<Segment>(*ops, *arena, *rope, arch, spec);
    for (std::size_t adapter = 1; adapter < subject.adapters; ++adapter) segment->add_adapter(spec.layers);
    HoldSpec plain;
    plain.dtype = DType::bf16;
    HoldSpec linear = plain;
    if (work.base == "nf4") {
      linear.quantisation = Quantisation::nf4;
      linear.double_quant = true;
    } else if (work.base == "int8") {
      linear.quantisation = Quantisation::int8;
    }
    linear.fp8 = subject.fp8;
    const auto start = Clock::now();
    std::size_t offset = 0;
    const auto load = [&](const std::string& name, std::int64_t rows, std::int64_t cols, const HoldSpec& hold) {
      const std::size_t count = static_cast<std::size_t>(std::max<std::int64_t>(1, rows) * cols);
      if (offset + count > source.size()) offset = 0;
      const std::vector<std::int64_t> shape = rows == 0 ? std::vector<std::int64_t>{cols} : std::vector<std::int64_t>{rows, cols};
      segment->slots().load(name, shape, {source.data() + offset, DType::bf16, std::max<std::int64_t>(1, rows), cols}, hold);
      offset += count;
    };
    const std::vector<float> ones(static_cast<std::size_t>(std::max(arch.hidden, arch.head_dim)), 1 - arch.norm_offset);
    const auto load_norm = [&](const std::string& name, std::int64_t size) { segment->slots().load(name, {size}, {ones.data(), DType::f32, 1, size}, plain); };
    load("wte", arch.vocab, arch.hidden, plain);
    for (const LayerSpec& layer : spec.layers) {
      const auto* block = std::get_if<BlockSpec>(&layer);
      if (block == nullptr) continue;
      for (const auto& [name, size] : norms_of(*block, arch)) load_norm(name, size);
      for (const LinearSpec& l : block->linears) {
        load(l.name + ".weight", l.out, l.in, linear);
        if (l.bias) load(l.name + ".bias", 0, l.out, plain);
      }
      load_mixture(*block, arch.heads, plain, linear, [&](const std::string& name, const std::vector<std::int64_t>& shape, double, double, const HoldSpec& hold) {
        load(name, shape.size() > 1 ? shape.front() : 0, shape.back(), hold);
      });
    }
    load_norm("ln_f", arch.hidden);
    if (!subject.model.tied) load("lm_head", arch.vocab, arch.hidden, plain);
    ops->finish();
    load_seconds = seconds_since(start);
    for (std::size_t adapter = 0; adapter < subject.adapters; ++adapter) matrices.push_back(segment->matrices(adapter));
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 0.01f);
    std::size_t most = 0;
    for (const NamedMatrix* matrix : matrices.front()) most = std::max(most, static_cast<std::size_t>(matrix->part(MatrixPart::weight).size()));
    std::vector<float> pool(most);
    for (float& v : pool) v = normal(random);
    for (const auto& own : matrices)
      for (NamedMatrix* matrix : own)
        matrix->set(*ops, MatrixPart::weight, pool.data(), static_cast<std::size_t>(matrix->part(MatrixPart::weight).size()));
    ops->finish();
    arena->reset_peak();
  }
};

MicroBatch batch_of(const std::vector<int>& rows, double labelled, std::uint32_t step, std::int64_t vocab) {
  MicroBatch micro;
  micro.index = step;
  micro.step = step;
  micro.seed = 42;
  micro.training = true;
  micro.cu_seqlens.push_back(0);
  std::mt19937 random(step + 1);
  std::int64_t labels = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    micro.row_ids.push_back(static_cast<std::int32_t>(r));
    for (int t = 0; t < rows[r]; ++t) {
      micro.tokens.push_back(static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab)));
      const bool label = t >= rows[r] * (1 - labelled) && t + 1 < rows[r];
      micro.targets.push_back(label ? static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab)) : -100);
      labels += label;
    }
    micro.cu_seqlens.push_back(static_cast<std::int32_t>(micro.tokens.size()));
  }
  micro.weights.assign(micro.tokens.size(), 1.0f / static_cast<float>(std::max<std::int64_t>(1, labels)));
  return micro;
}

void run(const Workload& work, std::size_t arena_bytes, const Subject& subject, bool profile, const std::vector<std::uint16_t>& source) {
  const std::int64_t blocks = subject.blocks;
  std::size_t free_before = 0, free_after = 0, total = 0;
  cudaMemGetInfo(&free_before, &total);
  Model model(work, arena_bytes, subject, source);
  cudaMemGetInfo(&free_after, &total);
  std::vector<double> times, tokens_per_s;
  double first_loss = 0, last_loss = 0, issue = 0;
  std::int64_t tokens = 0;
  const auto begin = Clock::now();
  for (int step = 0;; ++step) {
    const auto timed = static_cast<int>(times.size());
    if (profile ? timed == 1 : timed == kMost || (timed >= kLeast && seconds_since(begin) > kSeconds)) break;
    const std::vector<int> rows = work.rows.empty() ? tutorial_rows(static_cast<std::uint32_t>(step + 1)) : work.rows;
    MicroBatch micro = batch_of(rows, work.labelled, static_cast<std::uint32_t>(step), model.arch.vocab);
    if (profile && step == kWarm) cudaProfilerStart();
    const auto start = Clock::now();
    double issued = 0;
    for (std::size_t adapter = 0; adapter < subject.adapters; ++adapter) {
      micro.adapter = adapter;
      const ForwardResult result = model.segment->forward(micro, Buffer());
      const auto loss_known = Clock::now();
      model.segment->backward(micro.index, Buffer());
      issued += seconds_since(loss_known) / static_cast<double>(subject.adapters);
      if (step == 0) first_loss = result.loss_sum;
      last_loss = result.loss_sum;
    }
    // The round's last update waits for nothing but its own gradients' norm.
    for (const std::vector<NamedMatrix*>& own : model.matrices) {
      double norm = 0;
      for (const double square : grad_squares(*model.ops, own)) norm += square;
      AdamSettings settings;
      settings.step = step + 1;
      settings.learning_rate = 1e-4;
      settings.grad_scale = std::min(1.0, 1.0 / std::sqrt(norm));
      adamw_step(*model.ops, own, settings);
    }
    model.ops->finish();
    const double elapsed = seconds_since(start) / static_cast<double>(subject.adapters);
    if (profile && step == kWarm) cudaProfilerStop();
    tokens = static_cast<std::int64_t>(micro.tokens.size());
    if (step < kWarm) continue;
    times.push_back(elapsed * 1e3);
    tokens_per_s.push_back(static_cast<double>(tokens) / elapsed);
    issue += issued * 1e3;
  }
  std::sort(times.begin(), times.end());
  std::sort(tokens_per_s.begin(), tokens_per_s.end());
  std::size_t lora = 0;
  for (const std::vector<NamedMatrix*>& own : model.matrices)
    for (const NamedMatrix* matrix : own) lora += kMatrixParts * matrix->part(MatrixPart::weight).bytes();
  const double gib = 1.0 / (1 << 30);
  // Everything this process took from the card, the arena counted by what was used of it.
  const double all = static_cast<double>(free_before - free_after - arena_bytes + model.arena->peak()) * gib;
  const double rate = tokens_per_s[tokens_per_s.size() / 2];
  std::printf("{\"model\": \"%s\", \"fp8\": %s, \"rank\": %lld, \"adapters\": %zu, \"workload\": \"%s\", \"base\": \"%s\", \"kept_blocks\": %lld, \"offloaded_blocks\": %lld, \"cached_blocks\": %lld, \"dropout\": %.2f, \"tokens\": %lld, \"step_ms\": %.2f, "
              "\"backward_issue_ms\": %.2f, \"tokens_per_s\": %.0f, \"share_of_limit\": %.3f, \"weights_GiB\": %.2f, \"lora_GiB\": %.2f, "
              "\"arena_peak_GiB\": %.2f, \"peak_GiB\": %.2f, \"load_s\": %.2f, \"reserve_host_s\": %.2f, \"first_loss\": %.4f, \"last_loss\": %.4f}\n",
              subject.name.c_str(), subject.fp8 ? "true" : "false", static_cast<long long>(subject.rank), subject.adapters, work.name.c_str(), work.base.c_str(), static_cast<long long>(work.kept * blocks / kBlocks),
              static_cast<long long>(work.offloaded * blocks / kBlocks), static_cast<long long>(work.cached * blocks / kBlocks),
              static_cast<double>(subject.dropout),
              static_cast<long long>(tokens), times[times.size() / 2], issue / static_cast<double>(times.size()), rate, rate / work.limit,
              static_cast<double>(model.segment->weight_bytes()) * gib, static_cast<double>(lora) * gib,
              static_cast<double>(model.arena->peak()) * gib, all, model.load_seconds, model.reserve_seconds, first_loss, last_loss);
  std::fflush(stdout);
}

/// Tokens a second of sequences that grow together, behind a short prompt and a long one; the next token is chosen on the GPU.
void decode(std::size_t arena_bytes, Subject subject, std::int64_t sequences, bool profile, const std::vector<std::uint16_t>& source) {
  subject.dropout = 0;
  const Workload work{"decode", "nf4", {}, 0, 800};
  Model model(work, arena_bytes, subject, source);
  constexpr std::int64_t kFirst = 8, kTimed = 100;
  const auto vocab = static_cast<std::int32_t>(model.arch.vocab);
  for (const std::int32_t context : {64, 4096}) {
    const std::int64_t capacity = context + kFirst + kTimed;
    KvCache cache(*model.ops, sequences, sequences * capacity, model.segment->cache_shapes());
    std::vector<std::int32_t> tokens, cu{0};
    for (std::int64_t s = 0; s < sequences; ++s) {
      for (std::int32_t i = 0; i < context; ++i) tokens.push_back((i * 37 + static_cast<std::int32_t>(s) + 1) % vocab);
      cu.push_back(static_cast<std::int32_t>(tokens.size()));
    }
    const std::vector<std::int32_t> prompts = tokens;
    InTurn turn(static_cast<std::size_t>(sequences), capacity);
    double prefill = 0;
    // The prompts twice: the first time loads kernels.
    for (int i = 0; i < 2; ++i) {
      model.ops->finish();
      const auto before = Clock::now();
      model.segment->infer(cache, 0, InTurn(static_cast<std::size_t>(sequences), capacity).next(cu), prompts, Buffer());
      model.ops->finish();
      prefill = seconds_since(before);
    }
    auto start = Clock::now();
    for (std::int64_t i = 0; i < kFirst + kTimed; ++i) {
      if (i == kFirst) start = Clock::now();
      if (profile && i == kFirst) cudaProfilerStart();
      if (profile && i == kFirst + 1) cudaProfilerStop();
      const Buffer out = model.segment->infer(cache, 0, turn.next(cu), tokens, Buffer());
      tokens.clear();
      for (std::int64_t s = 0; s < sequences; ++s) {
        Sampling greedy;
        greedy.logits = out.tensor().row_range(s, 1);
        greedy.top_k = 1;
        tokens.push_back(model.ops->sample(greedy));
        cu[static_cast<std::size_t>(s) + 1] = static_cast<std::int32_t>(s) + 1;
      }
    }
    const double rate = static_cast<double>(kTimed) / seconds_since(start);
    std::printf("{\"model\": \"%s\", \"workload\": \"decode-%lld\", \"base\": \"nf4\", \"context\": %d, \"prefill_ms\": %.2f, \"ms_per_token\": %.3f, \"tokens_per_s\": %.1f}\n",
                subject.name.c_str(), static_cast<long long>(sequences), context, prefill * 1e3, 1e3 / rate, rate * static_cast<double>(sequences));
    std::fflush(stdout);
  }
}

/// Of "decode-N", or 0.
std::int64_t decoded_sequences(const std::string& name) {
  constexpr std::string_view kBegin = "decode-";
  return name.starts_with(kBegin) ? std::atoll(name.c_str() + kBegin.size()) : 0;
}

/// A message as a JSON string.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '\n') out += "\\n";
    else if (c == '"' || c == '\\') (out += '\\') += c;
    else out += c;
  }
  return out + "\"";
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Workload> all{
      // Blocks kept, on the host and cached: as a plan with --gradient-checkpointing auto and --weight-cache auto does in about
      // the memory that is each row's target.
      {"tutorial-on", "nf4", {}, 0.39, 17900, 7, 9},
      {"tutorial-off", "nf4", {}, 0.39, 26000, 27, 5},
      {"8x384-on", "nf4", std::vector<int>(8, 384), 1, 17900, 7, 9},
      {"8x384-off", "nf4", std::vector<int>(8, 384), 1, 26000, kBlocks, 0, 7},
      {"4x2048-on", "nf4", std::vector<int>(4, 2048), 1, 17500, 0, 9},
      {"4x2048-off", "nf4", std::vector<int>(4, 2048), 1, 25500, kBlocks, 0, 11},
      {"1x8192-on", "nf4", {8192}, 1, 16500, 2, 10},
      {"int8-8x384-on", "int8", std::vector<int>(8, 384), 1, 17900, 0},
      {"bf16-8x384-off", "bf16", std::vector<int>(8, 384), 1, 26000},
      {"1x4096-off", "nf4", {4096}, 1, 23600, kBlocks, 0},
      {"bf16-1x4096-off", "bf16", {4096}, 1, 23600},
      {"2x4096-off", "nf4", {4096, 4096}, 1, 23600, kBlocks, 0, 11},
      {"bf16-2x4096-off", "bf16", {4096, 4096}, 1, 23600},
      {"cached-tutorial-off", "nf4", {}, 0.39, 26000, kBlocks, 0, kBlocks},
      {"cached-8x384-off", "nf4", std::vector<int>(8, 384), 1, 26000, kBlocks, 0, kBlocks},
  };
  bool profile = false;
  double arena_gib = 40;
  Subject subject;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const bool more = i + 1 < argc;
    if (flag == "--profile") profile = true;
    else if (flag == "--arena-gib" && more) arena_gib = std::stod(argv[++i]);
    else if (flag == "--dropout" && more) subject.dropout = std::stof(argv[++i]);
    else if (flag == "--fp8") subject.fp8 = true;
    else if (flag == "--blocks" && more) subject.blocks = std::stoll(argv[++i]);
    else if (flag == "--expert-rank" && more) subject.expert_rank = std::stoll(argv[++i]);
    else if (flag == "--adapters" && more) {
      const long long count = std::stoll(argv[++i]);
      if (count < 1) {
        std::fprintf(stderr, "--adapters: expected at least 1, got %lld\n", count);
        return 2;
      }
      subject.adapters = static_cast<std::size_t>(count);
    } else if (flag == "--rank" && more) subject.rank = std::stoll(argv[++i]);
    else if (flag == "--model" && more) {
      subject.name = argv[++i];
      const std::vector<std::pair<std::string, Published>> models{{"qwen-7b", qwen7b()}, {"qwen2.5-7b", qwen25_7b()}, {"llama-3-8b", llama3_8b()},
                                                                  {"llama-3-70b", llama3_70b()}, {"qwen2.5-32b", qwen25_32b()},
                                                                  {"phi-4", phi4()}, {"gemma-3-12b", gemma3_12b()}, {"qwen3-30b-a3b", qwen3_30b_a3b()}};
      const auto found = std::find_if(models.begin(), models.end(), [&](const auto& one) { return one.first == subject.name; });
      if (found == models.end()) {
        std::fprintf(stderr, "no model is called %s. Expected one of:", subject.name.c_str());
        for (const auto& [name, model] : models) std::fprintf(stderr, " %s", name.c_str());
        std::fprintf(stderr, "\n");
        return 2;
      }
      subject.model = found->second;
      subject.blocks = subject.model.blocks;
    }
    else names.push_back(flag);
  }
  if (const std::string reason = cuda_info().reason; !reason.empty()) {
    std::printf("{\"error\": \"%s\", \"message\": %s}\n", kDeviceUnavailable, quoted("a GPU is needed: " + reason).c_str());
    return 1;
  }
  const Arch& arch = subject.model.arch;
  const std::vector<std::uint16_t> source = noise(static_cast<std::size_t>(arch.vocab * arch.hidden), 0.02f);
  const auto arena_bytes = static_cast<std::size_t>(arena_gib * (1 << 30));
  std::vector<Workload> chosen;
  for (const std::string& name : names) {
    const std::size_t colon = name.find(':');
    const auto found = std::find_if(all.begin(), all.end(), [&](const Workload& work) { return work.name == name.substr(0, colon); });
    if (found == all.end() && decoded_sequences(name) > 0) continue;
    Workload work = found == all.end() ? Workload() : *found;
    if (found == all.end() || (colon != std::string::npos && std::sscanf(name.c_str() + colon, ":%ld:%ld:%ld", &work.kept, &work.offloaded, &work.cached) < 2) ||
        work.kept < 0 || work.offloaded < 0 || work.kept + work.offloaded > kBlocks || work.cached < 0 || work.cached > kBlocks) {
      std::fprintf(stderr, "no workload is called %s, or its blocks are more than there are\n", name.c_str());
      return 2;
    }
    chosen.push_back(work);
  }
  int failed = 0;
  const auto attempt = [&](const std::string& name, const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      std::printf("{\"workload\": \"%s\", \"error\": \"%s\", \"message\": %s}\n", name.c_str(), error.code(), quoted(error.what()).c_str());
      std::fflush(stdout);
      ++failed;
    }
  };
  for (const Workload& work : names.empty() ? all : chosen) attempt(work.name, [&] { run(work, arena_bytes, subject, profile, source); });
  if (names.empty()) names = {"decode-1", "decode-8"};
  for (const std::string& name : names)
    if (const std::int64_t sequences = decoded_sequences(name); sequences > 0)
      attempt(name, [&] { decode(arena_bytes, subject, sequences, profile, source); });
  return failed;
}
