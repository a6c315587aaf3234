// Kernels for kinds of adapters beside LoRA on linears. Launchers run on the given stream and check the launch; every sum has one order.
#pragma once

#include <cuda_runtime.h>

#include "pipelora/ops/learner_calls.h"

namespace pipelora::cuda {

// rows.cu
void sum_rows(const RowSums& call, cudaStream_t stream);
void low_rank_forward(const LowRank& call, cudaStream_t stream);
void low_rank_backward(const LowRankBackward& call, cudaStream_t stream);

// columns.cu
void column_sums(const Tensor& dy, float factor, const Tensor& grad, cudaStream_t stream);
void add_column_squares(const Tensor& y, const Tensor& squares, cudaStream_t stream);
/// `gram` [R, R] f32 is scratch.
void dora_norms(const DoraNorms& call, const Tensor& gram, cudaStream_t stream);
void column_gains(const ColumnGains& call, cudaStream_t stream);
void column_gains_backward(const ColumnGainsBackward& call, cudaStream_t stream);

}  // namespace pipelora::cuda
