// Golden vectors (a small safetensors reader), random data, and what several tests compare with.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "quant/float_format.h"
#include "quant/isa.h"

namespace pipelora::quant::test {

struct Vector {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> bytes;

  std::int64_t size() const;
  Float format() const;
  const float* f32() const { return reinterpret_cast<const float*>(bytes.data()); }
  const std::int8_t* i8() const { return reinterpret_cast<const std::int8_t*>(bytes.data()); }
  std::vector<float> widened() const;
  std::string text() const { return std::string(bytes.begin(), bytes.end()); }
};

using Vectors = std::map<std::string, Vector>;

Vectors read_safetensors(const std::string& path);

/// The fixture of this repository and, where the folder of golden vectors is at hand (PIPELORA_SHARED, or `shared` beside
/// the repository), the whole set.
std::vector<std::string> golden_files();

/// The number after "key": in a JSON text.
double json_number(const std::string& json, const std::string& key);

/// ‖a − b‖ / ‖b‖
double relative_error(const std::vector<float>& a, const std::vector<float>& b);

std::vector<float> random_normal(std::int64_t count, float deviation, std::uint32_t seed);
/// values rounded to `format`, as bytes
std::vector<std::uint8_t> as_bytes(const std::vector<float>& values, Float format);

/// Every level that this processor has.
std::vector<Isa> levels();

/// Lowers the level for one scope.
class AtLevel {
 public:
  explicit AtLevel(Isa level) { limit_isa(level); }
  ~AtLevel() { limit_isa(detected_isa()); }
  AtLevel(const AtLevel&) = delete;
  AtLevel& operator=(const AtLevel&) = delete;
};

}  // namespace pipelora::quant::test
