// The table of kernels, without a GPU: the choices at which it was measured, and properties that every choice must have.
#include "ops/cuda/kernel_choice.h"

#include <doctest/doctest.h>

using namespace pipelora;
using namespace pipelora::cuda;

namespace {

constexpr GpuKind kHopper{true, 227 << 10}, kA100{false, 163 << 10}, kAda{false, 99 << 10};
constexpr GpuKind kGpus[] = {kHopper, kA100, kAda};
constexpr DType kHalves[] = {DType::bf16, DType::f16};

AttentionTraits rows(std::int64_t head_dim, std::int64_t length, std::int64_t count = 1) {
  AttentionTraits traits;
  traits.dtype = DType::bf16;
  traits.heads = 8;
  traits.kv_heads = 2;
  traits.head_dim = head_dim;
  traits.tokens = length * count;
  traits.sequences = count;
  traits.most_queries = length;
  traits.aligned = head_dim % 8 == 0;
  traits.keeps_lse = true;
  return traits;
}

LoraTraits lora(std::int64_t tokens, std::int64_t rank, std::int64_t pairs) {
  LoraTraits traits;
  traits.dtype = DType::bf16;
  traits.tokens = tokens;
  traits.columns = 4096;
  traits.pairs = pairs;
  traits.most_rank = rank;
  traits.tiles = pairs * ((rank + 7) / 8);
  traits.aligned = true;
  return traits;
}

}  // namespace

TEST_CASE("attention: 16-bit heads of every width up to 256 run on tensor cores, within a block's shared memory") {
  for (const GpuKind& gpu : kGpus) {
    for (const DType dtype : kHalves) {
      for (std::int64_t width = 1; width <= kMaxHeadDim; ++width) {
        for (const std::int64_t length : {1, 5, 64, 200, 4096}) {
          AttentionTraits call = rows(width, length);
          call.dtype = dtype;
          for (const bool forward : {true, false}) {
            const AttentionChoice choice = forward ? attention_forward_choice(call, gpu) : attention_backward_choice(call, gpu);
            CHECK(choice.kernel != AttentionKernel::plain);
            CHECK(choice.kernel != AttentionKernel::decode);  // a backward pass needs the log-sum-exp
            if (choice.kernel != AttentionKernel::tiles) {
              CHECK(gpu.hopper);
              continue;
            }
            CHECK(choice.tiles.columns >= width);
            const int own = choice.tiles.warps * 16 * (forward ? 1 : 2);
            CHECK(static_cast<std::size_t>((own + choice.tiles.stages * 128) * choice.tiles.columns * 2) <= gpu.block_bytes);
          }
        }
      }
    }
  }
}

TEST_CASE("attention: which kernels are whose") {
  CHECK(attention_forward_choice(rows(128, 4096), kHopper).kernel == AttentionKernel::hopper_long);
  CHECK(attention_forward_choice(rows(128, 68, 8), kHopper).kernel == AttentionKernel::hopper_short);
  CHECK(attention_forward_choice(rows(128, 4096), kA100).kernel == AttentionKernel::tiles);
  for (const std::int64_t width : {136, 192, 256})
    for (const std::int64_t length : {5, 64, 384, 8192}) {
      CHECK(attention_forward_choice(rows(width, length), kHopper).kernel == AttentionKernel::hopper_wide);
      const AttentionChoice back = attention_backward_choice(rows(width, length), kHopper);
      CHECK(back.kernel == AttentionKernel::hopper_wide);
      CHECK_FALSE(back.keeps_ds);
      CHECK(back.turns_back == (width == 256));
    }
  AttentionTraits bent = rows(250, 384);  // rows that can't be read 16 bytes at a time
  CHECK(attention_forward_choice(bent, kHopper).tiles == AttentionTiles{256, 4, 2});
  CHECK(attention_backward_choice(bent, kHopper).tiles == AttentionTiles{256, 4, 2});
  CHECK(attention_forward_choice(rows(256, 4096), kAda).tiles == AttentionTiles{256, 4, 1});
  CHECK(attention_backward_choice(rows(256, 4096), kA100).tiles == AttentionTiles{256, 2, 1});
  CHECK(attention_forward_choice(rows(100, 300), kHopper).kernel == AttentionKernel::tiles);
  AttentionTraits single = rows(128, 1);
  single.keeps_lse = false;
  single.most_splits = 16;
  CHECK(attention_forward_choice(single, kHopper).kernel == AttentionKernel::decode);
  CHECK(attention_forward_choice(single, kAda).kernel == AttentionKernel::decode);
  single.dtype = DType::f32;
  CHECK(attention_forward_choice(single, kHopper).kernel == AttentionKernel::plain);
  AttentionTraits windowed = rows(128, 4096);
  CHECK(attention_backward_choice(windowed, kHopper).keeps_ds);
  CHECK(attention_backward_choice(windowed, kHopper).turns_back);
  windowed.window = 1024;
  CHECK_FALSE(attention_backward_choice(windowed, kHopper).keeps_ds);
  CHECK_FALSE(attention_backward_choice(rows(96, 4096), kHopper).turns_back);
}

TEST_CASE("attention: scores under a cap go to the tiles, or to the plain kernels, whatever the GPU") {
  for (const GpuKind& gpu : kGpus)
    for (const std::int64_t width : {16, 64, 96, 128, 256})
      for (const std::int64_t length : {1, 4, 200, 4096})
        for (const DType dtype : {DType::bf16, DType::f16, DType::f32}) {
          AttentionTraits call = rows(width, length);
          call.dtype = dtype;
          call.capped = true;
          const AttentionKernel expected = dtype == DType::f32 ? AttentionKernel::plain : AttentionKernel::tiles;
          const AttentionChoice backward = attention_backward_choice(call, gpu);
          CHECK(backward.kernel == expected);
          CHECK_FALSE(backward.turns_back);
          CHECK_FALSE(backward.keeps_ds);
          call.keeps_lse = false;
          call.most_splits = 16;
          CHECK(attention_forward_choice(call, gpu).kernel == expected);
        }
}

TEST_CASE("cross entropy: logits in shape never go to the clusters, which keep exponentials alone") {
  CHECK(cross_entropy_choice(256000, true, true, kHopper) == CrossEntropyKernel::wide);
  CHECK(cross_entropy_choice(256001, false, true, kHopper) == CrossEntropyKernel::scalar);
}

TEST_CASE("cross entropy: rows that begin on 16 bytes never go a number at a time") {
  for (const std::int64_t vocab : {32000, 32001, 151936, 152064, 262144}) {
    CHECK(cross_entropy_choice(vocab, true, false, kHopper) == CrossEntropyKernel::clusters);
    CHECK(cross_entropy_choice(vocab, true, false, kA100) == CrossEntropyKernel::wide);
    CHECK(cross_entropy_choice(vocab, false, false, kHopper) == CrossEntropyKernel::scalar);
  }
  CHECK(cross_entropy_choice(500000, true, false, kHopper) == CrossEntropyKernel::wide);  // more than the cluster's shared memory
}

TEST_CASE("LoRA: fused up to rank 16, products beyond, whatever the operation") {
  constexpr LoraOp kOps[] = {LoraOp::inner, LoraOp::norm_inner, LoraOp::swiglu_inner, LoraOp::output_grads,
                             LoraOp::input_grad, LoraOp::norm_input_grad, LoraOp::swiglu_grad, LoraOp::a_grad};
  for (const LoraOp op : kOps) {
    for (std::int64_t rank = 1; rank <= 256; ++rank) {
      for (const std::int64_t pairs : {1, 2, 3}) {
        const LoraKernel kernel = lora_choice(op, lora(3072, rank, pairs), kHopper);
        // One pair of up to sixteen ranks: every operation has its fused kernel.
        if (rank <= kMostFusedRank && pairs == 1) CHECK(kernel == LoraKernel::fused);
        if (rank > kMostFusedRank) CHECK(kernel != LoraKernel::fused);
        LoraTraits single = lora(3072, rank, pairs);
        single.dtype = DType::f32;
        CHECK(lora_choice(op, single, kHopper) != LoraKernel::fused);
        // What follows a norm keeps its fused kernels with q, k and v apart.
        if (rank <= kMostFusedRank && (op == LoraOp::norm_inner || op == LoraOp::norm_input_grad)) CHECK(kernel == LoraKernel::fused);
      }
    }
  }
  CHECK(lora_choice(LoraOp::inner, lora(kFewTokens, 8, 3), kHopper) == LoraKernel::few);
  CHECK(lora_choice(LoraOp::inner, lora(kFewTokens + 1, 8, 3), kHopper) == LoraKernel::fused);
  LoraTraits dropped = lora(8, 8, 3);
  dropped.dropout = true;
  CHECK(lora_choice(LoraOp::inner, dropped, kHopper) == LoraKernel::fused);
  CHECK(lora_choice(LoraOp::norm_input_grad, [] { auto wide = lora(3072, 8, 1); wide.columns = 12296; return wide; }(), kHopper) == LoraKernel::plain);
}

TEST_CASE("products of few tokens: float32 has the plain kernel, 16 bits one that suits the shape and the GPU") {
  for (const GpuKind& gpu : kGpus)
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const std::int64_t tokens : {1, 4, 5, 8, 9, 64, 65})
        for (const std::int64_t in : {48, 96, 128, 4096})
          for (const std::int64_t block : {16, 32, 64, 4096})
            for (const bool fits : {false, true}) {
              const FewKernel kernel = few_choice({dtype, tokens, in, block, true, fits}, gpu);
              if (tokens > kFewTokens || in == 48 || block == 16) {
                CHECK(kernel == FewKernel::expanded);
              } else if (dtype == DType::f32) {
                CHECK(kernel == FewKernel::plain);
              } else {
                const bool bulk = gpu.hopper && in != 96 && block >= 64, queues = fits && tokens <= 8;
                CHECK((kernel == FewKernel::bulk) == (bulk && (tokens > 4 || !queues)));
                CHECK((kernel == FewKernel::queues) == (queues && (tokens <= 4 || !bulk)));
              }
              CHECK(few_choice({dtype, tokens, in, block, false, fits}, gpu) == FewKernel::expanded);
            }
}

TEST_CASE("e4m3 takes widths of whole pieces of 16, of every part") {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (std::int64_t in = 1; in <= 80; ++in)
      for (std::int64_t out = 1; out <= 80; ++out) {
        const bool suits = dtype != DType::f32 && in % 16 == 0 && out % 16 == 0;
        const std::int64_t one[] = {out}, with_others[] = {32, out, 48}, halves[] = {out, 96 - out};
        CHECK(suits_e4m3(dtype, in, one) == suits);
        CHECK(suits_e4m3(dtype, in, with_others) == suits);
        CHECK(suits_e4m3(dtype, in, halves) == suits);  // together 96, which would suit
      }
}

TEST_CASE("a scale a row in cuBLASLt's products is Hopper's alone") {
  CHECK(has_row_scales(kHopper));
  CHECK_FALSE(has_row_scales(kAda));
}

TEST_CASE("experts' products") {
  for (const GpuKind& gpu : kGpus)
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const std::int64_t in : {64, 72, 100, 2048})
        for (const std::int64_t out : {45, 768, 5760})
          for (const std::int64_t rows : {1, 64, 65, 4096})
            for (const bool packed : {false, true}) {
              const bool suits = gpu.hopper && dtype != DType::f32 && in % 8 == 0 && out % 8 == 0;
              const ExpertsKernel wide = experts_choice({dtype, in, out, rows, packed}, gpu), eight = experts_choice({dtype, in, out, rows, packed, true}, gpu);
              CHECK(wide == (suits && (!packed || rows > 64) ? ExpertsKernel::grouped : ExpertsKernel::each));
              // Few rows or many, expanded for each product or kept: the same bits.
              CHECK(eight == (suits ? ExpertsKernel::grouped_e4m3 : ExpertsKernel::each));
            }
}

TEST_CASE("blocks that share an expert's rows: as many as fill a GPU, up to eight, and one where experts and columns do") {
  for (const std::int64_t experts : {1, 4, 8, 60, 128, 256})
    for (const std::int64_t columns : {8, 64, 136, 768, 2048, 28672})
      for (const std::int64_t rank : {1, 16, 64, 65, 256}) {
        const int shares = expert_grad_shares(experts, columns, rank);
        const std::int64_t blocks = experts * ((columns + 127) / 128) * ((rank + 63) / 64);
        CHECK((shares == 1 || shares == 2 || shares == 4 || shares == 8));
        CHECK((blocks * shares >= 528 || shares == 8));
        CHECK((shares == 1 || blocks * shares / 2 < 528));
      }
  CHECK(expert_grad_shares(128, 768, 16) == 1);   // Qwen3-30B-A3B
  CHECK(expert_grad_shares(8, 4096, 16) == 4);    // Mixtral 8x7B
  CHECK(expert_grad_shares(16, 5120, 8) == 1);    // Llama 4 Scout
}

TEST_CASE("experts of one weight divide a mixture, and are as many as half a GiB expanded has room for") {
  for (const std::int64_t experts : {1, 7, 8, 60, 128, 256})
    for (const std::int64_t in : {64, 2048, 7168})
      for (const std::int64_t out : {64, 1536, 28672})
        for (const DType dtype : {DType::f32, DType::bf16}) {
          const std::int64_t together = experts_of_a_weight(experts, in, out, dtype), bytes = in * out * static_cast<std::int64_t>(dtype_bytes(dtype));
          CHECK(experts % together == 0);
          CHECK((together == 1 || together * bytes <= std::int64_t{512} << 20));
          for (std::int64_t more = together + 1; more <= experts; ++more) CHECK((experts % more != 0 || more * bytes > std::int64_t{512} << 20));
        }
  CHECK(experts_of_a_weight(128, 2048, 1536, DType::bf16) == 64);  // Qwen3-30B-A3B's gate and up
  CHECK(experts_of_a_weight(8, 4096, 28672, DType::bf16) == 2);    // Mixtral 8x7B's
}
