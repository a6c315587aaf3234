#include "ops/cuda/kernel_choice.h"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <set>
#include <sstream>
#include <string>

namespace pipelora::cuda {

namespace {

/// Prints a choice once, if the user wants to see choices.
template <class Describe>
void tell(const GpuKind& gpu, Describe&& describe) {
  static const bool wanted = std::getenv("PIPELORA_KERNELS") != nullptr;
  if (!wanted) return;
  std::ostringstream line;
  line << "kernel: ";
  describe(line);
  line << (gpu.hopper ? " (sm_90a)\n" : " (sm_80 and later)\n");
  static std::mutex mutex;
  static std::set<std::string> told;
  const std::lock_guard lock(mutex);
  if (told.insert(line.str()).second) std::cerr << line.str() << std::flush;
}

bool half(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16; }

/// Most queries of a sequence, and blocks over its keys, of attention/decode.cu.
constexpr std::int64_t kMostDecodeQueries = 4, kMostGrid = 65535;
/// Mean tokens a sequence from which several warpgroups share a tile (Hopper), and from which blocks of 128 queries pay.
constexpr std::int64_t kLongOnHopper = 160, kLongTiles = 256;

/// Tiles of 64 rows of the other side, in pairs (keys and values, or queries and gradients), beside a block's own rows.
constexpr std::size_t tile_bytes(int own_rows, const AttentionTiles& tiles) {
  return static_cast<std::size_t>((own_rows + tiles.stages * 2 * 64) * tiles.columns * 2);
}

AttentionTiles forward_tiles(const AttentionTraits& call, const GpuKind& gpu) {
  AttentionTiles tiles{call.head_dim <= 64 ? 64 : call.head_dim <= 128 ? 128 : 256, 4, 2};
  if (tiles.columns < 256 && call.tokens >= kLongTiles * call.sequences) tiles.warps = 8;
  if (tile_bytes(tiles.warps * 16, tiles) > gpu.block_bytes) tiles.stages = 1;
  return tiles;
}

AttentionTiles backward_tiles(const AttentionTraits& call, const GpuKind& gpu) {
  AttentionTiles tiles{call.head_dim <= 64 ? 64 : call.head_dim <= 128 ? 128 : 256, 4, 2};
  constexpr std::size_t kRowStatistics = 1024;
  if (tile_bytes(2 * tiles.warps * 16, tiles) + kRowStatistics > gpu.block_bytes) tiles = {tiles.columns, 2, 1};
  return tiles;
}

bool on_tensor_cores(const AttentionTraits& call) { return half(call.dtype) && call.head_dim <= kMaxHeadDim; }
bool on_hopper(const AttentionTraits& call, const GpuKind& gpu) { return gpu.hopper && call.aligned && call.head_dim <= kMaxHeadDim && !call.capped; }
bool has_long_rows(const AttentionTraits& call) { return call.tokens >= kLongOnHopper * call.sequences; }
/// Heads of more columns than this leave no room for several warpgroups' tiles: their kernels are one for rows of every length.
constexpr std::int64_t kWideHeads = 128;
AttentionKernel hopper_kernel(const AttentionTraits& call) {
  if (call.head_dim > kWideHeads) return AttentionKernel::hopper_wide;
  return has_long_rows(call) ? AttentionKernel::hopper_long : AttentionKernel::hopper_short;
}

void describe(std::ostream& out, const char* op, const AttentionTraits& call, const AttentionChoice& choice) {
  out << op << ' ' << dtype_name(call.dtype) << ", " << call.heads << '/' << call.kv_heads << " heads of " << call.head_dim
      << (call.aligned ? "" : " (not aligned)") << (call.window > 0 ? ", windowed" : "") << (call.capped ? ", capped" : "");
  // Lengths differ from call to call; what they decide does not.
  out << (call.most_queries <= kMostDecodeQueries ? ", rows of up to 4" : has_long_rows(call) ? ", rows of 160 or more" : ", short rows")
      << " -> " << name(choice.kernel);
  if (choice.kernel == AttentionKernel::tiles)
    out << ' ' << choice.tiles.columns << " columns, " << choice.tiles.warps << " warps, " << choice.tiles.stages << " stages";
  if (choice.keeps_ds) out << ", dS kept";
}

}  // namespace

const char* name(AttentionKernel kernel) {
  switch (kernel) {
    case AttentionKernel::plain: return "plain";
    case AttentionKernel::tiles: return "tiles";
    case AttentionKernel::hopper_short: return "hopper_short";
    case AttentionKernel::hopper_long: return "hopper_long";
    case AttentionKernel::hopper_wide: return "hopper_wide";
    case AttentionKernel::decode: return "decode";
  }
  return "";
}
const char* name(CrossEntropyKernel kernel) {
  switch (kernel) {
    case CrossEntropyKernel::scalar: return "scalar";
    case CrossEntropyKernel::wide: return "wide";
    case CrossEntropyKernel::clusters: return "clusters";
  }
  return "";
}
const char* name(LoraOp op) {
  switch (op) {
    case LoraOp::inner: return "lora_inner";
    case LoraOp::norm_inner: return "norm_lora_inner";
    case LoraOp::swiglu_inner: return "swiglu_lora_inner";
    case LoraOp::output_grads: return "lora_output_grads";
    case LoraOp::input_grad: return "lora_input_grad";
    case LoraOp::norm_input_grad: return "lora_input_grad_norm";
    case LoraOp::swiglu_grad: return "lora_swiglu_grad";
    case LoraOp::a_grad: return "lora_a_grad";
  }
  return "";
}
const char* name(LoraKernel kernel) {
  switch (kernel) {
    case LoraKernel::few: return "few";
    case LoraKernel::fused: return "fused";
    case LoraKernel::plain: return "plain";
    case LoraKernel::products: return "products";
  }
  return "";
}

AttentionChoice attention_forward_choice(const AttentionTraits& call, const GpuKind& gpu) {
  AttentionChoice choice;
  // A sequence's kernel is the same whatever stands beside it: replies do not depend on their neighbours.
  // Soft caps of scores: the plain kernels and the tiles know them.
  const bool few = call.most_queries >= 1 && call.most_queries <= kMostDecodeQueries && !call.keeps_lse && !call.capped;
  if (on_tensor_cores(call)) {
    if (few && call.aligned && call.sequences <= kMostGrid && call.most_splits <= kMostGrid) {
      choice.kernel = AttentionKernel::decode;
    } else if (on_hopper(call, gpu)) {
      choice.kernel = hopper_kernel(call);
    } else {
      choice.kernel = AttentionKernel::tiles;
      choice.tiles = forward_tiles(call, gpu);
    }
  }
  tell(gpu, [&](std::ostream& out) { describe(out, "attention_forward", call, choice); });
  return choice;
}

AttentionChoice attention_backward_choice(const AttentionTraits& call, const GpuKind& gpu) {
  AttentionChoice choice;
  if (on_tensor_cores(call)) {
    if (on_hopper(call, gpu)) {
      choice.kernel = hopper_kernel(call);
      choice.turns_back = call.head_dim == 64 || call.head_dim == 128 || call.head_dim == 256;
      choice.keeps_ds = choice.kernel == AttentionKernel::hopper_long && call.window == 0;
    } else {
      choice.kernel = AttentionKernel::tiles;
      choice.tiles = backward_tiles(call, gpu);
    }
  }
  tell(gpu, [&](std::ostream& out) { describe(out, "attention_backward", call, choice); });
  return choice;
}

CrossEntropyKernel cross_entropy_choice(std::int64_t vocab, bool padded, bool shaped, const GpuKind& gpu) {
  constexpr std::size_t kMostShared = 200 << 10;
  const auto bytes = static_cast<std::size_t>(cluster_columns(vocab)) * sizeof(float);
  const CrossEntropyKernel kernel = !padded                               ? CrossEntropyKernel::scalar
                                    : gpu.hopper && !shaped && bytes <= kMostShared ? CrossEntropyKernel::clusters
                                                                         : CrossEntropyKernel::wide;
  tell(gpu, [&](std::ostream& out) { out << "cross_entropy, " << vocab << " tokens" << (shaped ? ", shaped" : "") << " -> " << name(kernel); });
  return kernel;
}

LoraKernel lora_choice(LoraOp op, const LoraTraits& call, const GpuKind& gpu) {
  // Tiles that one kernel takes: limits of its registers and shared memory.
  constexpr std::int64_t kFewTiles = 8, kNormTiles = 6, kSwiGluInnerTiles = 8, kSwiGluGradTiles = 2, kNormColumns = 12 * 1024,
                         kSwiGluTokens = std::int64_t{1} << 20;
  const bool tensor_cores = half(call.dtype) && call.aligned, few = call.tokens <= kFewTokens;
  LoraKernel kernel = tensor_cores ? LoraKernel::fused : LoraKernel::plain;
  const auto fused_if = [&](bool suits) { kernel = tensor_cores && suits ? LoraKernel::fused : LoraKernel::plain; };
  const bool fusable = call.pairs > 0 && call.most_rank <= kMostFusedRank;
  switch (op) {
    case LoraOp::inner:
      if (few && tensor_cores && !call.dropout && call.tiles <= kFewTiles)
        kernel = LoraKernel::few;
      else if (!few && call.most_rank > kMostFusedRank)
        kernel = LoraKernel::products;
      break;
    case LoraOp::norm_inner: fused_if(fusable && !few && call.tiles <= kNormTiles); break;
    case LoraOp::swiglu_inner: fused_if(fusable && !few && call.tiles <= kSwiGluInnerTiles && call.tokens <= kSwiGluTokens); break;
    case LoraOp::norm_input_grad: fused_if(fusable && call.tiles <= kNormTiles && call.columns <= kNormColumns); break;
    case LoraOp::swiglu_grad: fused_if(fusable && call.pairs == 1 && call.tiles <= kSwiGluGradTiles); break;
    case LoraOp::output_grads:
    case LoraOp::input_grad:
    case LoraOp::a_grad:
      if (call.most_rank > kMostFusedRank) kernel = LoraKernel::products;
      break;
  }
  tell(gpu, [&](std::ostream& out) {
    out << name(op) << ' ' << dtype_name(call.dtype) << ", " << call.pairs << " pairs of up to rank " << call.most_rank << ", " << call.tiles
        << " tiles" << (call.aligned ? "" : ", not aligned") << (call.dropout ? ", dropout" : "") << (few ? ", few tokens" : "") << " -> "
        << name(kernel);
  });
  return kernel;
}

const char* name(FewKernel kernel) {
  switch (kernel) {
    case FewKernel::plain: return "plain";
    case FewKernel::queues: return "queues";
    case FewKernel::bulk: return "bulk";
    case FewKernel::expanded: return "expanded";
  }
  return "";
}

FewKernel few_choice(const FewTraits& call, const GpuKind& gpu) {
  // Up to so many tokens queues take less time, up to so many they work at all.
  constexpr std::int64_t kBestQueues = 4, kMostQueues = 8;
  FewKernel kernel = FewKernel::expanded;
  if (call.tokens >= 1 && call.tokens <= kFewTokens && call.in % 32 == 0 && call.block >= 32 && call.aligned) {
    const bool queues = call.tokens <= kMostQueues && call.fits, bulk = gpu.hopper && call.in % 64 == 0 && call.block >= 64;
    if (call.dtype == DType::f32)
      kernel = FewKernel::plain;
    else if (queues && (call.tokens <= kBestQueues || !bulk))
      kernel = FewKernel::queues;
    else if (bulk)
      kernel = FewKernel::bulk;
  }
  tell(gpu, [&](std::ostream& out) {
    out << "product of few tokens " << dtype_name(call.dtype) << ", " << call.tokens << " x " << call.in << ", blocks of " << call.block
        << (call.aligned ? "" : ", not aligned") << (call.fits ? "" : ", more than shared memory") << " -> " << name(kernel);
  });
  return kernel;
}

bool suits_e4m3(DType compute, std::int64_t in, std::span<const std::int64_t> part_rows) {
  return half(compute) && in % kFp8Piece == 0 && std::all_of(part_rows.begin(), part_rows.end(), [](std::int64_t rows) { return rows % kFp8Piece == 0; });
}

const char* name(ExpertsKernel kernel) {
  switch (kernel) {
    case ExpertsKernel::each: return "each";
    case ExpertsKernel::grouped: return "grouped";
    case ExpertsKernel::grouped_e4m3: return "grouped_e4m3";
  }
  return "";
}

bool has_row_scales(const GpuKind& gpu) {
  // A build without Hopper's own code leaves them out there too, so that what other GPUs run can be tested.
  tell(gpu, [&](std::ostream& out) { out << "product of e4m3 numbers -> " << (gpu.hopper ? "a scale a row" : "scales behind its sums"); });
  return gpu.hopper;
}

ExpertsKernel experts_choice(const ExpertsTraits& call, const GpuKind& gpu) {
  // Of so few rows the experts chosen read their own codes sooner than all are expanded.
  constexpr std::int64_t kFewRows = 64;
  const bool suits = gpu.hopper && half(call.dtype) && call.in % 8 == 0 && call.out % 8 == 0;
  ExpertsKernel kernel = ExpertsKernel::each;
  if (suits && call.e4m3)
    kernel = ExpertsKernel::grouped_e4m3;  // however few: what stands for 4-bit codes is in e4m3, whose every expert is expanded anyway
  else if (suits && !(call.packed && call.rows <= kFewRows))
    kernel = ExpertsKernel::grouped;
  tell(gpu, [&](std::ostream& out) {
    out << "experts' product " << dtype_name(call.dtype) << ", " << call.out << " x " << call.in << (call.packed ? ", packed" : "")
        << (call.e4m3 ? ", in e4m3" : "") << (call.rows <= kFewRows ? ", few rows" : "") << " -> " << name(kernel);
  });
  return kernel;
}

int expert_grad_shares(std::int64_t experts, std::int64_t columns, std::int64_t rank) {
  constexpr std::int64_t kEnough = 528, kMost = 8;
  const std::int64_t blocks = experts * ((columns + kExpertGradColumns - 1) / kExpertGradColumns) * ((rank + 63) / 64);
  std::int64_t shares = 1;
  while (shares < kMost && blocks * shares < kEnough) shares *= 2;
  return static_cast<int>(shares);
}

std::int64_t experts_of_a_weight(std::int64_t experts, std::int64_t in, std::int64_t out, DType compute) {
  constexpr std::int64_t kMostBytes = std::int64_t{512} << 20;
  const std::int64_t most = std::max<std::int64_t>(1, kMostBytes / (in * out * static_cast<std::int64_t>(dtype_bytes(compute))));
  std::int64_t together = std::min(experts, most);
  while (experts % together != 0) --together;
  return together;
}

}  // namespace pipelora::cuda
