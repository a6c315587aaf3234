// A CPU device with an arena, and values going in and out of it as float64.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <numeric>

#include "pipelora/ops/cpu.h"
#include "pipelora/core/half.h"
#include "pipelora/ops/ops.h"
#include "reference.h"

namespace testing {

using namespace pipelora;
using reference::Values;

class Device {
 public:
  explicit Device(DType compute = DType::f32, int threads = 1, std::size_t bytes = std::size_t{256} << 20)
      : ops(make_cpu_ops(compute, threads)), memory(ops->allocate("a test's arena", bytes, true)), arena(memory->data(), bytes) {
    ops->use_arena(arena);
  }

  Buffer make(std::int64_t rows, std::int64_t cols, DType dtype) { return arena.tensor("a test's tensor", dtype, rows, cols); }
  Buffer make(std::int64_t rows, std::int64_t cols) { return make(rows, cols, ops->compute_dtype()); }
  Buffer put(const Values& values, std::int64_t rows, DType dtype) {
    const auto cols = static_cast<std::int64_t>(values.size()) / rows;
    Buffer buffer = make(rows, cols, dtype);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto x = static_cast<float>(values[i]);
      if (dtype == DType::bf16)
        buffer.tensor().as<bf16>()[i] = to_bf16(x);
      else
        buffer.tensor().as<float>()[i] = x;
    }
    return buffer;
  }
  Buffer put(const Values& values, std::int64_t rows) { return put(values, rows, ops->compute_dtype()); }
  static Values get(const Tensor& t) {
    Values out;
    for (std::int64_t r = 0; r < t.rows; ++r)
      for (std::int64_t c = 0; c < t.cols; ++c)
        out.push_back(t.dtype == DType::bf16 ? static_cast<double>(to_float(t.as<bf16>()[r * t.stride + c]))
                                             : static_cast<double>(t.as<float>()[r * t.stride + c]));
    return out;
  }

  std::unique_ptr<Ops> ops;
  std::unique_ptr<DeviceMemory> memory;
  Arena arena;
};

/// ‖a − b‖ / ‖b‖
inline double distance(const Values& a, const Values& b) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

inline Values pick(const Values& values, const std::vector<std::size_t>& indices) {
  Values out;
  for (const std::size_t i : indices) out.push_back(values[i]);
  return out;
}

/// Rows of the given lengths, numbered from `first_row`, positions from 0.
inline Sequences make_sequences(Ops& ops, const std::vector<std::int32_t>& lengths, std::int32_t first_row = 3) {
  Sequences s;
  s.cu_queries.host.push_back(0);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    s.key_start.host.push_back(s.cu_queries.host.back());
    s.key_length.host.push_back(lengths[i]);
    s.cu_queries.host.push_back(s.cu_queries.host.back() + lengths[i]);
    for (std::int32_t p = 0; p < lengths[i]; ++p) {
      s.position.host.push_back(p);
      s.row.host.push_back(first_row + static_cast<std::int32_t>(i));
    }
  }
  s.tokens = s.cu_queries.host.back();
  for (Indices* indices : {&s.cu_queries, &s.key_start, &s.key_length, &s.position, &s.row}) ops.upload(*indices);
  return s;
}

}  // namespace testing
