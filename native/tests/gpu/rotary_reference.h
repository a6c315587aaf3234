// Rotary over heads, with a norm before it or without, in float64; and a table and rows to try it with.
#pragma once

#include "tests/gpu/cuda_fixture.h"

namespace pipelora::test {

/// One head of e columns.
struct HeadMath {
  std::int64_t e;
  const double* norm;  // or null
  double eps;

  void forward(const double* x, const double* cosine, const double* sine, double scale, double* y) const {
    const std::int64_t half = e / 2;
    const double r = inverse(x);
    for (std::int64_t c = 0; c < half; ++c) {
      const double a = x[c] * (norm ? r * norm[c] : 1), b = x[half + c] * (norm ? r * norm[half + c] : 1);
      y[c] = (a * cosine[c] - b * sine[c]) * scale;
      y[half + c] = (b * cosine[c] + a * sine[c]) * scale;
    }
  }
  void backward(const double* x, const double* dy, const double* cosine, const double* sine, double* dx) const {
    const std::int64_t half = e / 2;
    Values turned(static_cast<std::size_t>(e));
    for (std::int64_t c = 0; c < half; ++c) {
      turned[static_cast<std::size_t>(c)] = dy[c] * cosine[c] + dy[half + c] * sine[c];
      turned[static_cast<std::size_t>(half + c)] = dy[half + c] * cosine[c] - dy[c] * sine[c];
    }
    const double r = inverse(x);
    double dot = 0;
    for (std::int64_t c = 0; c < e; ++c) dot += norm ? norm[c] * turned[static_cast<std::size_t>(c)] * x[c] : 0;
    for (std::int64_t c = 0; c < e; ++c) {
      const double t = turned[static_cast<std::size_t>(c)];
      dx[c] = norm ? r * norm[c] * t - x[c] * r * r * r * dot / static_cast<double>(e) : t;
    }
  }
  double inverse(const double* x) const {
    double squares = 0;
    for (std::int64_t c = 0; c < e; ++c) squares += x[c] * x[c];
    return 1 / std::sqrt(squares / static_cast<double>(e) + eps);
  }
};

inline constexpr std::int64_t kPositions = 50;

/// [kPositions, e]
inline Values rotary_table(std::int64_t e) {
  Values table(static_cast<std::size_t>(kPositions * e));
  for (std::int64_t p = 0; p < kPositions; ++p)
    for (std::int64_t c = 0; c < e / 2; ++c) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(c) / static_cast<double>(e));
      table[static_cast<std::size_t>(p * e + c)] = rounded(std::cos(angle), DType::f32);
      table[static_cast<std::size_t>(p * e + e / 2 + c)] = rounded(std::sin(angle), DType::f32);
    }
  return table;
}
inline Indices rotary_rows(Gpu& gpu, std::int64_t tokens) {
  Indices rows;
  for (std::int64_t t = 0; t < tokens; ++t) rows.host.push_back(static_cast<std::int32_t>(t * 7 % kPositions));
  gpu.upload(rows);
  return rows;
}

}  // namespace pipelora::test
