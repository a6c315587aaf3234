// One pass over memory each: copies and conversions, rows by index, sums, logits in shape, noise on embeddings.
#include <algorithm>

#include "ops/cuda/device/common.cuh"
#include "ops/cuda/device/dependent.cuh"
#include "ops/cuda/pointwise/pointwise.h"

namespace pipelora::cuda {

namespace {

/// A block takes 256 >> `lanes` rows with 1 << `lanes` threads each: a narrow matrix, such as LoRA's inner vectors, fills its blocks as a wide one does.
template <int V, class From, class To, bool kIndexed>
__global__ void copy_kernel(const From* from, std::int64_t from_stride, To* to, std::int64_t to_stride,
                            const std::int32_t* from_rows, const std::int32_t* to_rows, float factor, std::int64_t rows,
                            std::int64_t pieces, int lanes) {
  wait_for_previous();  // does not let the next start: it writes weights, too
  const unsigned own = threadIdx.x & ((1u << lanes) - 1), first_row = threadIdx.x >> lanes, block_rows = static_cast<unsigned>(kRowThreads) >> lanes;
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.x) << lanes) + own;
  if (c >= pieces) return;
  for (std::int64_t r = static_cast<std::int64_t>(blockIdx.y) * block_rows + first_row; r < rows; r += static_cast<std::int64_t>(gridDim.y) * block_rows) {
    const std::int64_t source = kIndexed && from_rows != nullptr ? from_rows[r] : r;
    const std::int64_t target = kIndexed && to_rows != nullptr ? to_rows[r] : r;
    Floats<V> v = load<V>(from + source * from_stride + c * V);
    if (factor != 1.0f) {
#pragma unroll
      for (int i = 0; i < V; ++i) v.v[i] *= factor;
    }
    store<V>(to + target * to_stride + c * V, v);
  }
}

template <bool kIndexed>
void launch_copy(const Tensor& from, const std::int32_t* from_rows, const Tensor& to, const std::int32_t* to_rows,
                 float factor, std::int64_t rows, cudaStream_t stream) {
  if (rows == 0 || from.cols == 0) return;
  const bool wide = eights(from) && eights(to);
  with_float(from.dtype, [&]<class From>(From) {
    with_float(to.dtype, [&]<class To>(To) {
      const std::int64_t v = wide ? 8 : 1, pieces = from.cols / v;
      int lanes = 0;
      while (lanes < 8 && (std::int64_t{1} << lanes) < pieces) ++lanes;
      const std::int64_t blocks = (rows + (kRowThreads >> lanes) - 1) / (kRowThreads >> lanes);
      const dim3 grid(blocks_for(pieces, std::int64_t{1} << lanes), static_cast<unsigned>(std::min<std::int64_t>(blocks, 65535)));
      const auto kernel = wide ? copy_kernel<8, From, To, kIndexed> : copy_kernel<1, From, To, kIndexed>;
      launch_dependent(kernel, grid, kRowThreads, 0, stream, from.as<From>(), from.stride, to.as<To>(), to.stride, from_rows, to_rows, factor, rows, pieces,
                       lanes);
    });
  });
  check_launch("copy");
}

constexpr int kMostCopies = 8;
template <class From, class To>
struct Copies {
  struct {
    const From* from;
    To* to;
    std::int64_t from_stride, to_stride, rows, pieces;
  } job[kMostCopies];
};

// Job blockIdx.y, whose pieces of V columns are counted through its rows.
template <int V, class From, class To>
__global__ void copies_kernel(Copies<From, To> copies) {
  const auto& job = copies.job[blockIdx.y];
  const std::int64_t all = job.rows * job.pieces, step = static_cast<std::int64_t>(gridDim.x) * kRowThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; i < all; i += step) {
    const std::int64_t r = i / job.pieces, c = (i - r * job.pieces) * V;
    store<V>(job.to + r * job.to_stride + c, load<V>(job.from + r * job.from_stride + c));
  }
}

template <int V>
__global__ void add_scaled_kernel(const float* from, std::int64_t from_stride, float factor, float* to,
                                  std::int64_t to_stride, std::int64_t rows, std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const Floats<V> a = load<V>(from + r * from_stride + c * V);
    Floats<V> b = load<V>(to + r * to_stride + c * V);
#pragma unroll
    for (int i = 0; i < V; ++i) b.v[i] += factor * a.v[i];
    store<V>(to + r * to_stride + c * V, b);
  }
}

template <int V, class T>
__global__ void add_kernel(const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, float factor, T* out, std::int64_t out_stride,
                           std::int64_t rows, std::int64_t pieces) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c >= pieces) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    Floats<V> sum = load<V>(b + r * b_stride + c * V), before{};
    if (a != nullptr) before = load<V>(a + r * a_stride + c * V);
#pragma unroll
    for (int i = 0; i < V; ++i) sum.v[i] = before.v[i] + factor * sum.v[i];
    store<V>(out + r * out_stride + c * V, sum);
  }
}

__global__ void shape_logits_kernel(float* logits, std::int64_t stride, std::int64_t rows, std::int64_t cols, float factor, float cap) {
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (c >= cols) return;
  for (std::int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    float& z = logits[r * stride + c];
    z = cap > 0 ? cap * tanhf(z * factor / cap) : z * factor;
  }
}

/// Grid: x strides over a sequence's pieces of V columns, y over sequences.
template <int V, class T>
__global__ void add_noise_kernel(T* x, std::int64_t stride, std::int64_t width, const std::int32_t* cu, const std::int32_t* rows, std::int32_t sequences,
                                 DropoutKey key, float alpha) {
  for (std::int32_t s = static_cast<std::int32_t>(blockIdx.y); s < sequences; s += static_cast<std::int32_t>(gridDim.y)) {
    const std::int64_t begin = cu[s], length = cu[s + 1] - begin, pieces = width / V;
    const float magnitude = __fdiv_rn(alpha, __fsqrt_rn(static_cast<float>(length) * static_cast<float>(width)));
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; i < length * pieces; i += static_cast<std::int64_t>(gridDim.x) * kRowThreads) {
      const std::int64_t position = i / pieces, c = i % pieces * V;
      const auto element = static_cast<std::uint64_t>(position * width + c);
      const Philox bits = noise_bits(key, static_cast<std::uint32_t>(rows[begin + position]), element / 4);
      T* at = x + (begin + position) * stride + c;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const std::uint32_t word = V == 4 ? bits.v[k] : bits.v[element % 4];
        at[k] = narrow<T>(__fmaf_rn(magnitude, noise_of(word), widen(at[k])));
      }
    }
  }
}

}  // namespace

void copy(const Tensor& from, const Tensor& to, cudaStream_t stream, float factor) {
  if (from.rows == 0 || from.cols == 0) return;
  const bool floating = from.dtype == DType::f32 || from.dtype == DType::bf16 || from.dtype == DType::f16;
  if (!floating) {
    const std::size_t size = dtype_bytes(from.dtype);
    check(cudaMemcpy2DAsync(to.data, static_cast<std::size_t>(to.stride) * size, from.data,
                            static_cast<std::size_t>(from.stride) * size, static_cast<std::size_t>(from.cols) * size,
                            static_cast<std::size_t>(from.rows), cudaMemcpyDeviceToDevice, stream),
          "copy");
    return;
  }
  launch_copy<false>(from, nullptr, to, nullptr, factor, from.rows, stream);
}

void copy_all(std::span<const CopyJob> jobs, cudaStream_t stream) {
  if (jobs.size() > kMostCopies) {
    copy_all(jobs.first(kMostCopies), stream);
    return copy_all(jobs.subspan(kMostCopies), stream);
  }
  if (jobs.empty()) return;
  const bool wide = std::all_of(jobs.begin(), jobs.end(), [](const CopyJob& job) { return eights(job.from) && eights(job.to); });
  with_float(jobs[0].from.dtype, [&]<class From>(From) {
    with_float(jobs[0].to.dtype, [&]<class To>(To) {
      Copies<From, To> copies{};
      std::int64_t most = 1;
      for (std::size_t i = 0; i < jobs.size(); ++i) {
        const auto& [from, to] = jobs[i];
        const std::int64_t pieces = from.cols / (wide ? 8 : 1);
        copies.job[i] = {from.as<From>(), to.as<To>(), from.stride, to.stride, from.rows, pieces};
        most = std::max(most, from.rows * pieces);
      }
      const dim3 grid(std::min(blocks_for(most, kRowThreads), 1024u), static_cast<unsigned>(jobs.size()));
      const auto kernel = wide ? copies_kernel<8, From, To> : copies_kernel<1, From, To>;
      kernel<<<grid, kRowThreads, 0, stream>>>(copies);
    });
  });
  check_launch("copies");
}

void gather_rows(const Tensor& from, const std::int32_t* rows, const Tensor& to, cudaStream_t stream) {
  launch_copy<true>(from, rows, to, nullptr, 1.0f, to.rows, stream);
}

void scatter_rows(const Tensor& from, const std::int32_t* rows, float factor, const Tensor& to, cudaStream_t stream) {
  launch_copy<true>(from, nullptr, to, rows, factor, from.rows, stream);
}

void add_scaled(const Tensor& from, float factor, const Tensor& to, cudaStream_t stream) {
  if (from.rows == 0 || from.cols == 0) return;
  if (eights(from) && eights(to)) {
    add_scaled_kernel<8><<<row_grid(from.rows, from.cols, 8), kRowThreads, 0, stream>>>(
        from.as<float>(), from.stride, factor, to.as<float>(), to.stride, from.rows, from.cols / 8);
  } else {
    add_scaled_kernel<1><<<row_grid(from.rows, from.cols, 1), kRowThreads, 0, stream>>>(
        from.as<float>(), from.stride, factor, to.as<float>(), to.stride, from.rows, from.cols);
  }
  check_launch("add_scaled");
}

void add(const Tensor& a, const Tensor& b, float factor, const Tensor& out, cudaStream_t stream) {
  if (out.rows == 0) return;
  const bool wide = (!a || eights(a)) && eights(b) && eights(out);
  with_float(out.dtype, [&]<class T>(T) {
    const auto launch = [&]<int V>() {
      add_kernel<V, T><<<row_grid(out.rows, out.cols, V), kRowThreads, 0, stream>>>(a.as<T>(), a.stride, b.as<T>(), b.stride, factor, out.as<T>(),
                                                                               out.stride, out.rows, out.cols / V);
    };
    if (wide)
      launch.template operator()<8>();
    else
      launch.template operator()<1>();
  });
  check_launch("add");
}

void shape_logits(const Tensor& logits, float factor, float cap, cudaStream_t stream) {
  if (logits.rows == 0) return;
  shape_logits_kernel<<<row_grid(logits.rows, logits.cols, 1), kRowThreads, 0, stream>>>(logits.as<float>(), logits.stride, logits.rows, logits.cols,
                                                                                    factor, cap);
  check_launch("shape_logits");
}

void add_noise(const EmbeddingNoise& call, cudaStream_t stream) {
  const auto sequences = static_cast<std::int32_t>(call.sequences->count());
  if (call.x.rows == 0) return;
  // A piece must not reach over the end of a row: it lies in one group of four elements.
  const bool fours = call.x.cols % 4 == 0;
  const dim3 grid(blocks_for(std::min<std::int64_t>(call.x.rows * call.x.cols / 4 + 1, 64 * kRowThreads), kRowThreads), static_cast<unsigned>(std::min(sequences, 65535)));
  with_float(call.x.dtype, [&]<class T>(T) {
    const auto kernel = fours ? add_noise_kernel<4, T> : add_noise_kernel<1, T>;
    kernel<<<grid, kRowThreads, 0, stream>>>(call.x.as<T>(), call.x.stride, call.x.cols, call.sequences->cu_queries.device.as<std::int32_t>(),
                                          call.sequences->row.device.as<std::int32_t>(), sequences, call.key, call.alpha);
  });
  check_launch("add_noise");
}

}  // namespace pipelora::cuda
