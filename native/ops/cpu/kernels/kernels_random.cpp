// Random numbers from Philox counters: normal ones by Box and Muller, and noise on embeddings.
#include "ops/cpu/kernels/kernel_parts.h"
#include "ops/cpu/kernels/simd.h"
#include "pipelora/core/rng.h"

namespace pipelora::PIPELORA_ISA {

namespace {

/// ln x for normal positive x, to about 2 ulp (after Cephes' logf).
inline vf log(vf x) {
  const vi bits = std::bit_cast<vi>(x);
  vf e = __builtin_convertvector((bits >> 23) - 126, vf);
  vf m = std::bit_cast<vf>((bits & 0x007FFFFF) | 0x3F000000);
  const vi small = m < 0.707106781186547524f;
  e = small ? e - 1.0f : e;
  m = small ? m + m : m;
  m = m - 1.0f;
  const vf z = m * m;
  vf y = splat(7.0376836292e-2f);
  y = y * m - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * z;
  y = y + e * -2.12194440e-4f - 0.5f * z;
  return m + y + e * 0.693359375f;
}

/// sin and cos of 2 pi u for u in [0, 1): the angle is folded into an eighth of the circle.
inline void sin_cos(vf u, vf& s, vf& c) {
  const vf magic = splat(12582912.0f);
  const vf shifted = u * 4.0f + magic;
  const vf quarter = shifted - magic;
  const vi q = std::bit_cast<vi>(shifted) & 3;
  const vf x = (u - quarter * 0.25f) * 6.28318530717958648f;
  const vf z = x * x;
  vf sine = splat(-1.9515295891e-4f);
  sine = sine * z + 8.3321608736e-3f;
  sine = sine * z - 1.6666654611e-1f;
  sine = sine * z * x + x;
  vf cosine = splat(2.443315711809948e-5f);
  cosine = cosine * z - 1.388731625493765e-3f;
  cosine = cosine * z + 4.166664568298827e-2f;
  cosine = cosine * z * z - 0.5f * z + 1.0f;
  const vi odd = (q & 1) != 0;
  const vf a = odd ? cosine : sine, b = odd ? sine : cosine;
  s = (q & 2) != 0 ? -a : a;
  c = ((q + 1) & 2) != 0 ? -b : b;
}

// Element 4 g + 0, 1 from words 0, 1 of group g, elements 4 g + 2, 3 from words 2, 3.
void fill_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, std::int64_t count, float std, void* out,
                 DType dtype) {
  with_float(dtype, [&]<class T>() {
    T* target = static_cast<T*>(out);
    std::int64_t done = 0;
    while (done < count) {
      const std::uint64_t group = (first + static_cast<std::uint64_t>(done)) / 4;
      float radius_u[2 * kLanes], angle_u[2 * kLanes], normal[4 * kLanes];
      for (int g = 0; g < kLanes; ++g) {
        const Philox bits = stream_bits(seed, stream, group + static_cast<std::uint64_t>(g));
        for (int pair = 0; pair < 2; ++pair) {
          radius_u[2 * g + pair] = (static_cast<float>(bits.v[2 * pair] >> 8) + 0.5f) * 0x1p-24f;
          angle_u[2 * g + pair] = static_cast<float>(bits.v[2 * pair + 1] >> 8) * 0x1p-24f;
        }
      }
      for (int part = 0; part < 2; ++part) {
        const vf l = log(load(radius_u + part * kLanes)) * -2.0f;
        vf s, c;
        sin_cos(load(angle_u + part * kLanes), s, c);
        for (int i = 0; i < kLanes; ++i) {
          const float r = std::sqrt(l[i]) * std;
          normal[2 * (part * kLanes + i)] = r * c[i];
          normal[2 * (part * kLanes + i) + 1] = r * s[i];
        }
      }
      const std::int64_t skip = static_cast<std::int64_t>((first + static_cast<std::uint64_t>(done)) % 4);
      const std::int64_t n = std::min<std::int64_t>(4 * kLanes - skip, count - done);
      for_lanes(0, n, [&](std::int64_t c, int k) { store_some(target + done + c, load_some(normal + skip + c, k), k); });
      done += n;
    }
  });
}

void add_noise(void* x, DType dtype, std::int64_t cols, DropoutKey key, std::uint32_t row, std::uint64_t first, float magnitude) {
  with_float(dtype, [&]<class T>() {
    T* values = static_cast<T*>(x);
    Philox bits{};
    for (std::int64_t c = 0; c < cols; ++c) {
      const std::uint64_t element = first + static_cast<std::uint64_t>(c);
      if (c == 0 || element % 4 == 0) bits = noise_bits(key, row, element / 4);
      const float sum = std::fma(magnitude, noise_of(bits.v[element % 4]), load_some(values + c, 1)[0]);
      store_some(values + c, splat(sum), 1);
    }
  });
}

}  // namespace

void fill_random(Kernels& table) {
  table.fill_normal = fill_normal;
  table.add_noise = add_noise;
}

}  // namespace pipelora::PIPELORA_ISA
