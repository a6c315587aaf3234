#include "pipelora/core/host_math.h"

#include <algorithm>
#include <vector>

#include "ops/cpu/kernels/kernels.h"
#include "pipelora/core/parallel.h"
#include "pipelora/core/rng.h"

namespace pipelora {

void fill_normal(void* out, DType dtype, std::int64_t count, std::uint64_t seed, std::uint64_t stream, std::uint64_t offset,
                 float std, int threads) {
  constexpr std::int64_t kPiece = 1 << 18;
  ThreadPool pool(threads);
  pool.run((count + kPiece - 1) / kPiece, [&](std::int64_t task, int) {
    const std::int64_t first = task * kPiece;
    kernels().fill_normal(seed, stream, offset + static_cast<std::uint64_t>(first), std::min(kPiece, count - first), std,
                          static_cast<char*>(out) + static_cast<std::size_t>(first) * dtype_bytes(dtype), dtype);
  });
}

void fill_uniform(float* out, std::int64_t count, std::uint64_t seed, std::uint64_t stream, std::uint64_t offset, float bound) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint64_t element = offset + static_cast<std::uint64_t>(i);
    const Philox bits = stream_bits(seed, stream, element / 4);
    const float unit = (static_cast<float>(bits.v[element % 4] >> 8) + 0.5f) * 0x1p-23f - 1.0f;
    out[i] = unit * bound;
  }
}

void add_low_rank(void* weight, DType dtype, std::int64_t out, std::int64_t in, const float* a, const float* b, std::int64_t r,
                  float scale) {
  constexpr std::int64_t kRows = 16;
  std::vector<float> widened(static_cast<std::size_t>(kRows * in));
  for (std::int64_t first = 0; first < out; first += kRows) {
    const std::int64_t rows = std::min(kRows, out - first);
    char* at = static_cast<char*>(weight) + static_cast<std::size_t>(first * in) * dtype_bytes(dtype);
    kernels().convert_row(at, dtype, widened.data(), DType::f32, 1.0f, rows * in);
    const LowRankTerm term{Tensor(const_cast<float*>(b) + first * r, DType::f32, rows, r),
                           Tensor(const_cast<float*>(a), DType::f32, r, in), 0, scale, nullptr, 0};
    kernels().finish_tile({Tensor(widened.data(), DType::f32, rows, in), Tensor(at, dtype, rows, in), Tensor(), nullptr, {&term, 1}});
  }
}

}  // namespace pipelora
