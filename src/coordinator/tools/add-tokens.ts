import { readFile, realpath } from "node:fs/promises";
import { join } from "node:path";
import { float32Of } from "../../common/bytes.ts";
import { isFloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { readJsonFile } from "../../common/files.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import type { Config } from "../../config/options.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";
import { writeCheckpoint } from "../../formats/checkpoint-writer.ts";
import { fromFloat32 } from "../../formats/half.ts";
import { convertedTensor, readTensor, type TensorLocation, type TensorToWrite } from "../../formats/safetensors.ts";
import { appendTokens, refuseClosedVocabulary } from "../../formats/tokenizer/append.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import { type ModelSettings, setUpModel } from "../planning/model-setup.ts";
import { copyModelFiles, writeModelConfig } from "./model-files.ts";

const MAX_CONFIG_BYTES = 16 << 20;

export interface AddedTokens {
  readonly files: readonly string[];
  /** By token. */
  readonly ids: Readonly<Record<string, number>>;
  /** Rows that the embedding had, and has. */
  readonly rows: readonly [number, number];
  readonly warnings: readonly string[];
}

/**
 * The `add-tokens` command: adds the tokens of a file, one a line, to the model's vocabulary. They use spare rows of the embedding first;
 * missing rows are added, to the head too, each the mean of the existing ones. (transformers draws them around that mean.) Tokens that the
 * tokenizer already has are skipped, as in transformers' add_tokens.
 */
export async function addTokens(
  config: ModelSettings & Pick<Config, "output_dir" | "max_shard_size" | "new_tokens">,
  log: Logger,
): Promise<AddedTokens> {
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  const { spec, checkpoint } = setup;
  await refuseClosedVocabulary(setup.dir);
  const tokenizer = await loadTokenizer(setup.dir);
  const asked = await listed(config.new_tokens!);
  const fresh = asked.filter((token) => tokenizer.tokenId(token) === null);
  if (fresh.length === 0) {
    throw new PipeloraError("PL_CONFIG_INVALID", `${config.new_tokens}: the tokenizer has all of these tokens.`, {
      hint: "Train on the model as it is.",
    });
  }
  const dir = await ensureWritable(config.output_dir!);
  if ((await realpath(dir)) === (await realpath(setup.dir))) {
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `--output-dir ${dir} is the base model's own folder`, {
      hint: "Name another folder.",
    });
  }
  const ids = Object.fromEntries(fresh.map((token, index) => [token, tokenizer.vocabSize + index]));
  const { vocab } = spec.shape;
  const rows = Math.max(vocab, tokenizer.vocabSize + fresh.length);
  const ends = new Set(spec.layers.flatMap((layer) => (layer.kind === "block" ? [] : [layer.weight])));
  const items = checkpoint!.names.map((name): TensorToWrite => {
    const location = checkpoint!.locate(name);
    if (rows > vocab && ends.has(name) && location.shape[0] === vocab) return resized(name, location, rows);
    return { name, dtype: location.dtype, shape: location.shape, data: () => readTensor(location) };
  });
  const files = await writeCheckpoint(dir, items, config.max_shard_size);
  await writeModelConfig(setup, dir, spec.quantization?.computeDtype ?? null);
  await writeVocabSize(join(dir, "config.json"), rows);
  const copied = await copyModelFiles(setup.dir, dir);
  const changed = await appendTokens(dir, ids);
  return {
    files: [...new Set([...files, "config.json", ...copied, ...changed])],
    ids,
    rows: [vocab, rows],
    warnings: setup.warnings,
  };
}

/** Error: PL_CONFIG_INVALID. */
async function listed(path: string): Promise<string[]> {
  const text = await readFile(path, "utf8").catch((cause: unknown) => {
    throw new PipeloraError("PL_CONFIG_INVALID", `${path}: ${(cause as Error).message}`, {
      hint: "Name a file of tokens, a line each.",
      cause,
    });
  });
  const tokens = text.split(/\r?\n/).filter((line) => line !== "");
  if (tokens.length > 0) return [...new Set(tokens)];
  throw new PipeloraError("PL_CONFIG_INVALID", `${path}: no tokens.`, { hint: "Write a token a line." });
}

function resized(name: string, location: TensorLocation, rows: number): TensorToWrite {
  const { dtype, shape } = location;
  if (!isFloatDtype(dtype)) {
    throw new PipeloraError("PL_CONFIG_INVALID", `${name} is held in ${dtype}: rows can't be added to it.`, {
      hint: "Add tokens to the 16-bit checkpoint.",
    });
  }
  const more = rows - shape[0]!;
  const data = async function* () {
    const mean = fromFloat32(await meanRow(location), dtype);
    yield* convertedTensor(location, dtype);
    for (let index = 0; index < more; index++) yield mean;
  };
  return { name, dtype, shape: [rows, shape[1]!], data };
}

async function meanRow(location: TensorLocation): Promise<Float32Array> {
  const [rows, columns] = location.shape as [number, number];
  const sums = new Float64Array(columns);
  let at = 0;
  for await (const bytes of convertedTensor(location, "float32")) {
    for (const value of float32Of(bytes)) {
      sums[at] = sums[at]! + value;
      at = at + 1 === columns ? 0 : at + 1;
    }
  }
  return Float32Array.from(sums, (sum) => sum / rows);
}

/** Of the text model, where config.json has more. */
async function writeVocabSize(path: string, rows: number): Promise<void> {
  const config = (await readJsonFile(path, MAX_CONFIG_BYTES)) as Record<string, unknown>;
  const text = config["text_config"];
  const within = typeof text === "object" && text !== null && "vocab_size" in text;
  if (within) config["text_config"] = { ...text, vocab_size: rows };
  if (!within || "vocab_size" in config) config["vocab_size"] = rows;
  await writeTextAtomically(path, `${JSON.stringify(config, null, 2)}\n`);
}
