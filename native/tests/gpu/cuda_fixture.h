// What the GPU's tests share: an engine's Ops with an arena, random tensors on both sides, and the comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pipelora/core/arena.h"
#include "pipelora/ops/cuda.h"
#include "pipelora/core/half.h"
#include "pipelora/ops/ops.h"

namespace pipelora::test {

using Values = std::vector<double>;

inline double rounded(double x, DType dtype) {
  const float f = static_cast<float>(x);
  if (dtype == DType::bf16) return static_cast<double>(to_float(to_bf16(f)));
  if (dtype == DType::f16) return static_cast<double>(to_float(to_f16(f)));
  return static_cast<double>(f);
}

/// Numbers that look normal, the same every time.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 1) {}
  double uniform() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }
  double normal() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += uniform();
    return (sum - 2.0) * std::sqrt(3.0);
  }

 private:
  std::uint64_t state_;
};

inline Values random_values(std::int64_t count, double scale, DType dtype, std::uint64_t seed) {
  Random random(seed);
  Values values(static_cast<std::size_t>(count));
  for (double& v : values) v = rounded(random.normal() * scale, dtype);
  return values;
}

/// A GPU with an arena.
struct Gpu {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<DeviceMemory> memory;
  std::unique_ptr<Arena> arena;

  Gpu(DType compute, std::size_t bytes) : ops(make_cuda_ops(0, compute)) {
    memory = ops->allocate("the arena", bytes, false);
    arena = std::make_unique<Arena>(memory->data(), bytes);
    ops->use_arena(*arena);
  }

  /// [rows, cols] inside a wider matrix where `extra` columns stand behind each row; poisoned first.
  struct Held {
    Buffer buffer;
    Tensor view;
    operator const Tensor&() const { return view; }
  };
  Held empty(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t extra = 0) {
    Held held;
    held.buffer = arena->tensor("a test's tensor", dtype, rows, cols + extra);
    held.view = held.buffer.tensor().columns(0, cols);
    std::vector<std::uint8_t> poison(held.buffer.tensor().bytes(), 0xFF);  // NaN in every floating dtype
    ops->upload(held.buffer.tensor(), poison.data());
    return held;
  }
  Held put(const Values& values, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t extra = 0) {
    Held held = empty(dtype, rows, cols, extra);
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * cols) * dtype_bytes(dtype));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float f = static_cast<float>(values[i]);
      if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = f;
      if (dtype == DType::bf16) reinterpret_cast<bf16*>(bytes.data())[i] = to_bf16(f);
      if (dtype == DType::f16) reinterpret_cast<f16*>(bytes.data())[i] = to_f16(f);
      if (dtype == DType::i32) reinterpret_cast<std::int32_t*>(bytes.data())[i] = static_cast<std::int32_t>(values[i]);
    }
    ops->upload(held.view, bytes.data());
    return held;
  }
  Values get(const Tensor& tensor) {
    std::vector<std::uint8_t> bytes(tensor.bytes());
    ops->download(tensor, bytes.data());
    Values values(static_cast<std::size_t>(tensor.size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (tensor.dtype == DType::f32) values[i] = static_cast<double>(reinterpret_cast<float*>(bytes.data())[i]);
      if (tensor.dtype == DType::bf16) values[i] = static_cast<double>(to_float(reinterpret_cast<bf16*>(bytes.data())[i]));
      if (tensor.dtype == DType::f16) values[i] = static_cast<double>(to_float(reinterpret_cast<f16*>(bytes.data())[i]));
      if (tensor.dtype == DType::i32) values[i] = reinterpret_cast<std::int32_t*>(bytes.data())[i];
    }
    return values;
  }
  void upload(Indices& indices) {
    indices.storage = arena->tensor("a test's indices", DType::i32, 1, indices.size());
    ops->upload(indices);
  }
  /// `past` keys stand before each sequence's queries, in a cache of `capacity` rows a sequence (0: no cache).
  std::unique_ptr<Sequences> sequences(const std::vector<int>& lengths, const std::vector<int>& past = {}, int capacity = 0) {
    auto s = std::make_unique<Sequences>();
    s->cu_queries.host.push_back(0);
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      const int before = past.empty() ? 0 : past[i];
      s->key_start.host.push_back(capacity > 0 ? static_cast<int>(i) * capacity : s->cu_queries.host.back());
      s->key_length.host.push_back(before + lengths[i]);
      for (int t = 0; t < lengths[i]; ++t) {
        s->position.host.push_back(before + t);
        s->row.host.push_back(static_cast<int>(i) + 3);
      }
      s->cu_queries.host.push_back(s->cu_queries.host.back() + lengths[i]);
    }
    s->tokens = s->cu_queries.host.back();
    for (Indices* indices : {&s->cu_queries, &s->key_start, &s->key_length, &s->position, &s->row}) upload(*indices);
    return s;
  }
};

inline int failures = 0;

/// ‖a - b‖ / ‖b‖, printed; a failure where it exceeds the limit or is no number.
inline void compare(const std::string& what, const Values& got, const Values& expected, double limit) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  // What ought to be zero up to rounding is measured against numbers of about one.
  const double error = std::sqrt(difference / std::max(norm, 1e-8 * static_cast<double>(expected.size())));
  const bool good = got.size() == expected.size() && error <= limit;
  if (!good) ++failures;
  std::printf("%-9s %-64s error %.2e limit %.0e\n", good ? "ok" : "FAILED", what.c_str(), error, limit);
}
inline void require(const std::string& what, bool good) {
  if (!good) ++failures;
  std::printf("%-9s %s\n", good ? "ok" : "FAILED", what.c_str());
}

inline double limit_of(DType dtype) { return dtype == DType::f32 ? 1e-4 : 1e-2; }

inline int finish() {
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}

/// What a check is called.
inline std::string label(const char* op, DType dtype, const std::string& shape) {
  return std::string(op) + " " + dtype_name(dtype) + " " + shape;
}

/// What a program's arguments ask for: number types by name (float32, bfloat16, float16; none: all three), and "small": shapes
/// small enough for a checker that runs every instruction under watch.
struct Asked {
  bool small = false;
  std::vector<DType> dtypes;

  Asked(int argc, char** argv) {
    const auto has = [&](std::string_view word) { return std::find(argv + 1, argv + argc, word) != argv + argc; };
    small = has("small");
    const std::vector<DType> all{DType::f32, DType::bf16, DType::f16};
    std::copy_if(all.begin(), all.end(), std::back_inserter(dtypes), [&](DType dtype) { return has(dtype_name(dtype)); });
    if (dtypes.empty()) dtypes = all;
  }
};

}  // namespace pipelora::test
