#include "quant/four_bit/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pipelora::quant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float below(float value) { return std::nextafter(value, -kInfinity); }

void fill_buckets(Codebook4& book) {
  for (int bucket = -16; bucket < 16; ++bucket) {
    const float low = static_cast<float>(bucket) / 16.0f;
    const float high = static_cast<float>(bucket + 1) / 16.0f;
    const auto index = static_cast<std::size_t>(bucket & 31);
    book.bucket_rank[index] = 0;
    book.bucket_threshold[index] = kInfinity;
    for (const float threshold : book.thresholds) {
      if (threshold < low) {
        ++book.bucket_rank[index];
      } else if (threshold < below(high)) {
        book.bucket_threshold[index] = threshold;
      }
    }
  }
}

Codebook4 make_nf4() {
  Codebook4 book{};
  book.values = {-1.0f,
                 -0.6961928009986877f,
                 -0.5250730514526367f,
                 -0.39491748809814453f,
                 -0.28444138169288635f,
                 -0.18477343022823334f,
                 -0.09105003625154495f,
                 0.0f,
                 0.07958029955625534f,
                 0.16093020141124725f,
                 0.24611230194568634f,
                 0.33791524171829224f,
                 0.44070982933044434f,
                 0.5626170039176941f,
                 0.7229568362236023f,
                 1.0f};
  for (std::size_t i = 0; i < 15; ++i) {
    book.thresholds[i] = static_cast<float>((static_cast<double>(book.values[i]) + book.values[i + 1]) / 2.0);
  }
  for (std::size_t i = 0; i < 16; ++i) book.code_of_rank[i] = static_cast<std::uint8_t>(i);
  book.zero = 7;
  fill_buckets(book);
  return book;
}

Codebook4 make_mxfp4() {
  Codebook4 book{};
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  for (std::size_t i = 0; i < 8; ++i) {
    book.values[i] = kMagnitudes[i];
    book.values[i + 8] = -kMagnitudes[i];
  }
  return book;
}

Codebook4 make_fp4() {
  Codebook4 book{};
  constexpr float kTwelfths[8] = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
  for (std::size_t i = 0; i < 8; ++i) {
    book.values[i] = kTwelfths[i] / 12.0f;
    book.values[i + 8] = i == 0 ? 0.0f : -book.values[i];
  }
  // Magnitudes ascending, and the library's own decimal constants between them (two are not quite the midpoint).
  constexpr std::uint8_t kAscending[8] = {0, 1, 6, 7, 4, 5, 2, 3};
  constexpr float kBetween[7] = {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
  for (std::size_t i = 0; i < 7; ++i) {
    // |y| > t for a negative y is y < -t; the rank rises where that ends, at y >= -t.
    book.thresholds[6 - i] = below(-kBetween[i]);
    book.thresholds[8 + i] = kBetween[i];
  }
  book.thresholds[7] = below(0.0f);  // the sign bit is set for y < 0 only
  for (std::size_t i = 0; i < 8; ++i) {
    book.code_of_rank[7 - i] = static_cast<std::uint8_t>(kAscending[i] | 8);
    book.code_of_rank[8 + i] = kAscending[i];
  }
  book.zero = 0;
  fill_buckets(book);
  return book;
}

std::array<float, 256> make_dynamic_map() {
  constexpr float kScale[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  std::array<float, 256> map{};
  std::size_t count = 0;
  map[count++] = 0.0f;
  map[count++] = 1.0f;
  for (int i = 0; i < 7; ++i) {
    // linspace(0.1, 1, 2^i + 1) in single precision, counted from the nearer end with a fused multiply-add, as torch does.
    const int points = (1 << i) + 1;
    const float step = (1.0f - 0.1f) / static_cast<float>(points - 1);
    const auto point = [&](int k) {
      return k < points / 2 ? std::fma(step, static_cast<float>(k), 0.1f)
                            : std::fma(-step, static_cast<float>(points - 1 - k), 1.0f);
    };
    for (int k = 0; k + 1 < points; ++k) {
      const float middle = (point(k) + point(k + 1)) / 2.0f * kScale[i];
      map[count++] = middle;
      map[count++] = -middle;
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

std::array<float, 255> make_dynamic_thresholds() {
  const auto& map = dynamic_map();
  std::array<float, 255> thresholds{};
  for (std::size_t i = 0; i < 255; ++i) {
    const float middle = (map[i] + map[i + 1]) * 0.5f;
    thresholds[i] = i % 2 == 0 ? middle : below(middle);
  }
  return thresholds;
}

}  // namespace

const Codebook4& codebook4(FourBit type) {
  static const Codebook4 nf4 = make_nf4();
  static const Codebook4 fp4 = make_fp4();
  static const Codebook4 mxfp4 = make_mxfp4();
  return type == FourBit::nf4 ? nf4 : type == FourBit::fp4 ? fp4 : mxfp4;
}

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> map = make_dynamic_map();
  return map;
}

const std::array<float, 255>& dynamic_thresholds() {
  static const std::array<float, 255> thresholds = make_dynamic_thresholds();
  return thresholds;
}

}  // namespace pipelora::quant
