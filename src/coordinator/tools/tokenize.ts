import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import { lostText } from "../../data/dataset.ts";
import { encodeDataset } from "../../data/encode.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import { readModelSpec } from "../../models/index.ts";
import { type TemplateSettings, templateOf } from "../planning/training-data.ts";

export interface TokenizedRow {
  readonly ids: readonly number[];
  /** Only for rows that training would label. */
  readonly labels?: readonly number[];
}

/**
 * Rows of {"text"} as the tokenizer encodes them; any other dataset as training will see it, labels beside. The first row
 * decides which. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID.
 */
export async function* tokenizeFile(
  config: TemplateSettings & Pick<Config, "input" | "columns" | "max_length">,
  warn: (text: string) => void,
): AsyncGenerator<TokenizedRow> {
  const path = config.input!;
  if (Object.keys(config.columns).length === 0 && (await holdsText(path))) {
    const tokenizer = await loadTokenizer(config.model!);
    for await (const text of textLines(path)) yield { ids: tokenizer.encode(text, { addSpecials: true }) };
    return;
  }
  const spec = await readModelSpec(config.model!);
  const options = { maxLength: config.max_length, vocabSize: spec.shape.vocab, columns: config.columns };
  const dataset = await encodeDataset(path, templateOf(config), options);
  const lost = lostText(dataset.statistics);
  if (lost !== null) warn(lost);
  for (let index = 0; index < dataset.size; index++) {
    const { tokens, labels } = dataset.row(index);
    yield { ids: [...tokens], labels: [...labels] };
  }
}

async function holdsText(path: string): Promise<boolean> {
  if (!/\.(jsonl|ndjson)$/i.test(path)) return false;
  for await (const line of lines(path)) {
    if (line.trim() !== "") return textOf(line) !== null;
  }
  return false;
}

async function* textLines(path: string): AsyncGenerator<string> {
  let number = 0;
  for await (const line of lines(path)) {
    number++;
    if (line.trim() === "") continue;
    const text = textOf(line);
    if (text === null) {
      throw new PipeloraError("PL_DATASET_INVALID", `${path}: line ${number} has no "text": ${line.slice(0, 80)}`, {
        hint: 'Write every line as {"text": "…"}.',
      });
    }
    yield text;
  }
}

async function* lines(path: string): AsyncGenerator<string> {
  try {
    yield* createInterface({ input: createReadStream(path, "utf8"), crlfDelay: Number.POSITIVE_INFINITY });
  } catch (cause) {
    throw new PipeloraError("PL_DATASET_INVALID", `${path} can't be read: ${(cause as Error).message}`, { cause });
  }
}

function textOf(line: string): string | null {
  try {
    const text = (JSON.parse(line) as { text?: unknown } | null)?.text;
    return typeof text === "string" ? text : null;
  } catch {
    return null;
  }
}
