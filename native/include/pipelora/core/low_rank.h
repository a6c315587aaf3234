// Low-rank factors of a weight, for first values of adapters.
#pragma once

#include <cstdint>
#include <vector>

namespace pipelora {

/// left [out, R] with orthonormal columns, values [R] that fall, right [R, in]: left diag(values) right is near the matrix.
struct LowRankFactors {
  std::vector<float> left, values, right;
};

/**
 * The R largest singular values of `weight` [out, in] with their vectors. `iterations` < 0: as exact as float32 allows, by block Krylov
 * spaces (Musco & Musco 2015); else as torch.svd_lowrank with so many (Halko et al. 2011). The same bits on any number of threads.
 * Throws PL_TENSOR_MISMATCH for a rank that the matrix does not have.
 */
LowRankFactors largest_singular(const float* weight, std::int64_t out, std::int64_t in, std::int64_t rank, std::int64_t iterations, std::uint64_t seed,
                                int threads);

/// The first R columns of Q and rows of R of the matrix's QR decomposition; values are 1.
LowRankFactors first_of_qr(const float* weight, std::int64_t out, std::int64_t in, std::int64_t rank, int threads);

}  // namespace pipelora
