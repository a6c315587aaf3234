// The product of a few tokens in float32 with a weight in 4 bits that is not expanded first.
#include "ops/cuda/base/quant4_few.cuh"

namespace pipelora::cuda {

namespace {

// A warp a row and eight tokens.
constexpr int kPlainWarps = 8, kTogether = 8;
template <class Via>
__global__ void __launch_bounds__(kPlainWarps * 32) few_tokens_plain_kernel(const __grid_constant__ FewCall<float> call, int p, Codes codes, const float* map) {
  const FewCallPart<float>& part = call.part[p];
  const Packed4& w = part.w;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kPlainWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= w.rows) return;
  const float offset = w.absmax == nullptr ? *w.offset : 0.0f;
  const int first = static_cast<int>(blockIdx.y) * kTogether, tokens = min(call.tokens - first, kTogether);
  const float* x = call.x + first * call.x_stride;
  float sums[kTogether] = {};
  for (std::int64_t c = lane * 2; c < w.in; c += 64) {
    const std::int64_t element = row * w.in + c;
    const std::uint32_t byte = w.packed[element / 2];
    const float scale = scale_of(w, map, offset, element >> w.block_shift);
    const float a = rounded_to(codes.value[byte >> 4] * scale, Via{}), b = rounded_to(codes.value[byte & 15u] * scale, Via{});
#pragma unroll
    for (int t = 0; t < kTogether; ++t)
      if (t < tokens) sums[t] += a * x[t * call.x_stride + c] + b * x[t * call.x_stride + c + 1];
  }
  const FewAddend<float> addend = read_addend(part, row);
#pragma unroll
  for (int t = 0; t < kTogether; ++t) {
    const float total = warp_sum(sums[t]);
    if (lane == 0 && t < tokens) part.y[(first + t) * call.y_stride + row] = total + finished(call, part, first + t, row, addend);
  }
}

}  // namespace

void product_of_few_plain(const FewTokens& few, const QuantTables& tables, cudaStream_t stream) {
  const FewCall<float> call = call_of<float>(few);
  with_float(call.part[0].w.via, [&]<class Via>(Via) {
    for (int p = 0; p < call.parts; ++p)
      few_tokens_plain_kernel<Via><<<dim3(blocks_for(call.part[p].w.rows, kPlainWarps), blocks_for(call.tokens, kTogether)), kPlainWarps * 32, 0, stream>>>(
          call, p, codes_of(call.part[p].w.type), tables.dynamic_map);
  });
}

}  // namespace pipelora::cuda
