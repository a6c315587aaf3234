// Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and how its counters are laid out.
#pragma once

#include <array>
#include <cstdint>

#if defined(__CUDACC__)
#define PIPELORA_HD __host__ __device__
#else
#define PIPELORA_HD
#endif

namespace pipelora {

struct Philox {
  std::uint32_t v[4];
};

template <int kRounds>
PIPELORA_HD inline Philox philox4x32(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                                     std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53u) * c0;
    const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57u) * c2;
    const std::uint32_t n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const std::uint32_t n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox{{c0, c1, c2, c3}};
}

/// Dropout of LoRA's input. Element e = position in row * in + column of pair `module` in row `row` of step `step`:
/// one Philox call serves the eight elements e / 8, in 16-bit lanes, low half of word 0 first. An element is kept where
/// its 16 bits are >= 2 round(p * 32768): even, so that their upper 15 bits decide.
struct DropoutKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
};

/// Masks are made three times a step, in kernels that have little else to compute: the fewest rounds that pass every test of the paper.
inline constexpr int kDropoutRounds = 7;

PIPELORA_HD inline Philox dropout_bits(DropoutKey key, std::uint32_t row, std::uint32_t module, std::uint64_t group) {
  const std::uint32_t high = static_cast<std::uint32_t>(group >> 32);
  return philox4x32<kDropoutRounds>(static_cast<std::uint32_t>(group), row, key.step, (module << 10) | (high & 1023u),
                                    static_cast<std::uint32_t>(key.seed) ^ 0x64726F70u, static_cast<std::uint32_t>(key.seed >> 32));
}

/// Noise on embeddings (NEFTune). Element e = position in row * width + column of row `row` of step `step`: one call serves the four
/// elements e / 4. A word w is the uniform number ((w >> 8) + 0.5) / 2^23 - 1, between -1 and 1.
PIPELORA_HD inline Philox noise_bits(DropoutKey key, std::uint32_t row, std::uint64_t group) {
  return philox4x32<10>(static_cast<std::uint32_t>(group), row, key.step, static_cast<std::uint32_t>(group >> 32),
                        static_cast<std::uint32_t>(key.seed) ^ 0x6E656674u, static_cast<std::uint32_t>(key.seed >> 32));
}

PIPELORA_HD inline float noise_of(std::uint32_t word) { return (static_cast<float>(word >> 8) + 0.5f) * 0x1p-23f - 1.0f; }

inline std::uint32_t dropout_threshold(float p) { return 2 * static_cast<std::uint32_t>(static_cast<double>(p) * 32768.0 + 0.5); }

/// Streams of random tensors: element i of `stream`; one call serves the four elements i / 4.
PIPELORA_HD inline Philox stream_bits(std::uint64_t seed, std::uint64_t stream, std::uint64_t group) {
  return philox4x32<10>(static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32),
                        static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32),
                        static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

}  // namespace pipelora
