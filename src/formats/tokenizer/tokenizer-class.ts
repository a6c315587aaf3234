import { join } from "node:path";
import { z } from "zod";
import { isFile } from "../../common/files.ts";
import { check, readJson, type TokenizerConfig } from "./hf-config.ts";

const modelConfig = z.looseObject({ model_type: z.string().optional() });

/** transformers' class for a model_type, where tokenizer_config.json names none (its AutoTokenizer's table). */
const BY_MODEL_TYPE: ReadonlyMap<string, string> = new Map(
  Object.entries({
    Qwen2Tokenizer: ["qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl"],
    Qwen3_5Tokenizer: ["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"],
    GPT2Tokenizer: ["gpt2", "codegen", "phi", "starcoder2", "gpt_bigcode"],
    GPTNeoXTokenizer: ["gpt_neox", "olmo", "olmoe"],
    LlamaTokenizer: ["llama", "mistral", "mixtral", "minicpm"],
    GemmaTokenizer: ["gemma", "gemma2", "gemma3_text"],
    InternLM2Tokenizer: ["internlm2"],
    BaichuanTokenizer: ["baichuan"],
    ChatGLMTokenizer: ["chatglm"],
  }).flatMap(([name, types]) => types.map((type) => [type, name] as const)),
);

/** The tokenizer's class without "Fast" at its end; null where neither file tells. Error: PL_TOKENIZER_INVALID. */
export async function tokenizerClass(dir: string, config: TokenizerConfig): Promise<string | null> {
  const named = config.tokenizer_class ?? null;
  if (named !== null) return named.replace(/Fast$/, "");
  const path = join(dir, "config.json");
  if (!(await isFile(path))) return null;
  const { model_type: type } = check(modelConfig, path, await readJson(path));
  return BY_MODEL_TYPE.get(type ?? "") ?? null;
}
