import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { isFile } from "../../common/files.ts";
import { loadHfTokenizer } from "./hf.ts";
import { loadQwenTiktoken } from "./tiktoken.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Files of a tokenizer, copied into checkpoints and exported models. */
export const TOKENIZER_FILES = [
  "qwen.tiktoken",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
] as const;

/** The tokenizer of a model folder: qwen.tiktoken, else tokenizer.json. Error: PL_TOKENIZER_INVALID. */
export async function loadTokenizer(modelDir: string): Promise<Tokenizer> {
  if (await isFile(join(modelDir, "qwen.tiktoken"))) return loadQwenTiktoken(join(modelDir, "qwen.tiktoken"));
  if (await isFile(join(modelDir, "tokenizer.json"))) return loadHfTokenizer(modelDir);
  throw new PipeloraError("PL_TOKENIZER_INVALID", `${modelDir} has neither qwen.tiktoken nor tokenizer.json.`, {
    hint: "Put the model's tokenizer files into its folder, or give a dataset of ready input_ids.",
  });
}
