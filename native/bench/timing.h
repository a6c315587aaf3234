// What the programs that time single operations share.
#pragma once

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "tests/gpu/cuda_fixture.h"

namespace pipelora::test {

/// Median microseconds of `body`, which enqueues on the engine's stream; timed by the host around a batch of calls.
inline double time_us(Ops& ops, const std::function<void()>& body) {
  for (int i = 0; i < 3; ++i) body();
  ops.finish();
  std::vector<double> times;
  for (int round = 0; round < 5; ++round) {
    constexpr int kCalls = 20;
    timespec a{}, b{};
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < kCalls; ++i) body();
    ops.finish();
    clock_gettime(CLOCK_MONOTONIC, &b);
    times.push_back((static_cast<double>(b.tv_sec - a.tv_sec) * 1e6 + static_cast<double>(b.tv_nsec - a.tv_nsec) * 1e-3) / kCalls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

/// A line: microseconds, and what they make of bytes and FLOPs (0: not told).
inline void report(const std::string& name, double us, double bytes, double flops) {
  std::printf("%-52s %9.1f us", name.c_str(), us);
  if (bytes > 0) std::printf("  %7.0f GB/s", bytes / us * 1e-3);
  if (flops > 0) std::printf("  %7.0f TFLOP/s", flops / us * 1e-6);
  std::printf("\n");
  std::fflush(stdout);
}

/// Numbers that look normal.
inline Buffer noise(Gpu& gpu, DType dtype, std::int64_t rows, std::int64_t cols) {
  static const std::vector<std::uint16_t> pattern = [] {
    std::vector<std::uint16_t> values(1 << 22);
    Random random(1);
    for (auto& v : values) v = to_bf16(static_cast<float>(random.normal())).bits;
    return values;
  }();
  Buffer buffer = gpu.arena->tensor("noise", dtype, rows, cols);
  if (dtype == DType::f32) {
    const Buffer half = noise(gpu, DType::bf16, rows, cols);
    gpu.ops->copy(half, buffer);
    gpu.ops->finish();
    return buffer;
  }
  const Tensor flat(buffer.tensor().data, dtype, 1, rows * cols);
  for (std::int64_t at = 0; at < flat.cols; at += static_cast<std::int64_t>(pattern.size()))
    gpu.ops->upload(flat.columns(at, std::min<std::int64_t>(flat.cols - at, static_cast<std::int64_t>(pattern.size()))), pattern.data());
  gpu.ops->finish();
  return buffer;
}

}  // namespace pipelora::test
