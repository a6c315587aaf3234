import { copyFile, readdir } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { TOKENIZER_FILES } from "./load.ts";

/** Copies the tokenizer of a model folder; the files' names. Error: PL_OUTPUT_UNWRITABLE. */
export async function copyTokenizer(modelDir: string, outputDir: string): Promise<string[]> {
  const present = new Set(await readdir(modelDir));
  const files = TOKENIZER_FILES.filter((name) => present.has(name));
  try {
    for (const name of files) await copyFile(join(modelDir, name), join(outputDir, name));
  } catch (cause) {
    const message = `can't copy the tokenizer to ${outputDir}: ${(cause as Error).message}`;
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", message, { cause });
  }
  return files;
}
