#include "vectors.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace pipelora::quant::test {
namespace {

// Just enough JSON for the header of a trusted safetensors file: {"name":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}.
class Header {
 public:
  explicit Header(std::string text) : text_(std::move(text)) {}

  bool next(std::string& name, Vector& entry, std::int64_t& begin, std::int64_t& end) {
    const auto open = text_.find(":{", at_);
    if (open == std::string::npos) return false;
    const auto quote = text_.rfind('"', open - 2);
    name = text_.substr(quote + 1, open - quote - 2);
    at_ = text_.find('}', open);
    const std::string body = text_.substr(open, at_ - open);
    const auto dtype = body.find("\"dtype\":\"") + 9;
    entry.dtype = body.substr(dtype, body.find('"', dtype) - dtype);
    entry.shape = numbers(body, "\"shape\":[");
    const auto offsets = numbers(body, "\"data_offsets\":[");
    begin = offsets.at(0);
    end = offsets.at(1);
    return true;
  }

 private:
  static std::vector<std::int64_t> numbers(const std::string& body, const std::string& key) {
    std::vector<std::int64_t> found;
    const char* at = body.c_str() + body.find(key) + key.size();
    while (*at != ']') {
      char* after = nullptr;
      found.push_back(std::strtoll(at, &after, 10));
      at = *after == ',' ? after + 1 : after;
    }
    return found;
  }

  std::string text_;
  std::size_t at_ = 0;
};

}  // namespace

std::int64_t Vector::size() const {
  std::int64_t count = 1;
  for (const auto extent : shape) count *= extent;
  return count;
}

Float Vector::format() const {
  if (dtype == "F32") return Float::f32;
  if (dtype == "BF16") return Float::bf16;
  if (dtype == "F16") return Float::f16;
  throw std::runtime_error("not a floating-point vector: " + dtype);
}

std::vector<float> Vector::widened() const {
  std::vector<float> values(static_cast<std::size_t>(size()));
  for (std::int64_t i = 0; i < size(); ++i) values[i] = load_float(bytes.data(), format(), i);
  return values;
}

Vectors read_safetensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::uint64_t header_bytes = 0;
  file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  std::string text(header_bytes, ' ');
  file.read(text.data(), static_cast<std::streamsize>(header_bytes));
  std::string dense;
  for (const char c : text) {
    if (c != ' ') dense.push_back(c);
  }
  Header header(dense);
  Vectors vectors;
  std::string name;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  for (Vector entry; header.next(name, entry, begin, end); entry = {}) {
    entry.bytes.resize(static_cast<std::size_t>(end - begin));
    file.seekg(static_cast<std::streamoff>(8 + header_bytes) + begin);
    file.read(reinterpret_cast<char*>(entry.bytes.data()), end - begin);
    if (!file) throw std::runtime_error("truncated: " + path);
    vectors.emplace(name, std::move(entry));
  }
  return vectors;
}

std::vector<std::string> golden_files() {
  const std::filesystem::path root = PIPELORA_ROOT;
  std::vector<std::string> files{(root / "tests/fixtures/quant/bnb.safetensors").string()};
  const char* shared = std::getenv("PIPELORA_SHARED");
  const auto whole = (shared ? std::filesystem::path(shared) : root.parent_path() / "shared") / "goldens/quant/bnb.safetensors";
  if (std::filesystem::exists(whole)) files.push_back(whole.string());
  return files;
}

double json_number(const std::string& json, const std::string& key) {
  return std::strtod(json.c_str() + json.find("\"" + key + "\": ") + key.size() + 4, nullptr);
}

double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<float> random_normal(std::int64_t count, float deviation, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (auto& value : values) value = normal(generator);
  return values;
}

std::vector<std::uint8_t> as_bytes(const std::vector<float>& values, Float format) {
  std::vector<std::uint8_t> bytes(values.size() * static_cast<std::size_t>(bytes_of(format)));
  for (std::size_t i = 0; i < values.size(); ++i) {
    store_float(bytes.data(), format, static_cast<std::int64_t>(i), values[i]);
  }
  return bytes;
}

std::vector<Isa> levels() {
  std::vector<Isa> found;
  for (const Isa level : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_vnni}) {
    if (level <= detected_isa()) found.push_back(level);
  }
  return found;
}

}  // namespace pipelora::quant::test
