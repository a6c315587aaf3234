import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";

/** What save_pretrained of a tokenizer writes, and vocabularies it needs beside. */
const TOKENIZER_FILES =
  /^(tokenizer\.json|tokenizer\.model|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja|[\w-]+\.tiktoken)$/;

/** Copies the tokenizer of a model folder; the files' names. */
export async function copyTokenizer(modelDir: string, outputDir: string): Promise<string[]> {
  const files = (await readdir(modelDir)).filter((name) => TOKENIZER_FILES.test(name));
  try {
    for (const name of files) await copyFile(join(modelDir, name), join(outputDir, name));
  } catch (cause) {
    throw new PipeloraError(
      "PL_OUTPUT_UNWRITABLE",
      `can't copy the tokenizer to ${outputDir}: ${(cause as Error).message}`,
      {
        cause,
      },
    );
  }
  return files;
}
