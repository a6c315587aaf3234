// Where the heads of q and k lie, for the kernels that run over both.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

/// Rows of a grid's y axis are limited; q and k are cut into runs of tokens.
inline constexpr std::int64_t kTokensPerLaunch = 65535;

/// One of q and k.
template <class T>
struct Heads {
  const T* in = nullptr;
  std::int64_t in_stride = 0;
  T* out = nullptr;
  std::int64_t out_stride = 0;
  const float* norm = nullptr;
  int heads = 0;
};

/// One head of one token: `head` counts q's heads, then k's.
template <class T>
struct HeadPlace {
  bool found, is_q;
  const Heads<T>& side;
  const T* in;  // null where the side has no input
  T* out;
  __device__ HeadPlace(const Heads<T>& q, const Heads<T>& k, int head, std::int64_t token, int width)
      : found(head < q.heads + k.heads), is_q(head < q.heads), side(is_q ? q : k) {
    const std::int64_t column = static_cast<std::int64_t>(is_q ? head : head - q.heads) * width;
    in = side.in != nullptr ? side.in + token * side.in_stride + column : nullptr;
    out = side.out + token * side.out_stride + column;
  }
};

template <class T>
Heads<T> heads_of(const Tensor& in, const Tensor& out, const Tensor& norm, std::int64_t head_dim, std::int64_t first, std::int64_t count) {
  Heads<T> side;
  if (in) side.in = in.row_range(first, count).template as<T>();
  side.in_stride = in.stride;
  side.out = out.row_range(first, count).template as<T>();
  side.out_stride = out.stride;
  side.norm = norm.as<float>();
  side.heads = static_cast<int>(out.cols / head_dim);
  return side;
}

/// launch(first token, tokens)
template <class F>
void in_runs(std::int64_t tokens, F&& launch) {
  for (std::int64_t first = 0; first < tokens; first += kTokensPerLaunch) launch(first, std::min(kTokensPerLaunch, tokens - first));
}

}  // namespace pipelora::cuda
