import { PipeloraError } from "../common/errors.ts";
import { ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE } from "../formats/adapter.ts";
import { INDEX_FILE, type ModelNames, SINGLE_FILE, shardsHolding } from "../formats/checkpoint.ts";
import { TOKENIZER_FILES } from "../formats/tokenizer/load.ts";
import type { Snapshot } from "./snapshot.ts";

/** Fetched first, so that an error in it is found before the rest is fetched. */
const CONFIG_FILES = ["config.json", "generation_config.json"];
const README = "README.md";

/**
 * Fetches what describes a model, the configuration first: without weights. Its Python code is kept for `merge` and `quantize`, which
 * copy it, and is never run.
 */
export async function fetchModelConfig(snapshot: Snapshot): Promise<void> {
  if (!snapshot.paths.includes("config.json"))
    throw lacks(snapshot, "config.json", "no model in Hugging Face's layout");
  await snapshot.fetch(present(snapshot, CONFIG_FILES));
}

export async function fetchTokenizer(snapshot: Snapshot): Promise<void> {
  const code = snapshot.paths.filter((path) => /^[\w.-]+\.py$/.test(path));
  await snapshot.fetch([...present(snapshot, TOKENIZER_FILES), ...code]);
}

/**
 * Fetches the weights: model.safetensors, or the shards that the index names. `tensors`: those of a rank, as `model`
 * names them; only the files that hold them are fetched. Errors: PL_HUB_NOT_FOUND where there are none, and those of Snapshot.
 */
export async function fetchWeights(
  snapshot: Snapshot,
  tensors: readonly string[] | null = null,
  model?: ModelNames,
): Promise<void> {
  if (snapshot.paths.includes(SINGLE_FILE)) return snapshot.fetch([SINGLE_FILE]);
  if (!snapshot.paths.includes(INDEX_FILE)) throw lacks(snapshot, SINGLE_FILE, "no safetensors");
  await snapshot.fetch([INDEX_FILE]);
  await snapshot.fetch(await shardsHolding(snapshot.dir, tensors, model));
}

/** Fetches an adapter of peft, its configuration first. */
export async function fetchAdapter(snapshot: Snapshot): Promise<void> {
  for (const file of [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE]) {
    if (!snapshot.paths.includes(file)) throw lacks(snapshot, file, "no adapter of peft in safetensors");
    await snapshot.fetch([file]);
  }
}

/** The card of a repository as text; empty where it has none. */
export async function fetchCard(snapshot: Snapshot, read: (path: string) => Promise<string>): Promise<string> {
  if (!snapshot.paths.includes(README)) return "";
  await snapshot.fetch([README]);
  return read(snapshot.pathOf(README));
}

function present(snapshot: Snapshot, names: readonly string[]): string[] {
  return names.filter((name) => snapshot.paths.includes(name));
}

function lacks({ reference, paths }: Snapshot, file: string, what: string): PipeloraError {
  const seen = (pattern: RegExp) => paths.some((path) => pattern.test(path));
  const hint = seen(/(^|\/)pytorch_model.*\.bin$|^adapter_model\.bin$/)
    ? "Its weights are pickles, which are never read: look for a revision or a copy in safetensors, or convert them."
    : seen(/\.gguf$/)
      ? "It holds GGUF files: name the repository that they were made from."
      : seen(/(^|\/)adapter_config\.json$/)
        ? "It is an adapter: name it with --adapter, its base with --model."
        : "Check the name.";
  return new PipeloraError("PL_HUB_NOT_FOUND", `${reference.name} has no ${file}: ${what}`, { hint });
}
