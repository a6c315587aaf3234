#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/four_bit/codebook.h"
#include "quant/four_bit/double_quant.h"
#include "vectors.h"

using namespace pipelora::quant;
using namespace pipelora::quant::test;

TEST_CASE("the dynamic map is bitsandbytes', bit for bit") {
  const Vectors golden = read_safetensors(golden_files().front());
  const Vector& map = golden.at("0.nf4.dq.state.nested_quant_map");
  const auto& ours = dynamic_map();
  for (std::size_t i = 0; i < 256; ++i) {
    REQUIRE(std::bit_cast<std::uint32_t>(ours[i]) == std::bit_cast<std::uint32_t>(map.f32()[i]));
  }
  CHECK(ours[127] == 0.0f);
  CHECK(ours[255] == 1.0f);
}

TEST_CASE("scales in 8 bits equal bitsandbytes'") {
  for (const auto& path : golden_files()) {
    const Vectors golden = read_safetensors(path);
    for (int number = 0; number < 6; ++number) {
      for (const std::string name : {"nf4", "fp4"}) {
        const std::string key = std::to_string(number) + "." + name;
        CAPTURE(key);
        const Vector& absmax = golden.at(key + ".sq.state.absmax");
        const Vector& codes = golden.at(key + ".dq.state.absmax");
        const Vector& nested = golden.at(key + ".dq.state.nested_absmax");
        const std::string json = golden.at(key + ".dq.state.quant_state.bitsandbytes__" + name).text();
        const auto offset = static_cast<float>(json_number(json, "nested_offset"));
        for (const Isa level : levels()) {
          const AtLevel at(level);
          for (const int threads : {1, 2}) {
            std::vector<std::uint8_t> ours(static_cast<std::size_t>(absmax.size()));
            std::vector<float> scales(static_cast<std::size_t>(nested.size()));
            quantise_absmax(absmax.f32(), absmax.size(), offset, ours.data(), scales.data(), threads);
            CHECK(std::equal(scales.begin(), scales.end(), nested.f32()));
            CHECK(ours == codes.bytes);
          }
        }
      }
    }
  }
}

TEST_CASE("the offset is the mean within one unit in the last place") {
  const Vectors golden = read_safetensors(golden_files().back());
  for (int number = 0; number < 6; ++number) {
    const std::string key = std::to_string(number) + ".nf4";
    const Vector& absmax = golden.at(key + ".sq.state.absmax");
    const Vector& weight = golden.at(std::to_string(number) + ".weight");
    const std::string json = golden.at(key + ".dq.state.quant_state.bitsandbytes__nf4").text();
    // The fixture's weights 3 and 4 are cut: their offset is that of the whole.
    if (json.find("[" + std::to_string(weight.shape[0]) + ",") == std::string::npos) continue;
    const auto expected = static_cast<float>(json_number(json, "nested_offset"));
    const float ours = absmax_offset(absmax.f32(), absmax.size());
    CHECK(std::abs(std::bit_cast<std::int32_t>(ours) - std::bit_cast<std::int32_t>(expected)) <= 1);
  }
}

TEST_CASE("every scale gets the nearest of the 256 values, a tie the even code") {
  auto absmax = random_normal(1500, 0.1f, 9);
  const float offset = 0.05f;
  std::vector<std::uint8_t> codes(absmax.size());
  std::vector<float> nested(6);
  quantise_absmax(absmax.data(), 1500, offset, codes.data(), nested.data(), 1);
  const auto& map = dynamic_map();
  for (std::size_t i = 0; i < absmax.size(); ++i) {
    const float y = (absmax[i] - offset) / nested[i / 256];
    float nearest = 2.0f;
    for (const float value : map) nearest = std::min(nearest, std::fabs(value - y));
    REQUIRE(std::fabs(map[codes[i]] - y) <= nearest + 1e-6f);
  }
  // absmax 1 and offset 0: a value halfway between codes c and c + 1.
  for (int c = 130; c < 250; ++c) {
    float pair[2] = {1.0f, (map[c] + map[c + 1]) * 0.5f};
    std::uint8_t code[2];
    float scale = 0;
    quantise_absmax(pair, 2, 0.0f, code, &scale, 1);
    CHECK(code[0] == 255);
    CHECK(code[1] == (c % 2 == 0 ? c : c + 1));
  }
}

TEST_CASE("equal scales leave nothing to store and come back exactly") {
  const std::vector<float> absmax(300, 0.75f);
  const float offset = absmax_offset(absmax.data(), 300);
  CHECK(offset == 0.75f);
  std::vector<std::uint8_t> codes(300);
  std::vector<float> nested(2);
  quantise_absmax(absmax.data(), 300, offset, codes.data(), nested.data(), 1);
  std::vector<float> back(300);
  dequantise_absmax(codes.data(), nested.data(), offset, 0, 300, back.data());
  CHECK(back == absmax);
}
