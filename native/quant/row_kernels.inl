// Included by row_kernels_*.cpp under their own target, for what the compiler turns into vectors by itself.

void quantise(const float* values, std::int64_t count, float scale, float threshold, std::int8_t* codes) {
  for (std::int64_t i = 0; i < count; ++i) {
    const float kept = std::fabs(values[i]) >= threshold ? 0.0f : values[i] * scale;
    // Adding 1.5 * 2^23 rounds to the nearest even integer, which is then the low byte of the bits.
    codes[i] = static_cast<std::int8_t>(std::bit_cast<std::uint32_t>(kept + 0x1.8p23f));
  }
}

void search(const float* values, std::int64_t count, float scale, const float* thresholds, std::uint8_t* codes) {
  // Sixteen searches side by side hide each other's latency. Gathers were slower.
  constexpr std::int64_t kLanes = 16;
  for (std::int64_t begin = 0; begin < count; begin += kLanes) {
    const std::int64_t lanes = count - begin < kLanes ? count - begin : kLanes;
    float scaled[kLanes] = {};
    std::int32_t rank[kLanes] = {};
    for (std::int64_t i = 0; i < lanes; ++i) scaled[i] = values[begin + i] * scale;
    for (std::int32_t step = 128; step > 0; step /= 2) {
      for (std::int64_t i = 0; i < kLanes; ++i) {
        rank[i] += scaled[i] > thresholds[rank[i] + step - 1] ? step : 0;
      }
    }
    for (std::int64_t i = 0; i < lanes; ++i) codes[begin + i] = static_cast<std::uint8_t>(rank[i]);
  }
}

void mark(const float* values, std::int64_t count, float threshold, std::uint8_t* found) {
  for (std::int64_t i = 0; i < count; ++i) {
    found[i] = static_cast<std::uint8_t>(found[i] | (std::fabs(values[i]) >= threshold ? 1 : 0));
  }
}

void add_scaled(const float* x, std::int64_t count, float factor, float* y) {
  for (std::int64_t i = 0; i < count; ++i) y[i] = std::fma(factor, x[i], y[i]);
}
