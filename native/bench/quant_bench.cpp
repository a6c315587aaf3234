// Quantising and dequantising in GB/s beside memcpy in the same run, and int8 products in GOP/s.
// GB/s counts bytes read and written. Usage: quant_bench [threads] [mebi-elements]
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "quant/four_bit/double_quant.h"
#include "quant/int8/int8.h"
#include "quant/isa.h"
#include "quant/state.h"

using namespace pipelora::quant;

namespace {

template <class Run>
double best_seconds(const Run& run) {
  double best = 1e30;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void copy(void* to, const void* from, std::size_t bytes, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const auto part = bytes / static_cast<std::size_t>(omp_get_num_threads());
    const auto begin = part * static_cast<std::size_t>(omp_get_thread_num());
    std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, part);
  }
}

void report(const char* what, double bytes, double seconds, double copied) {
  std::printf("  %-34s %7.2f GB/s  %5.1f %% of memcpy\n", what, bytes / seconds / 1e9, 100 * bytes / seconds / copied);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : omp_get_max_threads();
  const std::int64_t rows = (argc > 2 ? std::atoll(argv[2]) : 64) * 256;
  const std::int64_t in = 4096;
  const std::int64_t count = rows * in;
  const auto elements = static_cast<double>(count);
  std::vector<std::uint16_t> source(static_cast<std::size_t>(count));
  std::uint32_t random = 1;
  for (auto& half : source) {
    random = random * 1664525u + 1013904223u;
    half = bf16_from_f32(0.04f * (static_cast<float>(random >> 8) / 16777216.0f - 0.5f));
  }
  std::vector<std::uint16_t> target(source.size());
  std::vector<float> wide(source.size());
  Array<std::uint8_t> packed(packed_bytes(count));
  Array<float> absmax(blocks_of(count, 64));
  Array<std::uint8_t> codes(absmax.size());
  Array<float> nested(nested_blocks_of(absmax.size()));
  Array<std::int8_t> q(count);
  Array<float> scb(rows);

  for (const Isa level : {Isa::scalar, Isa::avx2, Isa::avx512_vnni}) {
    if (level > detected_isa()) continue;
    limit_isa(level);
    std::printf("%s, %d threads, [%lld, %lld] bf16\n",
                level == Isa::scalar ? "scalar" : level == Isa::avx2 ? "AVX2" : "AVX-512", threads,
                static_cast<long long>(rows), static_cast<long long>(in));
    const double bytes16 = elements * 2;
    const double copied =
        2 * bytes16 / best_seconds([&] { copy(target.data(), source.data(), source.size() * 2, threads); });
    std::printf("  %-34s %7.2f GB/s\n", "memcpy", copied / 1e9);
    const double packed_size = elements * (0.5 + 4.0 / 64);
    for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
      const double seconds = best_seconds([&] {
        quantise4(source.data(), Float::bf16, Float::bf16, count, 64, type, packed.data(), absmax.data(), threads);
      });
      report(type == FourBit::nf4 ? "quantise nf4" : "quantise fp4", bytes16 + packed_size, seconds, copied);
    }
    const Config4 doubly{FourBit::nf4, 64, true};
    State4 state;
    const double loading = best_seconds(
        [&] { quantise(source.data(), Float::bf16, Float::bf16, rows, in, doubly, threads, state); });
    report("quantise nf4 + double quant", bytes16 + elements * 0.516, loading, copied);
    const Weight4 weight = state.view();
    report("dequantise nf4 + double quant, bf16", bytes16 + elements * 0.516,
           best_seconds([&] { dequantise(weight, target.data(), Float::bf16, threads); }), copied);
    report("dequantise nf4 + double quant, f32", elements * 4.516,
           best_seconds([&] { dequantise(weight, wide.data(), Float::f32, threads); }), copied);
    const double tiles = best_seconds([&] {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (std::int64_t row = 0; row < rows; row += 32) {
        thread_local std::vector<float> panel(static_cast<std::size_t>(32 * in));
        dequantise_tile(weight, row, row + 32, 0, in, panel.data(), Float::f32, in);
      }
    });
    std::printf("  %-34s %7.2f G elements/s\n", "dequantise panels in cache, f32", elements / tiles / 1e9);
    report("quantise int8", elements * 3, best_seconds([&] {
             quantise_weight8(source.data(), Float::bf16, Float::bf16, rows, in, q.data(), scb.data(), threads);
           }),
           copied);
    if (level == Isa::scalar) continue;
    const std::int64_t tokens = 512;
    const std::int64_t out = std::min<std::int64_t>(rows, 4096);
    std::vector<std::int32_t> sums(static_cast<std::size_t>(tokens * out));
    const double seconds = best_seconds([&] {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (std::int64_t row = 0; row < out; row += 64) {
        int8_product(q.data(), in, tokens, q.data() + row * in, in, 64, in, sums.data() + row, out);
      }
    });
    std::printf("  %-34s %7.1f GOP/s\n", "int8 product 512 x 4096 x 4096",
                2e-9 * static_cast<double>(tokens * out * in) / seconds);
  }
  return 0;
}
