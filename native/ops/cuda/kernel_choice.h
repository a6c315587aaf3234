// Which kernel a call takes: decided here from the operation, the dtype, the GPU and the shape, and nowhere else. Nothing here
// touches a GPU, so the whole table is tested on any machine (tests/kernel_choice_test.cpp). With the environment variable
// PIPELORA_KERNELS set, each choice is printed on stderr when it is made for the first time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pipelora/core/tensor.h"

namespace pipelora::cuda {

struct GpuKind {
  bool hopper = false;          // the code for compute capability 9.0a runs there
  std::size_t block_bytes = 0;  // shared memory that a block may ask for
};

/// Largest head width of any attention kernel.
inline constexpr std::int64_t kMaxHeadDim = 256;
/// Most tokens for which a product reads 4-bit codes itself, and for which LoRA has kernels of its own.
inline constexpr std::int64_t kFewTokens = 64;

struct AttentionTraits {
  DType dtype = DType::f32;
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  std::int64_t tokens = 0, sequences = 0;
  std::int64_t most_queries = 0;  // of one sequence
  std::int64_t most_splits = 0;   // blocks over one sequence's keys, where few queries are decoded
  bool aligned = false;           // every head's row can be read 16 bytes at a time
  bool keeps_lse = false;         // for a backward pass
  bool capped = false;            // scores have a soft cap
};

enum class AttentionKernel : std::uint8_t {
  plain,        // attention/plain.cu: any dtype
  tiles,        // tiles_*.cu: 16-bit, tensor cores of any GPU
  hopper_short, // hopper_*.cu: warpgroup products, a warpgroup a tile
  hopper_long,  // the same, several warpgroups a tile
  hopper_wide,  // heads of more than 128 columns: forward as hopper_short
  decode,       // attention/decode.cu: few queries a sequence, keys split over blocks
};
const char* name(AttentionKernel kernel);

/// Of tiles_*.cu: padded head width, warps a block, tiles of the other side held at a time.
struct AttentionTiles {
  int columns = 0, warps = 0, stages = 0;
  bool operator==(const AttentionTiles&) const = default;
};
struct AttentionChoice {
  AttentionKernel kernel = AttentionKernel::plain;
  AttentionTiles tiles;      // of `tiles`
  bool turns_back = false;   // backward: dq and dk can be written as those before rotary
  bool keeps_ds = false; // backward: dS may be kept in memory between the two passes
};
AttentionChoice attention_forward_choice(const AttentionTraits& call, const GpuKind& gpu);
AttentionChoice attention_backward_choice(const AttentionTraits& call, const GpuKind& gpu);

enum class CrossEntropyKernel : std::uint8_t {
  scalar,   // a block a row, a number at a time
  wide,     // a block a row, eight numbers at a time
  clusters, // blocks that keep a row in their shared memory
};
const char* name(CrossEntropyKernel kernel);
/// `shaped`: the logits' gradient has a factor or a derivative of its own. `padded`: rows are as long in memory as the next multiple of eight, and begin on 16 bytes.
CrossEntropyKernel cross_entropy_choice(std::int64_t vocab, bool padded, bool shaped, const GpuKind& gpu);
/// Blocks of a cluster, and columns of each.
inline constexpr int kClusterBlocks = 8;
constexpr std::int64_t cluster_columns(std::int64_t vocab) { return ((vocab + kClusterBlocks - 1) / kClusterBlocks + 7) / 8 * 8; }

/// Ranks of a pair up to which the fused LoRA kernels take it; with more, LoRA's products run through cuBLASLt.
inline constexpr std::int64_t kMostFusedRank = 16;

struct LoraTraits {
  DType dtype = DType::f32;
  std::int64_t tokens = 0, columns = 0;
  std::int64_t pairs = 0, most_rank = 0;
  std::int64_t tiles = 0;  // of eight ranks, over all pairs
  bool aligned = false;    // activations 16 bytes at a time, and LoRA's float32 rows too
  bool dropout = false;
};
enum class LoraOp : std::uint8_t {
  inner,           // drop(x) Aᵀ
  norm_inner,      // the same with the RMSNorm that makes x
  swiglu_inner,    // with the SwiGLU that makes x
  output_grads,    // of B and of the inner vectors
  input_grad,      // dx += LoRA's term
  norm_input_grad, // the same with the RMSNorm's backward behind it
  swiglu_grad,     // with SwiGLU's backward and A's gradient
  a_grad,
};
enum class LoraKernel : std::uint8_t {
  few,      // lora/few.cu: a few tokens
  fused,    // tensor cores; norm_*, swiglu_*: in one kernel with what stands beside it
  plain,    // any dtype and alignment; norm_*, swiglu_*: kernels one after the other
  products, // through cuBLASLt
};
const char* name(LoraOp op);
const char* name(LoraKernel kernel);
LoraKernel lora_choice(LoraOp op, const LoraTraits& call, const GpuKind& gpu);

/// A product of a few tokens with a weight in 4 bits.
struct FewTraits {
  DType dtype = DType::f32;
  std::int64_t tokens = 0, in = 0;
  std::int64_t block = 64;  // elements that share a scale
  bool aligned = false;     // rows of x can be read 16 bytes at a time
  bool fits = false;        // all of x fits the shared memory of `queues`
};
enum class FewKernel : std::uint8_t {
  plain,     // quant4_few_plain.cu: float32
  queues,    // quant4_few.cu: all of x in shared memory, a queue of codes for each thread
  bulk,      // quant4_few_hopper.cu: codes and x through bulk copies
  expanded,  // as of many tokens
};
const char* name(FewKernel kernel);
FewKernel few_choice(const FewTraits& call, const GpuKind& gpu);

/// Operands' rows are whole pieces of so many e4m3 numbers.
inline constexpr std::int64_t kFp8Piece = 16;
/// Whether a weight's products can multiply e4m3 numbers, forward and back; `part_rows`: of the matrices that it is made of.
bool suits_e4m3(DType compute, std::int64_t in, std::span<const std::int64_t> part_rows);

/// Whether cuBLASLt multiplies e4m3 numbers with a scale a row: on compute capability 9.0 alone (its documentation's table of scaling modes).
bool has_row_scales(const GpuKind& gpu);

struct ExpertsTraits {
  DType dtype = DType::f32;
  std::int64_t in = 0, out = 0;  // of one expert
  std::int64_t rows = 0;         // of all experts
  bool packed = false;           // the weights are held in codes, kept expanded beside them or not
  bool e4m3 = false;             // their products multiply e4m3 numbers: asked for, and the shapes suit
};
enum class ExpertsKernel : std::uint8_t {
  each,     // an expert after the other, by the host's count of its rows
  grouped,  // experts/grouped.cu: all experts in one launch
  grouped_e4m3,
};
const char* name(ExpertsKernel kernel);
ExpertsKernel experts_choice(const ExpertsTraits& call, const GpuKind& gpu);
/// Blocks that share the rows of one expert in the gradients of its LoRA (experts/grouped_grads.cu): 1, 2, 4 or 8, as many as it takes for
/// the blocks of all experts (64 ranks x kExpertGradColumns each) to be at least four a multiprocessor. By shapes alone: numbers do not depend on the GPU.
inline constexpr std::int64_t kExpertGradColumns = 128;
int expert_grad_shares(std::int64_t experts, std::int64_t columns, std::int64_t rank);
/// How many experts stand in one weight: the pool of expanded weights holds so many at a time. The planner counts on it
/// (src/plan/memory/expert-memory.ts).
std::int64_t experts_of_a_weight(std::int64_t experts, std::int64_t in, std::int64_t out, DType compute);

}  // namespace pipelora::cuda
