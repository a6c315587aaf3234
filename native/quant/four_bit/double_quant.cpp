#include "quant/four_bit/double_quant.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "quant/four_bit/codebook.h"
#include "quant/reciprocal.h"
#include "quant/row_kernels.h"

namespace pipelora::quant {

float absmax_offset(const float* absmax, std::int64_t count) {
  constexpr std::int64_t kLanes = 8;
  double lanes[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i % kLanes] += absmax[i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
}

void quantise_absmax(const float* absmax, std::int64_t count, float offset, std::uint8_t* codes, float* nested_absmax,
                     int threads) {
  const RowKernels& run = row_kernels();
  const float* thresholds = dynamic_thresholds().data();
  constexpr std::uint8_t kZero = 127;
  const std::int64_t blocks = nested_blocks_of(count);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && blocks > 16)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = block * kNestedBlock;
    const std::int64_t size = std::min(kNestedBlock, count - begin);
    float centred[kNestedBlock];
    for (std::int64_t i = 0; i < size; ++i) centred[i] = absmax[begin + i] - offset;
    const float largest =
        std::bit_cast<float>(run.absmax_bits(centred, size, std::numeric_limits<float>::quiet_NaN()));
    nested_absmax[block] = largest;
    if (largest < std::numeric_limits<float>::min()) {
      std::fill_n(codes + begin, size, kZero);
    } else {
      run.search(centred, size, fast_reciprocal(largest), thresholds, codes + begin);
    }
  }
}

void dequantise_absmax(const std::uint8_t* codes, const float* nested_absmax, float offset, std::int64_t begin,
                       std::int64_t count, float* absmax) {
  const float* map = dynamic_map().data();
  for (std::int64_t i = begin; i < begin + count; ++i) {
    absmax[i - begin] = map[codes[i]] * nested_absmax[i / kNestedBlock] + offset;
  }
}

}  // namespace pipelora::quant
