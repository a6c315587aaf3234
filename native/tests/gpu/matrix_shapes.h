// Widths of published models, for cuda_matrix.
#pragma once

#include <cstdint>

#include "tests/gpu/family_rules.h"

namespace pipelora::test {

struct Shape {
  const char* name;
  std::int64_t hidden, heads, kv_heads, head_dim, ffn, vocab;
  bool fused_qkv, bias, head_norms, tied;
  const FamilyRules* family = &kLlamaRules;
  const Mixture* experts = nullptr;
};

/// The vocabularies are short, odd where a published one is.
inline constexpr Shape kShapes[] = {
    {"Qwen-7B", 4096, 32, 32, 128, 11008, 1936, true, true, false, false},
    {"Qwen2.5-0.5B", 896, 14, 2, 64, 4864, 1936, false, true, false, true},
    {"Qwen2.5-7B", 3584, 28, 4, 128, 18944, 2064, false, true, false, false},
    {"Qwen2.5-14B", 5120, 40, 8, 128, 13824, 2064, false, true, false, false},
    {"Llama-3.2-1B", 2048, 32, 8, 64, 8192, 1256, false, false, false, true},
    {"Llama-3-8B", 4096, 32, 8, 128, 14336, 1256, false, false, false, false},
    {"Mistral-7B", 4096, 32, 8, 128, 14336, 1001, false, false, false, false},
    {"Gemma-2B's heads", 2048, 8, 1, 256, 5632, 1601, false, false, false, true},
    {"Phi-3's heads", 3072, 32, 32, 96, 8192, 1065, true, false, false, false},
    {"Qwen3-0.6B", 1024, 16, 8, 128, 3072, 1936, false, false, true, true},
    {"Gemma-2-9B", 3584, 16, 8, 256, 14336, 1601, false, false, false, true, &kFamilyRules[0]},
    {"Gemma-3-1B", 1152, 4, 1, 256, 6912, 1601, false, false, true, true, &kFamilyRules[1]},
    {"Gemma-3-27B's heads", 2688, 16, 8, 128, 8192, 1601, false, false, true, true, &kFamilyRules[1]},
    {"GLM-4-9B", 4096, 32, 2, 128, 13696, 1184, false, true, false, false, &kFamilyRules[2]},
    {"Phi-4-mini", 3072, 24, 8, 128, 8192, 1065, true, false, false, true, &kFamilyRules[3]},
    {"Granite-3.1-2B", 2048, 32, 8, 64, 8192, 1155, false, false, false, true, &kFamilyRules[4]},
    {"OLMo-2-7B", 4096, 32, 32, 128, 11008, 1352, false, false, true, false, &kFamilyRules[5]},
    {"Command-R7B", 4096, 32, 8, 128, 14336, 1000, false, false, false, true, &kFamilyRules[6]},
    {"Hunyuan-7B", 4096, 32, 8, 128, 14336, 1167, false, false, true, true, &kFamilyRules[7]},
    {"Ministral-3-8B", 4096, 32, 8, 128, 14336, 1072, false, false, false, false, &kFamilyRules[8]},
    {"InternLM2-7B", 4096, 32, 8, 128, 14336, 1544, true, false, false, false, &kFamilyRules[9]},
    {"Qwen3.5-4B", 2560, 16, 4, 256, 9216, 1601, false, false, true, true, &kFamilyRules[10]},
    {"Qwen3-Next-80B-A3B's attention", 2048, 16, 2, 256, 5120, 1936, false, false, true, false, &kFamilyRules[11]},
    {"DeepSeek-V2-Lite's attention", 2048, 16, 16, 192, 10944, 1601, false, false, false, false, &kFamilyRules[12]},
    {"Qwen3-30B-A3B", 2048, 32, 4, 128, 6144, 1936, false, false, true, false, &kLlamaRules, &kQwen3Moe},
    {"Qwen1.5-MoE", 2048, 16, 16, 128, 5632, 1936, false, true, false, false, &kLlamaRules, &kQwen2Moe},
    {"Mixtral-8x7B's heads", 4096, 32, 8, 128, 14336, 1000, false, false, false, false, &kLlamaRules, &kMixtral},
    {"GLM-4.5-Air", 4096, 96, 8, 128, 10944, 1184, false, true, false, false, &kLlamaRules, &kGlm4Moe},
    {"Llama-4-Scout's attention", 5120, 40, 8, 128, 16384, 1263, false, false, false, false, &kFamilyRules[13]},
    {"Llama-4-Scout's experts", 5120, 40, 8, 128, 8192, 1263, false, false, false, false, &kFamilyRules[13], &kLlama4},
    {"gpt-oss-20b", 2880, 64, 8, 64, 2880, 1571, false, true, false, false, &kLlamaRules, &kGptOss},
};

}  // namespace pipelora::test
