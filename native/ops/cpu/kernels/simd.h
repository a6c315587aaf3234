// Vectors of the widest kind of the instruction set being compiled for. Every file that includes this is compiled for
// AVX2, AVX-512, and AVX-512 with bfloat16 conversions (PIPELORA_ISA names the namespace); one is chosen when the program starts.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "pipelora/core/half.h"
#include "pipelora/core/tensor.h"

namespace pipelora::PIPELORA_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#else
inline constexpr int kLanes = 8;
#endif

using vf = float __attribute__((vector_size(kLanes * 4)));
using vi = std::int32_t __attribute__((vector_size(kLanes * 4)));
using vu = std::uint32_t __attribute__((vector_size(kLanes * 4)));
using vh = std::uint16_t __attribute__((vector_size(kLanes * 2)));

inline vf splat(float x) { return vf{} + x; }

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline vf load(const bf16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return std::bit_cast<vf>(__builtin_convertvector(h, vu) << 16);
}
inline void store(bf16* p, vf v) {
#if defined(__AVX512BF16__)
  const __m256bh narrow = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &narrow, sizeof narrow);
#else
  const vu u = std::bit_cast<vu>(v);
  const vu rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const vu quiet = (u >> 16) | 0x40u;
  const vu is_nan = std::bit_cast<vu>((u & 0x7FFFFFFFu) > 0x7F800000u);
  const vh h = __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), vh);
  std::memcpy(p, &h, sizeof h);
#endif
}

inline vf load(const f16* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  return reinterpret_cast<vf>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
}
inline void store(f16* p, vf v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}

/// The first `count` lanes, zeros behind them.
template <class T>
inline vf load_first(const T* p, int count) {
  alignas(64) T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<std::size_t>(count) * sizeof(T));
  return load(lanes);
}
template <class T>
inline void store_first(T* p, vf v, int count) {
  alignas(64) T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<std::size_t>(count) * sizeof(T));
}

/// body(column, count) over whole vectors (count == kLanes) and one rest.
template <class Body>
inline void for_lanes(std::int64_t begin, std::int64_t end, Body&& body) {
  std::int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) body(c, kLanes);
  if (c < end) body(c, static_cast<int>(end - c));
}
template <class T>
inline vf load_some(const T* p, int count) {
  return count == kLanes ? load(p) : load_first(p, count);
}
template <class T>
inline void store_some(T* p, vf v, int count) {
  if (count == kLanes)
    store(p, v);
  else
    store_first(p, v, count);
}

inline vf select(vi mask, vf yes, vf no) { return mask ? yes : no; }
inline vf max(vf a, vf b) { return a > b ? a : b; }

inline float sum(vf v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}
inline float max_lane(vf v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

/// e^x to about 2 ulp, for x <= 88; smaller than e^-87 counts as e^-87. Reduction and minimax polynomial after Cephes' expf.
inline vf exp(vf x) {
  x = x > 88.0f ? splat(88.0f) : x;
  x = x < -87.0f ? splat(-87.0f) : x;
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = x * 1.44269504088896341f + magic;
  const vf n = shifted - magic;
  vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vi power = (std::bit_cast<vi>(shifted) - std::bit_cast<std::int32_t>(12582912.0f) + 127) << 23;
  return p * std::bit_cast<vf>(power);
}

/// To about 2 ulp. Near 0 the polynomial of Cephes' tanhf, else by e^2|x|.
inline vf tanh(vf x) {
  const vf size = x < 0.0f ? -x : x, z = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const vf near = p * z * x + x, far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
  return size < 0.625f ? near : (x < 0.0f ? -far : far);
}

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

/// Calls f.template operator()<Element>() for the dtype of activations and weights.
template <class F>
inline void with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::bf16: return f.template operator()<bf16>();
    case DType::f16: return f.template operator()<f16>();
    default: return f.template operator()<float>();
  }
}

template <class T>
inline T* row(const Tensor& t, std::int64_t r) {
  return static_cast<T*>(t.data) + r * t.stride;
}

/// 1 / sqrt(mean(x²) + eps)
template <class T>
inline float inverse_rms(const T* x, std::int64_t n, float eps) {
  vf squares = splat(0);
  for_lanes(0, n, [&](std::int64_t c, int count) {
    const vf v = load_some(x + c, count);
    squares += v * v;
  });
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(n) + eps);
}

}  // namespace pipelora::PIPELORA_ISA
