// Attention, by the kernel that kernel_choice.h names.
#include <algorithm>

#include "ops/cuda/device/alignment.h"
#include "ops/cuda/attention/attention.h"
#include "ops/cuda/cuda_ops.h"
#include "pipelora/core/error.h"

namespace pipelora::cuda {

namespace {

template <class Call>
AttentionTraits traits_of(const Call& call) {
  AttentionTraits traits;
  traits.dtype = call.q.dtype;
  traits.heads = call.q.cols / call.head_dim;
  traits.kv_heads = call.k.cols / call.head_dim;
  traits.head_dim = call.head_dim;
  traits.window = call.window;
  traits.tokens = call.sequences->tokens;
  traits.sequences = call.sequences->count();
  traits.aligned = aligned(call);
  traits.keeps_lse = static_cast<bool>(call.lse);
  traits.capped = call.cap > 0;
  const auto& cu = call.sequences->cu_queries.host;
  for (std::size_t s = 0; s + 1 < cu.size(); ++s) traits.most_queries = std::max<std::int64_t>(traits.most_queries, cu[s + 1] - cu[s]);
  return traits;
}

void check_head_dim(std::int64_t head_dim) {
  if (head_dim > kMaxHeadDim)
    throw Error(kTensorMismatch, "expected heads of at most " + std::to_string(kMaxHeadDim) + " columns, got " + std::to_string(head_dim));
}

template <class... Tensors>
bool all_aligned(std::int64_t head_dim, const Tensors&... tensors) {
  return head_dim % 8 == 0 && (eights(tensors) && ...);
}

}  // namespace

bool aligned(const AttentionForward& call) { return all_aligned(call.head_dim, call.q, call.k, call.v, call.out); }
bool aligned(const AttentionBackward& call) {
  return all_aligned(call.head_dim, call.q, call.k, call.v, call.out, call.dout, call.dq, call.dk, call.dv);
}

void CudaOps::attention_forward(const AttentionForward& call) {
  if (call.q.rows == 0 || attention_by_widening(call)) return;
  check_head_dim(call.head_dim);
  AttentionTraits traits = traits_of(call);
  if (!traits.keeps_lse) traits.most_splits = decode_splits(call);
  const AttentionChoice choice = attention_forward_choice(traits, gpu_);
  cudaStream_t stream = device_.stream();
  switch (choice.kernel) {
    case AttentionKernel::decode: {
      const std::size_t size = decode_room(call);
      const Buffer room = size > 0 ? bytes("attention's splits", size) : Buffer();
      return attention_decode(call, room, stream);
    }
    case AttentionKernel::hopper_long:
      return attention_forward_long(call, static_cast<std::uint32_t*>(counters_->data()) + kLoraCounters, stream);
    case AttentionKernel::hopper_short:
    case AttentionKernel::hopper_wide: return attention_forward_short(call, stream);
    case AttentionKernel::tiles: return attention_forward_tiles(call, choice.tiles, stream);
    case AttentionKernel::plain: return attention_forward_plain(call, stream);
  }
}

void CudaOps::attention_backward(const AttentionBackward& call) {
  if (call.q.rows == 0 || attention_by_widening(call)) return;
  check_head_dim(call.head_dim);
  const Buffer delta = arena_->workspace("attention's row sums", DType::f32, call.lse.rows, call.lse.cols);
  const AttentionChoice choice = attention_backward_choice(traits_of(call), gpu_);
  const AttentionRoom wanted = choice.keeps_ds ? attention_room(call) : AttentionRoom{};
  const Buffer room = arena_->spare("attention's dS", wanted.least, wanted.most);
  cudaStream_t stream = device_.stream();
  // The table's pairs of numbers are read at once.
  const bool pairs = call.rope.stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(call.rope.data) % sizeof(float2) == 0;
  const bool turned = choice.turns_back && pairs;
  AttentionBackward attention = call;
  if (!turned) attention.rope = Tensor();
  switch (choice.kernel) {
    case AttentionKernel::hopper_long: attention_backward_hopper(attention, true, delta, room, stream); break;
    case AttentionKernel::hopper_short:
    case AttentionKernel::hopper_wide: attention_backward_hopper(attention, false, delta, room, stream); break;
    case AttentionKernel::tiles: attention_backward_tiles(attention, choice.tiles, delta, stream); break;
    default: attention_backward_plain(attention, delta, stream);
  }
  // No kernel wrote the gradients before rotary: a pass of its own turns them back.
  if (call.rope && !turned) qk_rope_backward({call.dq, call.dk, {}, {}, {}, {}, {}, call.rope, call.rope_row, call.head_dim});
}

}  // namespace pipelora::cuda
