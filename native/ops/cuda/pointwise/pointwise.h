// The kernels' launchers. All run on the given stream and check the launch; shapes are checked by the caller (CudaOps).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "ops/cuda/base/fp8.h"
#include "ops/cuda/kernel_choice.h"
#include "pipelora/ops/ops.h"

namespace pipelora::cuda {

// elementwise.cu
void copy(const Tensor& from, const Tensor& to, cudaStream_t stream, float factor = 1);
struct CopyJob {
  Tensor from, to;
};
/// All of them in as few launches as there are eights of them; all `from` of one dtype, and all `to`.
void copy_all(std::span<const CopyJob> jobs, cudaStream_t stream);
void add_scaled(const Tensor& from, float factor, const Tensor& to, cudaStream_t stream);
void gather_rows(const Tensor& from, const std::int32_t* rows, const Tensor& to, cudaStream_t stream);
void scatter_rows(const Tensor& from, const std::int32_t* rows, float factor, const Tensor& to, cudaStream_t stream);
void add(const Tensor& a, const Tensor& b, float factor, const Tensor& out, cudaStream_t stream);
void shape_logits(const Tensor& logits, float factor, float cap, cudaStream_t stream);
void add_noise(const EmbeddingNoise& call, cudaStream_t stream);

// coded_rows.cu
void encode_rows(const Tensor& from, const Tensor& to, cudaStream_t stream);
void decode_rows(const Tensor& from, const Tensor& to, cudaStream_t stream);

// activation.cu
void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& act, Activation activation, cudaStream_t stream);
void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dact, const Tensor& dgate, const Tensor& dup,
                     const Tensor& act, Activation activation, cudaStream_t stream);

// norm.cu
void rmsnorm_forward(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& y, cudaStream_t stream);
/// The same in e4m3 alone, of an x that is eights().
void rmsnorm_rows(const Tensor& x, const Tensor& weight, float eps, const RowCodes& to, cudaStream_t stream);
/// y = residual + factor * the norm; without a residual, the norm.
void rmsnorm_add(const Tensor& x, const Tensor& weight, NormRule rule, const Tensor& residual, float factor, const Tensor& y, cudaStream_t stream);
void rmsnorm_backward(const RmsNormBackward& call, cudaStream_t stream);

// rope.cu
void qk_rope_forward(const QkRope& call, cudaStream_t stream);
void qk_rope_backward(const QkRopeBackward& call, cudaStream_t stream);

// norm_centred.cu: of rules that subtract the mean.
void centred_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y, cudaStream_t stream);
void centred_norm_backward(const RmsNormBackward& call, cudaStream_t stream);

// norm_halves.cu: heads that turn as a whole, in halves, behind RMSNorms, where rows can be read eight numbers at a time.
bool norm_halves_takes(const QkRope& call);
bool norm_halves_takes(const QkRopeBackward& call);
void norm_halves_forward(const QkRope& call, cudaStream_t stream);
void norm_halves_backward(const QkRopeBackward& call, cudaStream_t stream);

// norm_rope.cu: heads with a norm, or of which a part turns, or none, or neighbours; any rule.
void norm_rope_forward(const QkRope& call, cudaStream_t stream);
void norm_rope_backward(const QkRopeBackward& call, cudaStream_t stream);

// head_gate.cu
void head_gate_forward(const HeadGate& call, cudaStream_t stream);
void head_gate_backward(const HeadGateBackward& call, cudaStream_t stream);

// head/cross_entropy.cu
void cross_entropy(const CrossEntropy& call, const GpuKind& gpu, cudaStream_t stream);

// optimizer.cu
struct AdamChunk {
  float *weight, *grad, *exp_avg, *exp_avg_sq;
  std::int64_t count;
};
inline constexpr std::int64_t kAdamChunk = 8192;
void adamw(const AdamChunk* chunks, std::int64_t count, const AdamSettings& settings, cudaStream_t stream);

struct NormChunk {
  const float* values;
  std::int64_t count;
};
inline constexpr std::int64_t kNormChunk = 16384;
/// sums[i] = sum over chunks [first[i], first[i + 1]) of their squares; `partial` has one entry a chunk.
void sum_squares(const NormChunk* chunks, std::int64_t chunk_count, double* partial, const std::int32_t* first,
                 std::int64_t tensors, double* sums, cudaStream_t stream);

}  // namespace pipelora::cuda
