#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/four_bit/double_quant.h"
#include "quant/four_bit/four_bit.h"
#include "quant/four_bit/weight4.h"
#include "vectors.h"

using namespace pipelora::quant;
using namespace pipelora::quant::test;

namespace {

struct Packed {
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;
  std::int64_t bad = -1;
};

Packed quantised(const void* source, Float format, Float as, std::int64_t count, std::int64_t blocksize, FourBit type,
                 int threads = 1) {
  Packed result;
  result.codes.resize(static_cast<std::size_t>(packed_bytes(count)));
  result.absmax.resize(static_cast<std::size_t>(blocks_of(count, blocksize)));
  result.bad = quantise4(source, format, as, count, blocksize, type, result.codes.data(), result.absmax.data(), threads);
  return result;
}

int code_at(const std::vector<std::uint8_t>& packed, std::int64_t i) {
  return i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15;
}

Weight4 weight_of(const Packed& packed, std::int64_t out, std::int64_t in, std::int64_t blocksize, FourBit type) {
  Weight4 weight;
  weight.packed = packed.codes.data();
  weight.absmax.plain = packed.absmax.data();
  weight.out = out;
  weight.in = in;
  weight.blocksize = blocksize;
  weight.type = type;
  return weight;
}

}  // namespace

TEST_CASE("codes, scales and values equal bitsandbytes'") {
  for (const auto& path : golden_files()) {
    const Vectors golden = read_safetensors(path);
    int cases = 0;
    for (int number = 0; number < 6; ++number) {
      const Vector& weight = golden.at(std::to_string(number) + ".weight");
      for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
        const std::string name = type == FourBit::nf4 ? "nf4" : "fp4";
        const std::string key = std::to_string(number) + "." + name;
        CAPTURE(key);
        const auto& book = codebook4(type).values;
        const Vector& map = golden.at(key + ".sq.state.quant_map");
        CHECK(std::equal(book.begin(), book.end(), map.f32()));
        const Vector& absmax = golden.at(key + ".sq.state.absmax");
        const Vector& packed = golden.at(key + ".dq.packed");
        for (const Isa level : levels()) {
          const AtLevel at(level);
          const Packed ours = quantised(weight.bytes.data(), weight.format(), weight.format(), weight.size(), 64, type);
          CHECK(ours.bad == -1);
          CHECK(std::equal(ours.absmax.begin(), ours.absmax.end(), absmax.f32()));
          int different = 0;
          for (std::int64_t i = 0; i < weight.size(); ++i) {
            if (ours.absmax[i / 64] > 0) different += code_at(ours.codes, i) != code_at(packed.bytes, i);
          }
          CHECK(different == 0);

          for (const std::string scales : {"sq", "dq"}) {
            const auto found = golden.find(key + "." + scales + ".dequant");
            if (found == golden.end()) continue;
            ++cases;
            Weight4 view = weight_of(ours, weight.shape[0], weight.shape[1], 64, type);
            view.packed = packed.bytes.data();
            view.dtype = weight.format();
            if (scales == "dq") {
              const std::string json = golden.at(key + ".dq.state.quant_state.bitsandbytes__" + name).text();
              view.absmax = {nullptr, golden.at(key + ".dq.state.absmax").bytes.data(),
                             golden.at(key + ".dq.state.nested_absmax").f32(),
                             static_cast<float>(json_number(json, "nested_offset"))};
            }
            std::vector<std::uint8_t> values(weight.bytes.size());
            dequantise(view, values.data(), weight.format(), 1);
            int unequal = 0;
            for (std::int64_t i = 0; i < weight.size(); ++i) {
              unequal += load_float(values.data(), weight.format(), i) !=
                         load_float(found->second.bytes.data(), weight.format(), i);
            }
            CHECK(unequal == 0);
          }
        }
      }
    }
    CHECK(cases > 0);
  }
}

TEST_CASE("all levels, thread counts and source formats agree on odd lengths and every block size") {
  const auto values = random_normal(70001, 0.02f, 3);
  for (const Float format : {Float::f32, Float::bf16, Float::f16}) {
    const auto source = as_bytes(values, format);
    for (const Float as : {Float::f32, Float::bf16, Float::f16}) {
      for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
        for (const std::int64_t blocksize : {32, 64, 1024, 4096}) {
          for (const std::int64_t count : {std::int64_t{1}, std::int64_t{95}, std::int64_t{70001}}) {
            limit_isa(Isa::scalar);
            const Packed expected = quantised(source.data(), format, as, count, blocksize, type);
            for (const Isa level : levels()) {
              const AtLevel at(level);
              for (const int threads : {1, 2}) {
                const Packed ours = quantised(source.data(), format, as, count, blocksize, type, threads);
                REQUIRE(ours.bad == -1);
                REQUIRE(ours.codes == expected.codes);
                REQUIRE(ours.absmax == expected.absmax);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("rounding to the load dtype first equals quantising rounded values") {
  const auto values = random_normal(640, 0.3f, 4);
  const auto source = as_bytes(values, Float::f32);
  for (const Float as : {Float::bf16, Float::f16}) {
    const auto narrow = as_bytes(values, as);
    const Packed direct = quantised(narrow.data(), as, as, 640, 64, FourBit::nf4);
    const Packed through = quantised(source.data(), Float::f32, as, 640, 64, FourBit::nf4);
    CHECK(direct.codes == through.codes);
    CHECK(direct.absmax == through.absmax);
  }
}

TEST_CASE("every element gets the nearest code") {
  const auto values = random_normal(4096, 1.0f, 5);
  for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
    const Packed packed = quantised(values.data(), Float::f32, Float::f32, 4096, 64, type);
    const auto& book = codebook4(type).values;
    for (std::int64_t i = 0; i < 4096; ++i) {
      const float y = values[i] / packed.absmax[i / 64];
      const float chosen = std::fabs(book[code_at(packed.codes, i)] - y);
      float nearest = 2.0f;
      for (const float value : book) nearest = std::min(nearest, std::fabs(value - y));
      REQUIRE(chosen <= nearest + 1e-6f);
    }
  }
}

TEST_CASE("a tie between two codes goes to the lower one, in FP4 to the smaller magnitude") {
  for (const Isa level : levels()) {
    const AtLevel at(level);
    // absmax 1, so that y is the value itself.
    const auto code_for = [](float y, FourBit type) {
      std::vector<float> block(64, 0.0f);
      block[0] = 1.0f;
      block[1] = y;
      return code_at(quantised(block.data(), Float::f32, Float::f32, 64, 64, type).codes, 1);
    };
    const auto& nf4 = codebook4(FourBit::nf4);
    for (int i = 0; i < 15; ++i) {
      CHECK(code_for(nf4.thresholds[i], FourBit::nf4) == i);
      CHECK(code_for(std::nextafter(nf4.thresholds[i], 2.0f), FourBit::nf4) == i + 1);
    }
    CHECK(code_for(0.20833333f, FourBit::fp4) == 6);
    CHECK(code_for(std::nextafter(0.20833333f, 1.0f), FourBit::fp4) == 7);
    CHECK(code_for(-0.20833333f, FourBit::fp4) == 14);
    CHECK(code_for(std::nextafter(-0.20833333f, -1.0f), FourBit::fp4) == 15);
    CHECK(code_for(-1e-30f, FourBit::fp4) == 8);
    CHECK(code_for(-0.0f, FourBit::fp4) == 0);
    CHECK(code_for(-1.0f, FourBit::fp4) == 11);
    CHECK(code_for(-1.0f, FourBit::nf4) == 0);
  }
}

TEST_CASE("blocks of zeros, and of numbers too small to invert, come back as zeros") {
  std::vector<float> values(200, 0.0f);
  values[70] = 1e-40f;
  for (const Isa level : levels()) {
    const AtLevel at(level);
    for (const FourBit type : {FourBit::nf4, FourBit::fp4}) {
      const Packed packed = quantised(values.data(), Float::f32, Float::f32, 200, 64, type);
      CHECK(packed.bad == -1);
      std::vector<float> back(200, 1.0f);
      dequantise(weight_of(packed, 1, 200, 64, type), back.data(), Float::f32, 1);
      CHECK(std::all_of(back.begin(), back.end(), [](float value) { return value == 0.0f; }));
    }
  }
}

TEST_CASE("a NaN or an infinity is found at its place") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const Isa level : levels()) {
    const AtLevel at(level);
    for (const std::int64_t place : {0, 77, 65535, 65536, 140000}) {
      for (const float poison : {kNan, -kNan, kInfinity, -kInfinity}) {
        std::vector<float> values = random_normal(140001, 1.0f, 6);
        values[place] = poison;
        values[140000] = poison;
        for (const int threads : {1, 2}) {
          CHECK(quantised(values.data(), Float::f32, Float::f32, 140001, 64, FourBit::nf4, threads).bad == place);
        }
      }
    }
    // Finite in single precision, infinite in the dtype that the model is loaded in.
    std::vector<float> values(64, 1.0f);
    values[9] = 70000.0f;
    CHECK(quantised(values.data(), Float::f32, Float::f32, 64, 64, FourBit::nf4).bad == -1);
    CHECK(quantised(values.data(), Float::f32, Float::f16, 64, 64, FourBit::nf4).bad == 9);
  }
}

TEST_CASE("a tile equals the same part of the whole weight, whatever its edges") {
  for (const std::int64_t in : {64, 100, 101, 172, 640}) {
    const std::int64_t out = 23;
    const auto values = random_normal(out * in, 0.05f, 7);
    for (const std::int64_t blocksize : {64, 128, 4096}) {
      const Packed packed = quantised(values.data(), Float::f32, Float::f32, out * in, blocksize, FourBit::nf4);
      const std::int64_t blocks = blocks_of(out * in, blocksize);
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(blocks));
      std::vector<float> nested(static_cast<std::size_t>(nested_blocks_of(blocks)));
      const float offset = absmax_offset(packed.absmax.data(), blocks);
      quantise_absmax(packed.absmax.data(), blocks, offset, codes.data(), nested.data(), 1);
      for (const bool doubly : {false, true}) {
        Weight4 weight = weight_of(packed, out, in, blocksize, FourBit::nf4);
        if (doubly) weight.absmax = {nullptr, codes.data(), nested.data(), offset};
        for (const Float via : {Float::f32, Float::bf16, Float::f16}) {
          weight.dtype = via;
          for (const Float format : {Float::f32, Float::bf16, Float::f16}) {
            limit_isa(Isa::scalar);
            std::vector<std::uint8_t> whole(static_cast<std::size_t>(out * in * bytes_of(format)));
            dequantise(weight, whole.data(), format, 1);
            for (const Isa level : levels()) {
              const AtLevel at(level);
              const std::int64_t edges[][4] = {{0, out, 0, in}, {3, 9, 0, in}, {1, 20, 7, in - 5}, {22, 23, in - 1, in}};
              for (const auto& edge : edges) {
                const std::int64_t stride = edge[3] - edge[2] + (edge[0] == 3 ? 0 : 3);
                std::vector<std::uint8_t> tile(static_cast<std::size_t>((edge[1] - edge[0]) * stride * bytes_of(format)));
                dequantise_tile(weight, edge[0], edge[1], edge[2], edge[3], tile.data(), format, stride);
                int unequal = 0;
                for (std::int64_t r = edge[0]; r < edge[1]; ++r) {
                  for (std::int64_t c = edge[2]; c < edge[3]; ++c) {
                    unequal += load_float(tile.data(), format, (r - edge[0]) * stride + c - edge[2]) !=
                               load_float(whole.data(), format, r * in + c);
                  }
                }
                REQUIRE(unequal == 0);
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("values are code times absmax, rounded to the weight's dtype and then to the target's") {
  const auto values = random_normal(128, 0.7f, 8);
  const Packed packed = quantised(values.data(), Float::f32, Float::f32, 128, 64, FourBit::fp4);
  Weight4 weight = weight_of(packed, 2, 64, 64, FourBit::fp4);
  for (const Float via : {Float::f32, Float::bf16, Float::f16}) {
    weight.dtype = via;
    std::vector<float> back(128);
    dequantise(weight, back.data(), Float::f32, 1);
    for (std::int64_t i = 0; i < 128; ++i) {
      const float exact = codebook4(FourBit::fp4).values[code_at(packed.codes, i)] * packed.absmax[i / 64];
      REQUIRE(back[i] == rounded(exact, via));
    }
  }
}

TEST_CASE("the 4-bit layer's output and input gradient equal bitsandbytes'") {
  const Vectors golden = read_safetensors(golden_files().front());
  const Vector& w = golden.at("llm_int8.w");
  const std::int64_t out = w.shape[0];
  const std::int64_t in = w.shape[1];
  const std::int64_t tokens = golden.at("llm_int8.x").shape[0];
  const Packed packed = quantised(w.bytes.data(), Float::f16, Float::f16, w.size(), 64, FourBit::nf4);
  const auto blocks = static_cast<std::int64_t>(packed.absmax.size());
  std::vector<std::uint8_t> codes(packed.absmax.size());
  std::vector<float> nested(static_cast<std::size_t>(nested_blocks_of(blocks)));
  const float offset = absmax_offset(packed.absmax.data(), blocks);
  quantise_absmax(packed.absmax.data(), blocks, offset, codes.data(), nested.data(), 1);
  Weight4 weight = weight_of(packed, out, in, 64, FourBit::nf4);
  weight.absmax = {nullptr, codes.data(), nested.data(), offset};
  weight.dtype = Float::f16;
  std::vector<float> dense(static_cast<std::size_t>(w.size()));
  dequantise(weight, dense.data(), Float::f32, 1);

  const auto x = golden.at("llm_int8.x").widened();
  const auto gy = golden.at("llm_int8.gy").widened();
  const auto bias = golden.at("llm_int8.b").widened();
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  std::vector<float> gx(static_cast<std::size_t>(tokens * in), 0.0f);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = bias[o];
      for (std::int64_t i = 0; i < in; ++i) {
        sum += static_cast<double>(x[t * in + i]) * dense[o * in + i];
        gx[t * in + i] += gy[t * out + o] * dense[o * in + i];
      }
      y[t * out + o] = rounded(static_cast<float>(sum), Float::f16);
    }
  }
  CHECK(relative_error(y, golden.at("linear4bit.y").widened()) < 2e-3);
  CHECK(relative_error(gx, golden.at("linear4bit.gx").widened()) < 2e-3);
}
