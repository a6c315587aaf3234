// LoRA's A and B behind an expanded weight, where one product takes them along.
#include "ops/cuda/device/common.cuh"
#include "ops/cuda/lora/lora.h"

namespace pipelora::cuda {

namespace {

constexpr int kMaxPairs = 8;

struct AppendPair {
  const float* rows;
  std::int64_t stride;
  std::int64_t first_column, columns;
  int rank, first_inner;
  float scale;
};
struct AppendSet {
  AppendPair pair[kMaxPairs];
  int count;
};

// Eight columns a thread (tails are multiples of 16).
template <class T>
__global__ void append_columns_kernel(T* weight, std::int64_t stride, std::int64_t out, std::int64_t in, AppendSet set, bool wide) {
  const std::int64_t o = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int first = static_cast<int>(blockIdx.y) * 8;
  if (o >= out) return;
  Floats<8> values;
#pragma unroll
  for (int i = 0; i < 8; ++i) values.v[i] = 0;
  for (int p = 0; p < set.count; ++p) {
    const AppendPair& pair = set.pair[p];
    const std::int64_t c = o - pair.first_column;
    if (c < 0 || c >= pair.columns) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int r = first + i - pair.first_inner;
      if (r >= 0 && r < pair.rank) values.v[i] = pair.rows[r * pair.stride + c];
    }
  }
  T* to = weight + o * stride + in + first;
  if (wide) {
    store<8>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = narrow<T>(values.v[i]);
  }
}

template <class T>
__global__ void append_rows_kernel(T* weight, std::int64_t stride, std::int64_t out, std::int64_t in, AppendSet set) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int j = static_cast<int>(blockIdx.y);
  if (c >= in) return;
  float value = 0;
  for (int p = 0; p < set.count; ++p) {
    const AppendPair& pair = set.pair[p];
    const int r = j - pair.first_inner;
    if (r >= 0 && r < pair.rank) value = pair.rows[r * pair.stride + c];
  }
  weight[(out + j) * stride + c] = narrow<T>(value);
}

AppendSet append_set(const LoraSet& lora, bool columns) {
  if (lora.pairs.size() > kMaxPairs) throw Error(kTensorMismatch, "more than 8 LoRA pairs on one product");
  AppendSet set{};
  for (const LoraView& pair : lora.pairs) {
    const Tensor& from = columns ? pair.bt : pair.a;
    set.pair[set.count++] = {from.as<float>(), from.stride, columns ? pair.first_column : 0, from.cols,
                             static_cast<int>(from.rows), static_cast<int>(pair.first_inner), pair.scale};
  }
  return set;
}

// A block a token.
template <class T>
__global__ void append_inner_kernel(const float* inner, std::int64_t inner_stride, T* x, std::int64_t x_stride, std::int64_t cols,
                                    int tail, AppendSet set, bool scaled) {
  const std::int64_t t = blockIdx.x;
  for (int j = static_cast<int>(threadIdx.x); j < tail; j += static_cast<int>(blockDim.x)) {
    float value = 0;
    for (int p = 0; p < set.count; ++p) {
      const int r = j - set.pair[p].first_inner;
      if (r >= 0 && r < set.pair[p].rank) value = inner[t * inner_stride + j] * (scaled ? set.pair[p].scale : 1.0f);
    }
    x[t * x_stride + cols + j] = narrow<T>(value);
  }
}

}  // namespace

namespace {
void append(const LoraSet& lora, const Tensor& inner, const Tensor& x, std::int64_t tail, bool scaled, cudaStream_t stream) {
  const AppendSet set = append_set(lora, true);
  with_float(x.dtype, [&]<class T>(T) {
    append_inner_kernel<T><<<static_cast<unsigned>(x.rows), 64, 0, stream>>>(inner.as<float>(), inner.stride, x.as<T>(), x.stride, x.cols,
                                                                             static_cast<int>(tail), set, scaled);
  });
  check_launch("append_inner");
}
}  // namespace

void append_inner(const LoraSet& lora, const Tensor& inner, const Tensor& x, std::int64_t tail, cudaStream_t stream) {
  append(lora, inner, x, tail, true, stream);
}
void append_inner_grad(const LoraSet& lora, const Tensor& inner_grad, const Tensor& dy, std::int64_t tail, cudaStream_t stream) {
  append(lora, inner_grad, dy, tail, false, stream);
}

void append_columns(const Tensor& weight, const LoraSet& lora, cudaStream_t stream) {
  const AppendSet set = append_set(lora, true);
  with_float(weight.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(weight.rows, 128), blocks_for(lora.inner_cols, 8));
    append_columns_kernel<T><<<grid, 128, 0, stream>>>(weight.as<T>(), weight.stride, weight.rows, weight.cols, set, eights(weight));
  });
  check_launch("append_columns");
}

void append_rows(const Tensor& weight, const LoraSet& lora, std::int64_t tail, cudaStream_t stream) {
  const AppendSet set = append_set(lora, false);
  with_float(weight.dtype, [&]<class T>(T) {
    const dim3 grid(blocks_for(weight.cols, 256), static_cast<unsigned>(tail));
    append_rows_kernel<T><<<grid, 256, 0, stream>>>(weight.as<T>(), weight.stride, weight.rows, weight.cols, set);
  });
  check_launch("append_rows");
}

}  // namespace pipelora::cuda
