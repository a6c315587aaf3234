// A training step of one engine: LoRA r = 8 on every linear of a Llama shape, random weights, all tokens labelled.
//
// usage: step_bench [dtype=float32] [threads=1] [rows=8] [tokens=128] [steps=6] [dropout=0] [checkpointed=0]
// Prints tokens per second and its share of the limit: the time that the base model's products alone take (forward and
// input gradient of every weight) at the rate oneDNN reaches for these shapes in the same process.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "ops/cpu/gemm.h"
#include "pipelora/ops/cpu.h"
#include "pipelora/model/engine.h"
#include "pipelora/core/host_math.h"
#include "pipelora/core/parallel.h"

using namespace pipelora;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr std::int64_t kHidden = 768, kFfn = 2048, kHeads = 12, kHeadDim = 64, kBlocks = 8, kVocab = 8192, kRank = 8;

Arch bench_arch() {
  Arch arch;
  arch.hidden = kHidden;
  arch.heads = arch.kv_heads = kHeads;
  arch.head_dim = kHeadDim;
  arch.ffn = kFfn;
  arch.vocab = kVocab;
  arch.rms_eps = 1e-5f;
  arch.rotary = {rotary_rule(10000, kHeadDim)};
  return arch;
}

SegmentSpec bench_segment(float dropout, std::int64_t checkpointed) {
  SegmentSpec spec;
  spec.checkpointed_blocks = checkpointed;
  spec.layers.emplace_back(EmbeddingSpec{"embedding"});
  std::uint32_t module = 0;
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    BlockSpec block;
    block.index = b;
    const std::string prefix = std::to_string(b) + ".";
    block.attn_norm = prefix + "attn_norm";
    block.mlp_norm = prefix + "mlp_norm";
    const auto add = [&](Role role, const char* name, std::int64_t in, std::int64_t out) {
      block.linears.push_back({role, prefix + name, in, out, false, LoraSpec{kRank, 4.0f, dropout, module++}});
    };
    add(Role::q, "q", kHidden, kHidden);
    add(Role::k, "k", kHidden, kHidden);
    add(Role::v, "v", kHidden, kHidden);
    add(Role::o, "o", kHidden, kHidden);
    add(Role::gate, "gate", kHidden, kFfn);
    add(Role::up, "up", kHidden, kFfn);
    add(Role::down, "down", kFfn, kHidden);
    spec.layers.emplace_back(std::move(block));
  }
  spec.layers.emplace_back(NormSpec{"norm"});
  spec.layers.emplace_back(HeadSpec{"head", "head", std::nullopt});
  return spec;
}

/// Seconds that forward and input gradient of the base weights take by themselves, on `threads` threads.
double product_seconds(std::int64_t tokens, DType dtype, int threads) {
  struct Shape {
    std::int64_t out, in, times;
  };
  const std::vector<Shape> shapes{{3 * kHidden, kHidden, kBlocks}, {kHidden, kHidden, kBlocks}, {2 * kFfn, kHidden, kBlocks},
                                  {kHidden, kFfn, kBlocks},        {kVocab, kHidden, 1}};
  const std::size_t width = dtype_bytes(dtype);
  const auto largest = static_cast<std::size_t>(std::max(kVocab * kHidden, tokens * kVocab));
  std::vector<char> a(largest * width), b(largest * width);
  std::vector<float> c(largest);
  for (std::vector<char>* v : {&a, &b}) fill_normal(v->data(), dtype, static_cast<std::int64_t>(largest), 1, 1, 0, 0.02f, 2);
  ThreadPool pool(threads);
  std::vector<Gemm> gemms(static_cast<std::size_t>(threads));
  double total = 0;
  for (const Shape& s : shapes)
    for (const bool forward : {true, false}) {
      const std::int64_t k = forward ? s.in : s.out, n = forward ? s.out : s.in;
      const std::int64_t height = 256, cols = 384, down = (tokens + height - 1) / height;
      double best = 1e30;
      for (int repeat = 0; repeat < 3; ++repeat) {
        const double start = seconds();
        pool.run(down * ((n + cols - 1) / cols), [&](std::int64_t task, int thread) {
          const std::int64_t row = task % down * height, rows = std::min(height, tokens - row);
          const std::int64_t col = task / down * cols, count = std::min(cols, n - col);
          const Tensor weight(b.data(), dtype, s.out, s.in);
          gemms[static_cast<std::size_t>(thread)].multiply(Tensor(a.data(), dtype, tokens, k).row_range(row, rows),
                                                           forward ? weight.row_range(col, count) : weight.columns(col, count), forward,
                                                           Tensor(c.data(), DType::f32, tokens, n).row_range(row, rows).columns(col, count));
        });
        best = std::min(best, seconds() - start);
      }
      total += best * static_cast<double>(s.times);
    }
  return total;
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, const char* fallback) { return std::string(argc > i ? argv[i] : fallback); };
  const DType dtype = dtype_from_name(argument(1, "float32"));
  const int threads = std::stoi(argument(2, "1"));
  const std::int64_t rows = std::stoll(argument(3, "8")), length = std::stoll(argument(4, "128"));
  const int steps = std::stoi(argument(5, "6"));
  const float dropout = std::stof(argument(6, "0"));
  const std::int64_t checkpointed = std::stoll(argument(7, "0")), tokens = rows * length;

  char path[] = "/tmp/step_bench_XXXXXX";
  ::close(::mkstemp(path));
  {
    std::vector<float> values(static_cast<std::size_t>(kVocab * kHidden));
    fill_normal(values.data(), DType::f32, kVocab * kHidden, 7, 0, 0, 0.02f, 2);
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 4));
  }
  Engine engine(make_cpu_ops(dtype, threads), bench_arch(), std::size_t{4} << 30);
  engine.add_segment(bench_segment(dropout, checkpointed));
  const auto load = [&](const std::string& name, std::vector<std::int64_t> shape) {
    std::uint64_t bytes = 4;
    for (const std::int64_t extent : shape) bytes *= static_cast<std::uint64_t>(extent);
    engine.load_weight(0, name, {path, 0, bytes, DType::f32, std::move(shape)}, HoldSpec{DType::f32});
  };
  load("embedding", {kVocab, kHidden});
  load("head", {kVocab, kHidden});
  load("norm", {kHidden});
  for (std::int64_t b = 0; b < kBlocks; ++b) {
    const std::string prefix = std::to_string(b) + ".";
    for (const char* name : {"attn_norm", "mlp_norm"}) load(prefix + name, {kHidden});
    for (const char* name : {"q", "k", "v", "o"}) load(prefix + name + std::string(".weight"), {kHidden, kHidden});
    for (const char* name : {"gate", "up"}) load(prefix + name + std::string(".weight"), {kFfn, kHidden});
    load(prefix + "down.weight", {kHidden, kFfn});
  }
  ::unlink(path);
  for (const std::string& name : engine.matrix_names()) {
    if (!name.ends_with(".lora_A.weight")) continue;
    std::vector<float> a = engine.get_matrix(name, MatrixPart::weight);
    fill_normal(a.data(), DType::f32, static_cast<std::int64_t>(a.size()), 9, a.size(), 0, 0.02f, 1);
    engine.set_matrix(name, MatrixPart::weight, a.data(), a.size());
  }

  MicroBatch batch;
  batch.training = true;
  for (std::int64_t r = 0; r <= rows; ++r) batch.cu_seqlens.push_back(static_cast<std::int32_t>(r * length));
  for (std::int64_t r = 0; r < rows; ++r) batch.row_ids.push_back(static_cast<std::int32_t>(r));
  for (std::int64_t t = 0; t < tokens; ++t) {
    batch.tokens.push_back(static_cast<std::int32_t>((t * 2654435761) % kVocab));
    batch.targets.push_back(t % length + 1 < length ? static_cast<std::int32_t>(((t + 1) * 2654435761) % kVocab) : -100);
    batch.weights.push_back(1.0f / static_cast<float>(tokens));
  }
  std::vector<double> times;
  double forward = 0, backward = 0;
  for (int step = 0; step < steps; ++step) {
    batch.step = static_cast<std::uint32_t>(step);
    const double start = seconds();
    const double loss = engine.forward(0, batch, Buffer()).loss_sum;
    const double middle = seconds();
    engine.backward(0, batch.index, Buffer());
    const double end = seconds();
    engine.optimizer_step({step + 1, 1e-4, 1.0, 0.9, 0.999, 1e-8, 0.0});
    times.push_back(seconds() - start);
    forward = middle - start;
    backward = end - middle;
    std::printf("step %d loss %.4f %.0f ms (forward %.0f, backward %.0f)\n", step, loss, times.back() * 1e3, forward * 1e3, backward * 1e3);
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2], limit = product_seconds(tokens, dtype, threads);
  const EngineMemory memory = engine.memory();
  std::printf("%s, %d threads, %ld x %ld: %.0f tokens/s, products alone %.0f tokens/s, share %.2f; arena peak %.1f MB, weights %.1f MB\n",
              dtype_name(dtype), threads, static_cast<long>(rows), static_cast<long>(length), static_cast<double>(tokens) / median,
              static_cast<double>(tokens) / limit, limit / median, static_cast<double>(memory.arena_peak_bytes) / 1e6,
              static_cast<double>(memory.weight_bytes) / 1e6);
}
