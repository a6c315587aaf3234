import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../common/root.ts";
import { defaultConfig } from "../../config/load.ts";
import { trainBpe } from "../../formats/tokenizer/train-bpe.ts";
import { initModel } from "./init-model.ts";

const SOURCE = join(PACKAGE_ROOT, "examples", "demo");

/** The demo's rows: {"instruction", "output"} a line. */
export const DEMO_DATASET = join(SOURCE, "data.jsonl");
export const DEMO_SYSTEM = "You explain this trainer in one sentence.";

/** Writes a small Qwen-shaped checkpoint of random weights into a folder, with a tokenizer learnt from the demo's rows. */
export async function makeDemoModel(dir: string): Promise<void> {
  const config = join(SOURCE, "config.json");
  const { vocab_size } = JSON.parse(await readFile(config, "utf8")) as { vocab_size: number };
  const rows = (await readFile(DEMO_DATASET, "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { instruction: string; output: string });
  const texts = rows.flatMap(({ instruction, output }) => [
    `system\n${DEMO_SYSTEM}`,
    `user\n${instruction}`,
    `assistant\n${output}\n`,
  ]);
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, "qwen.tiktoken"), trainBpe(texts, vocab_size));
  const tokenizer = { tokenizer_class: "QWenTokenizer", model_max_length: 512 };
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(tokenizer));
  await initModel({ ...defaultConfig(), config, output_dir: dir });
}
