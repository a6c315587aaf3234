// The kinds of attention beyond softmax over heads, cut into tasks.
#include <algorithm>

#include "ops/cpu/cpu_ops.h"

namespace pipelora {

namespace {
constexpr std::int64_t kConvChannels = 256;  // of a task
constexpr std::int64_t kRows = 16;
std::int64_t pieces(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }
}  // namespace

void CpuOps::short_conv_forward(const ShortConv& call) {
  const std::int64_t cuts = pieces(call.x.cols, kConvChannels);
  pool_.run(call.sequences->count() * cuts, [&](std::int64_t task, int thread) {
    const std::int64_t first = task % cuts * kConvChannels;
    kernels_.short_conv_forward(call, task / cuts, first, std::min(kConvChannels, call.x.cols - first), threads_[static_cast<std::size_t>(thread)]->scratch);
  });
}

void CpuOps::short_conv_backward(const ShortConvBackward& call) {
  const std::int64_t cuts = pieces(call.x.cols, kConvChannels);
  pool_.run(call.sequences->count() * cuts, [&](std::int64_t task, int thread) {
    const std::int64_t first = task % cuts * kConvChannels;
    kernels_.short_conv_backward(call, task / cuts, first, std::min(kConvChannels, call.x.cols - first), threads_[static_cast<std::size_t>(thread)]->scratch);
  });
}

void CpuOps::delta_rule_forward(const DeltaRule& call) {
  const std::int64_t heads = call.shape.value_heads;
  pool_.run(call.sequences->count() * heads, [&](std::int64_t task, int thread) {
    kernels_.delta_forward(call, task / heads, task % heads, threads_[static_cast<std::size_t>(thread)]->scratch);
  });
}

void CpuOps::delta_rule_backward(const DeltaRuleBackward& call) {
  const std::int64_t heads = call.shape.key_heads;
  pool_.run(call.sequences->count() * heads, [&](std::int64_t task, int thread) {
    kernels_.delta_backward(call, task / heads, task % heads, threads_[static_cast<std::size_t>(thread)]->scratch);
  });
}

void CpuOps::head_gate_forward(const HeadGate& call) {
  pool_.run(pieces(call.x.rows, kRows), [&](std::int64_t task, int) {
    const std::int64_t first = task * kRows, count = std::min(kRows, call.x.rows - first);
    HeadGate part = call;
    for (Tensor* t : {&part.x, &part.gate, &part.y}) *t = t->row_range(first, count);
    kernels_.head_gate_forward(part);
  });
}

void CpuOps::head_gate_backward(const HeadGateBackward& call) {
  pool_.run(pieces(call.x.rows, kRows), [&](std::int64_t task, int) {
    const std::int64_t first = task * kRows, count = std::min(kRows, call.x.rows - first);
    HeadGateBackward part = call;
    for (Tensor* t : {&part.x, &part.gate, &part.dy, &part.dx, &part.dgate}) *t = t->row_range(first, count);
    kernels_.head_gate_backward(part);
  });
}

void CpuOps::latent_heads_forward(const LatentHeads& call) {
  pool_.run(pieces(call.q.rows, kRows), [&](std::int64_t task, int) {
    kernels_.latent_heads_forward(call, task * kRows, std::min(call.q.rows, (task + 1) * kRows));
  });
}

void CpuOps::latent_heads_backward(const LatentHeadsBackward& call) {
  pool_.run(pieces(call.dq.rows, kRows), [&](std::int64_t task, int) {
    kernels_.latent_heads_backward(call, task * kRows, std::min(call.dq.rows, (task + 1) * kRows));
  });
}

}  // namespace pipelora
