#include "pipelora/core/low_rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipelora/core/error.h"
#include "pipelora/core/host_math.h"
#include "pipelora/core/parallel.h"
#include "pipelora/core/tensor.h"

namespace pipelora {

namespace {

using Vector = std::vector<double>;
using Vectors = std::vector<Vector>;

constexpr std::int64_t kRows = 16, kColumns = 512;
constexpr std::size_t kMostBasis = 480;
/// Of W v - s u, in units of the largest singular value.
constexpr double kResidual = 1e-7;

double dot(const Vector& a, const Vector& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

/// A weight [out, in] and its products with a few vectors. Every sum has one order.
class Matrix {
 public:
  Matrix(const float* values, std::int64_t out, std::int64_t in, int threads) : values_(values), out_(out), in_(in), pool_(threads) {}

  /// W x of each.
  Vectors times(const Vectors& x) {
    Vectors y(x.size(), Vector(static_cast<std::size_t>(out_)));
    pool_.run((out_ + kRows - 1) / kRows, [&](std::int64_t task, int) {
      for (std::int64_t row = task * kRows; row < std::min(out_, (task + 1) * kRows); ++row) {
        const float* w = values_ + row * in_;
        for (std::size_t k = 0; k < x.size(); ++k) {
          double sum = 0;
          for (std::int64_t c = 0; c < in_; ++c) sum += static_cast<double>(w[c]) * x[k][static_cast<std::size_t>(c)];
          y[k][static_cast<std::size_t>(row)] = sum;
        }
      }
    });
    return y;
  }

  /// Wᵀ y of each.
  Vectors transposed_times(const Vectors& y) {
    Vectors x(y.size(), Vector(static_cast<std::size_t>(in_)));
    pool_.run((in_ + kColumns - 1) / kColumns, [&](std::int64_t task, int) {
      const std::int64_t first = task * kColumns, end = std::min(in_, first + kColumns);
      for (std::int64_t row = 0; row < out_; ++row) {
        const float* w = values_ + row * in_;
        for (std::size_t k = 0; k < y.size(); ++k) {
          const double factor = y[k][static_cast<std::size_t>(row)];
          for (std::int64_t c = first; c < end; ++c) x[k][static_cast<std::size_t>(c)] += factor * static_cast<double>(w[c]);
        }
      }
    });
    return x;
  }

  Vectors random(std::int64_t count, std::uint64_t seed) const {
    std::vector<float> values(static_cast<std::size_t>(count * in_));
    fill_normal(values.data(), DType::f32, count * in_, seed, 0, 0, 1.0f, 1);
    Vectors x;
    for (std::int64_t k = 0; k < count; ++k) x.emplace_back(values.begin() + k * in_, values.begin() + (k + 1) * in_);
    return x;
  }

 private:
  const float* values_;
  std::int64_t out_, in_;
  ThreadPool pool_;
};

/// Adds what is new in `y` to an orthonormal basis (Gram-Schmidt, twice). Gives the vectors added.
Vectors extend(Vectors& basis, Vectors y, std::size_t most) {
  Vectors added;
  for (Vector& v : y) {
    if (basis.size() >= most) break;
    const double before = std::sqrt(dot(v, v));
    for (int pass = 0; pass < 2; ++pass)
      for (const Vector& q : basis) {
        const double share = dot(q, v);
        for (std::size_t i = 0; i < v.size(); ++i) v[i] -= share * q[i];
      }
    const double norm = std::sqrt(dot(v, v));
    if (!(norm > 1e-10 * before)) continue;
    for (double& value : v) value /= norm;
    basis.push_back(v);
    added.push_back(v);
  }
  return added;
}

/// Eigenvalues of a symmetric matrix [n, n], falling, and its eigenvectors as rows (cyclic Jacobi).
struct Eigen {
  Vector values;
  Vectors vectors;
};
Eigen eigen(Vectors a) {
  const std::size_t n = a.size();
  Vectors v(n, Vector(n, 0.0));
  for (std::size_t i = 0; i < n; ++i) v[i][i] = 1;
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, all = 0;
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < n; ++j) (i == j ? all : off) += a[i][j] * a[i][j];
    if (off <= 1e-30 * all) break;
    for (std::size_t p = 0; p + 1 < n; ++p)
      for (std::size_t q = p + 1; q < n; ++q) {
        if (a[p][q] == 0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (std::size_t k = 0; k < n; ++k) {
          const double x = a[k][p], y = a[k][q];
          a[k][p] = c * x - s * y;
          a[k][q] = s * x + c * y;
        }
        for (std::size_t k = 0; k < n; ++k) {
          const double x = a[p][k], y = a[q][k];
          a[p][k] = c * x - s * y;
          a[q][k] = s * x + c * y;
          const double x1 = v[p][k], y1 = v[q][k];
          v[p][k] = c * x1 - s * y1;
          v[q][k] = s * x1 + c * y1;
        }
      }
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) { return a[x][x] > a[y][y]; });
  Eigen found;
  for (const std::size_t i : order) {
    found.values.push_back(a[i][i]);
    found.vectors.push_back(v[i]);
  }
  return found;
}

Vector combined(const Vectors& of, const Vector& shares) {
  Vector sum(of.front().size(), 0.0);
  for (std::size_t k = 0; k < of.size(); ++k)
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += shares[k] * of[k][i];
  return sum;
}

/// Singular triples of a matrix from an orthonormal basis of columns and its products basisᵀ W.
struct Triples {
  Vectors left, right;
  Vector values;
};
Triples triples(const Vectors& basis, const Vectors& products, std::int64_t rank) {
  const std::size_t n = basis.size();
  Vectors gram(n, Vector(n));
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) gram[i][j] = gram[j][i] = dot(products[i], products[j]);
  const Eigen found = eigen(std::move(gram));
  Triples result;
  for (std::size_t i = 0; i < static_cast<std::size_t>(rank); ++i) {
    const bool there = i < n && found.values[i] > 0;
    const double value = there ? std::sqrt(found.values[i]) : 0.0;
    result.values.push_back(value);
    result.left.push_back(there ? combined(basis, found.vectors[i]) : Vector(basis.front().size(), 0.0));
    Vector right = there ? combined(products, found.vectors[i]) : Vector(products.front().size(), 0.0);
    if (there)
      for (double& x : right) x /= value;
    result.right.push_back(std::move(right));
  }
  return result;
}

bool converged(Matrix& matrix, const Triples& found) {
  const Vectors products = matrix.times(found.right);
  for (std::size_t k = 0; k < products.size(); ++k) {
    double square = 0;
    for (std::size_t i = 0; i < products[k].size(); ++i) {
      const double rest = products[k][i] - found.values[k] * found.left[k][i];
      square += rest * rest;
    }
    if (std::sqrt(square) > kResidual * found.values.front()) return false;
  }
  return true;
}

LowRankFactors factors(const Triples& from) {
  LowRankFactors result;
  const std::size_t rank = from.values.size(), out = from.left.front().size();
  result.left.resize(out * rank);
  for (std::size_t k = 0; k < rank; ++k) {
    for (std::size_t i = 0; i < out; ++i) result.left[i * rank + k] = static_cast<float>(from.left[k][i]);
    result.values.push_back(static_cast<float>(from.values[k]));
    for (const double x : from.right[k]) result.right.push_back(static_cast<float>(x));
  }
  return result;
}

void check_rank(std::int64_t out, std::int64_t in, std::int64_t rank) {
  if (out < 1 || in < 1 || rank < 1 || rank > std::min(out, in))
    throw Error(kTensorMismatch, "rank " + std::to_string(rank) + ": a weight " + shape_text(out, in) + " has at most " + std::to_string(std::min(out, in)));
}

}  // namespace

LowRankFactors largest_singular(const float* weight, std::int64_t out, std::int64_t in, std::int64_t rank, std::int64_t iterations, std::uint64_t seed,
                                int threads) {
  check_rank(out, in, rank);
  Matrix matrix(weight, out, in, threads);
  const auto whole = static_cast<std::size_t>(std::min(out, in));
  Vectors basis;
  if (iterations >= 0) {
    extend(basis, matrix.times(matrix.random(rank, seed)), whole);
    for (std::int64_t i = 0; i < iterations && !basis.empty(); ++i) {
      Vectors right;
      extend(right, matrix.transposed_times(basis), whole);
      basis.clear();
      extend(basis, matrix.times(right), whole);
    }
    if (basis.empty()) basis.emplace_back(static_cast<std::size_t>(out), 0.0);
    return factors(triples(basis, matrix.transposed_times(basis), rank));
  }
  const std::size_t block = std::min(whole, static_cast<std::size_t>(rank) + 4);
  const std::size_t most = std::min(whole, std::max(kMostBasis, 8 * block));
  Vectors products, next = extend(basis, matrix.times(matrix.random(static_cast<std::int64_t>(block), seed)), most);
  if (basis.empty()) basis.emplace_back(static_cast<std::size_t>(out), 0.0), next = basis;
  for (std::size_t check = 4 * block;; ) {
    Vectors own = matrix.transposed_times(next);
    products.insert(products.end(), own.begin(), own.end());
    const bool last = basis.size() >= most;
    if (last || basis.size() >= check) {
      Triples found = triples(basis, products, rank);
      if (last || converged(matrix, found)) return factors(found);
      check += std::max<std::size_t>(2 * block, check / 3);
    }
    next = extend(basis, matrix.times(own), most);
    if (next.empty()) return factors(triples(basis, products, rank));  // the space is closed: nothing is left out
  }
}

LowRankFactors first_of_qr(const float* weight, std::int64_t out, std::int64_t in, std::int64_t rank, int threads) {
  check_rank(out, in, rank);
  Matrix matrix(weight, out, in, threads);
  Vectors basis;
  for (std::int64_t k = 0; k < rank; ++k) {
    Vector column;
    for (std::int64_t row = 0; row < out; ++row) column.push_back(static_cast<double>(weight[row * in + k]));
    // A column that depends linearly on those before it gives a zero direction.
    if (extend(basis, {column}, static_cast<std::size_t>(rank)).empty()) basis.emplace_back(static_cast<std::size_t>(out), 0.0);
  }
  return factors({basis, matrix.transposed_times(basis), Vector(static_cast<std::size_t>(rank), 1.0)});
}

}  // namespace pipelora
