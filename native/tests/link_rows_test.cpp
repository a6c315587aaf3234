// Rows in e4m3 with a scale each, as links carry them.
#include <array>
#include <cfloat>
#include <cstring>
#include <limits>

#include "pipelora/core/e4m3.h"
#include "tests/support/bench_device.h"

using namespace testing;

namespace {

/// All that e4m3 holds, by code.
double value_of(std::uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude = exponent == 0 ? mantissa * std::pow(2.0, -9) : (8 + mantissa) * std::pow(2.0, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

/// The code nearest to x; of two, the even one; none of what is no number.
std::uint8_t nearest(double x) {
  std::uint8_t best = 0;
  for (int code = 1; code < 0x7F; ++code) {
    const double now = std::fabs(std::fabs(x) - value_of(static_cast<std::uint8_t>(code))), before = std::fabs(std::fabs(x) - value_of(best));
    if (now < before || (now == before && code % 2 == 0)) best = static_cast<std::uint8_t>(code);
  }
  return static_cast<std::uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

std::vector<float> floats_of(const Tensor& t) {
  std::vector<float> out;
  for (std::int64_t i = 0; i < t.size(); ++i)
    out.push_back(t.dtype == DType::f32 ? t.as<float>()[i] : t.dtype == DType::bf16 ? to_float(t.as<bf16>()[i]) : to_float(t.as<f16>()[i]));
  return out;
}

Buffer rows_of(Device& device, const std::vector<float>& values, std::int64_t rows, DType dtype) {
  Buffer buffer = device.make(rows, static_cast<std::int64_t>(values.size()) / rows, dtype);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) buffer.tensor().as<float>()[i] = values[i];
    if (dtype == DType::bf16) buffer.tensor().as<bf16>()[i] = to_bf16(values[i]);
    if (dtype == DType::f16) buffer.tensor().as<f16>()[i] = to_f16(values[i]);
  }
  return buffer;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("e4m3: every code comes back, and what lies between goes to the nearest") {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    if ((code & 0x7F) == 0x7F) {
      CHECK(std::isnan(from_e4m3(byte)));
      continue;
    }
    CHECK(static_cast<double>(from_e4m3(byte)) == value_of(byte));
    CHECK(to_e4m3(from_e4m3(byte)) == byte);
  }
  // Halfway between two codes, and the float32 neighbours of that.
  for (int code = 0; code < 0x7E; ++code) {
    const double middle = (value_of(static_cast<std::uint8_t>(code)) + value_of(static_cast<std::uint8_t>(code + 1))) / 2;
    const auto f = static_cast<float>(middle);
    for (const float x : {f, std::nextafter(f, 0.0f), std::nextafter(f, 1e9f)})
      for (const float signed_x : {x, -x}) CHECK(to_e4m3(signed_x) == nearest(static_cast<double>(signed_x)));
  }
  for (const float beyond : {448.0f, 463.9f, 464.0f, 1e30f, FLT_MAX, kInfinity}) {
    CHECK(to_e4m3(beyond) == 0x7E);
    CHECK(to_e4m3(-beyond) == 0xFE);
  }
  CHECK((to_e4m3(kNan) & 0x7F) == 0x7F);
  CHECK((to_e4m3(-kNan) & 0x7F) == 0x7F);
  CHECK(to_e4m3(-0.0f) == 0x80);
}

TEST_CASE("rows for a link: each number is the nearest that the row's scale allows, whatever the row, the width, the dtype and the threads") {
  struct Kind {
    float magnitude;
    bool sparse;
  };
  const std::array<Kind, 7> kinds{{{1, false}, {0, false}, {1e-30f, false}, {1e-41f, false}, {3e38f, false}, {6e4f, true}, {7e-8f, true}}};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t cols : {1, 3, 7, 8, 33, 64, 257}) {
      const auto rows = static_cast<std::int64_t>(kinds.size());
      std::vector<float> values;
      for (const Kind& kind : kinds) {
        const Values row = reference::random_values(static_cast<std::size_t>(cols), static_cast<unsigned>(cols) + static_cast<unsigned>(values.size()));
        for (std::int64_t c = 0; c < cols; ++c) {
          const double drawn = kind.sparse && c % 5 != 0 ? row[static_cast<std::size_t>(c)] * 1e-4 : row[static_cast<std::size_t>(c)];
          const float most = dtype == DType::f16 ? 6e4f : 3e38f;
          values.push_back(static_cast<float>(std::clamp(drawn * static_cast<double>(kind.magnitude), -static_cast<double>(most), static_cast<double>(most))));
        }
      }
      std::vector<std::uint8_t> first;
      for (const int threads : {1, 2}) {
        Device device(DType::f32, threads);
        const Buffer x = rows_of(device, values, rows, dtype), coded = device.make(rows, cols + kScaleColumns, DType::f8), back = device.make(rows, cols, dtype);
        device.ops->encode_rows(x, coded);
        device.ops->decode_rows(coded, back);
        const std::vector<float> before = floats_of(x), after = floats_of(back);
        for (std::int64_t r = 0; r < rows; ++r) {
          const std::uint8_t* codes = coded.tensor().as<std::uint8_t>() + r * (cols + kScaleColumns);
          float scale;
          std::memcpy(&scale, codes + cols, sizeof scale);
          double largest = 0;
          for (std::int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::fabs(static_cast<double>(before[static_cast<std::size_t>(r * cols + c)])));
          CHECK(static_cast<double>(scale) == doctest::Approx(std::max(largest / 448, static_cast<double>(FLT_MIN))).epsilon(1e-6));
          for (std::int64_t c = 0; c < cols; ++c) {
            const auto at = static_cast<std::size_t>(r * cols + c);
            const double wanted = static_cast<double>(before[at]), got = static_cast<double>(after[at]);
            // Half a step of three bits, or of the smallest code; then what float32, and the dtype, round away.
            const double step = std::max(std::fabs(wanted) / 16, static_cast<double>(scale) * 0x1p-10);
            const double rounding = std::fabs(wanted) * (dtype == DType::f32 ? 1e-6 : 4e-3) + (dtype == DType::f16 ? 0x1p-25 : 1e-45);
            CHECK(std::fabs(got - wanted) <= step + rounding);
          }
        }
        const std::vector<std::uint8_t> bytes(coded.tensor().as<std::uint8_t>(), coded.tensor().as<std::uint8_t>() + coded.tensor().size());
        if (threads == 1) first = bytes;
        CHECK(bytes == first);
      }
    }
  }
}

TEST_CASE("rows for a link: what is not finite becomes NaN, and its neighbours stay what they are without it") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const float odd : {kNan, kInfinity, -kInfinity}) {
      const std::int64_t cols = 19;
      Device device;
      const Values drawn = reference::random_values(static_cast<std::size_t>(cols), 5);
      std::vector<float> with(drawn.begin(), drawn.end()), without = with;
      with[7] = odd, without[7] = 0;
      std::vector<float> all(with);
      all.insert(all.end(), without.begin(), without.end());
      all.insert(all.end(), static_cast<std::size_t>(cols), odd);
      const Buffer x = rows_of(device, all, 3, dtype), coded = device.make(3, cols + kScaleColumns, DType::f8), back = device.make(3, cols, dtype);
      device.ops->encode_rows(x, coded);
      device.ops->decode_rows(coded, back);
      const std::vector<float> after = floats_of(back);
      for (std::size_t c = 0; c < static_cast<std::size_t>(cols); ++c) {
        if (c == 7)
          CHECK(std::isnan(after[c]));
        else
          CHECK(after[c] == after[static_cast<std::size_t>(cols) + c]);
        CHECK(std::isnan(after[static_cast<std::size_t>(2 * cols) + c]));
      }
    }
  }
}

TEST_CASE("rows for a link: the largest number of each dtype comes back, and nothing becomes infinite") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Device device;
    const float most = largest_of(dtype);
    const Buffer x = rows_of(device, {most, -most, most / 2, 0}, 1, dtype), coded = device.make(1, 4 + kScaleColumns, DType::f8), back = device.make(1, 4, dtype);
    device.ops->encode_rows(x, coded);
    device.ops->decode_rows(coded, back);
    const std::vector<float> after = floats_of(back);
    CHECK(after[0] == doctest::Approx(static_cast<double>(most)).epsilon(1e-6));
    CHECK(after[1] == -after[0]);
    CHECK(after[3] == 0);
    for (const float value : after) CHECK(std::isfinite(value));
  }
}

TEST_CASE("rows for a link are copied as they are") {
  Device device;
  const std::int64_t rows = 5, cols = 13;
  const Buffer coded = device.make(rows, cols, DType::f8), wide = device.make(rows, cols + 3, DType::f8), back = device.make(rows, cols, DType::f8);
  for (std::int64_t i = 0; i < rows * cols; ++i) coded.tensor().as<std::uint8_t>()[i] = static_cast<std::uint8_t>(i * 37);
  std::memset(wide.tensor().data, 0xAB, wide.tensor().bytes());
  device.ops->copy(coded, wide.tensor().columns(1, cols));
  device.ops->copy(wide.tensor().columns(1, cols), back);
  CHECK(std::memcmp(coded.tensor().data, back.tensor().data, coded.tensor().bytes()) == 0);
  for (std::int64_t r = 0; r < rows; ++r)
    for (const std::int64_t c : {std::int64_t{0}, cols + 1, cols + 2}) CHECK(wide.tensor().as<std::uint8_t>()[r * (cols + 3) + c] == 0xAB);
}
