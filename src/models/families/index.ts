import type { ModelSpec } from "../spec.ts";
import { deepseekV2Spec, deepseekV3Spec } from "./deepseek.ts";
import { gemmaSpec } from "./gemma/gemma.ts";
import { gemma2Spec } from "./gemma/gemma2.ts";
import { gemma3Spec, gemma3TextSpec } from "./gemma/gemma3.ts";
import { chatglmSpec } from "./glm/chatglm.ts";
import { glm4Spec, glmSpec } from "./glm/glm.ts";
import { glm4MoeSpec } from "./glm/glm4-moe.ts";
import { gptOssSpec } from "./gpt-oss.ts";
import { baichuanSpec } from "./llama/baichuan.ts";
import { cohere2Spec } from "./llama/cohere2.ts";
import { ernie45Spec } from "./llama/ernie4-5.ts";
import { exaone4Spec } from "./llama/exaone4.ts";
import { graniteHybridSpec, graniteSpec } from "./llama/granite.ts";
import { hunyuanDenseSpec } from "./llama/hunyuan.ts";
import { internlm2Spec } from "./llama/internlm2.ts";
import { llamaSpec } from "./llama/llama.ts";
import { llama4Spec, llama4TextSpec } from "./llama/llama4.ts";
import { minicpmSpec } from "./llama/minicpm.ts";
import { ministral3Spec, mistral3Spec, mistralSpec } from "./llama/mistral.ts";
import { mixtralSpec } from "./llama/mixtral.ts";
import { olmo2Spec } from "./llama/olmo2.ts";
import { phi3Spec } from "./llama/phi3.ts";
import { seedOssSpec } from "./llama/seed-oss.ts";
import { smollm3Spec } from "./llama/smollm3.ts";
import { qwenSpec } from "./qwen/qwen.ts";
import { qwen2VlSpec, qwen3VlSpec, qwen25VlSpec } from "./qwen/qwen-vl.ts";
import { qwen2Spec } from "./qwen/qwen2.ts";
import { qwen2MoeSpec } from "./qwen/qwen2-moe.ts";
import { qwen3Spec } from "./qwen/qwen3.ts";
import { qwen3MoeSpec } from "./qwen/qwen3-moe.ts";
import { qwen3NextSpec, qwen35MoeSpec, qwen35MoeTextSpec, qwen35Spec, qwen35TextSpec } from "./qwen/qwen3-next.ts";

/** config.json (and generation_config.json) of one family to its spec. */
export type FamilyReader = (config: unknown, generation: unknown) => ModelSpec;

/** Families by config.json's model_type. */
export const FAMILIES: Readonly<Record<string, FamilyReader>> = {
  qwen: qwenSpec,
  qwen2: qwen2Spec,
  qwen3: qwen3Spec,
  qwen2_vl: qwen2VlSpec,
  qwen2_5_vl: qwen25VlSpec,
  qwen3_vl: qwen3VlSpec,
  qwen3_next: qwen3NextSpec,
  qwen3_5_text: qwen35TextSpec,
  qwen3_5: qwen35Spec,
  qwen3_5_moe_text: qwen35MoeTextSpec,
  qwen3_5_moe: qwen35MoeSpec,
  deepseek_v2: deepseekV2Spec,
  deepseek_v3: deepseekV3Spec,
  llama: llamaSpec,
  llama4_text: llama4TextSpec,
  llama4: llama4Spec,
  mistral: mistralSpec,
  ministral3: ministral3Spec,
  mistral3: mistral3Spec,
  gemma: gemmaSpec,
  gemma2: gemma2Spec,
  gemma3_text: gemma3TextSpec,
  gemma3: gemma3Spec,
  phi3: phi3Spec,
  glm: glmSpec,
  glm4: glm4Spec,
  granite: graniteSpec,
  granitemoehybrid: graniteHybridSpec,
  olmo2: olmo2Spec,
  smollm3: smollm3Spec,
  cohere2: cohere2Spec,
  seed_oss: seedOssSpec,
  ernie4_5: ernie45Spec,
  hunyuan_v1_dense: hunyuanDenseSpec,
  exaone4: exaone4Spec,
  internlm2: internlm2Spec,
  minicpm: minicpmSpec,
  baichuan: baichuanSpec,
  chatglm: chatglmSpec,
  qwen2_moe: qwen2MoeSpec,
  qwen3_moe: qwen3MoeSpec,
  mixtral: mixtralSpec,
  glm4_moe: glm4MoeSpec,
  gpt_oss: gptOssSpec,
};
