import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { elementCount } from "../../../src/common/dtype.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { expertsApart, holdAgainst } from "../../../src/coordinator/planning/held-checkpoint.ts";
import { adapterMatrices, openAdapter } from "../../../src/formats/adapter.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { openSafetensors, readTensor, type SafetensorsFile } from "../../../src/formats/safetensors.ts";
import { encodeHeader, type HeaderTensor } from "../../../src/formats/safetensors-header.ts";
import { expertWeights } from "../../../src/models/experts.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { holdAs, listParameters } from "../../../src/models/parameters.ts";
import { EXTREME_NUMBERS, mutateBytes, mutatedJson } from "../mutate.ts";
import type { Random } from "../random.ts";
import type { FuzzTarget } from "../target.ts";

const GOLDENS = join(PACKAGE_ROOT, "tests", "fixtures", "goldens");
export const GOLDEN_MODELS = ["qwen1", "qwen2-gqa-tied", "qwen3-moe-experts", "gpt-oss"].map((name) =>
  join(GOLDENS, name),
);

const TENSORS: readonly HeaderTensor[] = [
  { name: "a.weight", dtype: "float32", shape: [4, 3] },
  { name: "b.weight", dtype: "bfloat16", shape: [2, 2, 2] },
  { name: "empty", dtype: "float16", shape: [0, 7] },
  { name: "state", dtype: "uint8", shape: [5] },
];
const DATA_BYTES = 48 + 16 + 5;

/** A safetensors file of a few tensors, with something about it that is not so. */
export function mutatedSafetensors(random: Random): Buffer {
  const header = encodeHeader(TENSORS, { format: "pt" });
  const whole = Buffer.concat([header, random.bytes(DATA_BYTES)]);
  if (random.chance(0.4)) return mutateBytes(random, whole);
  const json = mutatedJson(random, JSON.parse(header.subarray(8).toString("utf8")));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  if (random.chance(0.2)) length.writeBigUInt64LE(BigInt.asUintN(64, BigInt(Math.trunc(random.pick(EXTREME_NUMBERS)))));
  return Buffer.concat([length, json, random.bytes(DATA_BYTES)]);
}

async function readsAll(file: SafetensorsFile): Promise<void> {
  for (const location of [...file.tensors.values()].slice(0, 32)) {
    const bytes = await readTensor(location);
    if (bytes.length !== location.bytes) throw new Error(`${location.bytes} bytes were located, ${bytes.length} read`);
  }
}

const safetensors: FuzzTarget = {
  name: "safetensors",
  make: (random, dir) => writeFileSync(join(dir, "model.safetensors"), mutatedSafetensors(random)),
  check: async (dir) => readsAll(await openSafetensors(join(dir, "model.safetensors"))),
};

const index: FuzzTarget = {
  name: "index",
  make(random, dir) {
    const weightMap = Object.fromEntries(
      TENSORS.map(({ name }, at) => [name, `model-0000${(at % 2) + 1}-of-00002.safetensors`]),
    );
    for (const shard of [0, 1]) {
      const own = TENSORS.filter((_, at) => at % 2 === shard);
      const bytes = Buffer.concat([encodeHeader(own, {}), random.bytes(shard === 0 ? 48 : 21)]);
      const path = join(dir, `model-0000${shard + 1}-of-00002.safetensors`);
      const kind = random.below(12);
      if (kind === 0) mkdirSync(path);
      else if (kind !== 1) writeFileSync(path, kind === 2 ? mutateBytes(random, bytes) : bytes);
    }
    const path = join(dir, "model.safetensors.index.json");
    if (random.chance(0.02)) mkdirSync(path);
    else writeFileSync(path, mutatedJson(random, { metadata: { total_size: DATA_BYTES }, weight_map: weightMap }));
  },
  async check(dir) {
    const checkpoint = await openCheckpoint(dir);
    for (const name of checkpoint.names.slice(0, 64)) await readTensor(checkpoint.locate(name));
  },
};

const named = Object.values(
  JSON.parse(readFileSync(join(PACKAGE_ROOT, "tests", "fixtures", "models", "named-models.json"), "utf8")) as object,
);
const CONFIGS: readonly unknown[] = [
  ...GOLDEN_MODELS.map((folder) => JSON.parse(readFileSync(join(folder, "model", "config.json"), "utf8"))),
  ...named.map((model: { config?: unknown }) => model.config ?? model),
];

const config: FuzzTarget = {
  name: "config",
  make(random, dir) {
    writeFileSync(join(dir, "config.json"), mutatedJson(random, random.pick(CONFIGS)));
    if (random.chance(0.2)) {
      writeFileSync(
        join(dir, "generation_config.json"),
        mutatedJson(random, { eos_token_id: [1, 2], do_sample: true }),
      );
    }
  },
  async check(dir) {
    const spec = await readModelSpec(dir);
    const { total, bytes } = listParameters(spec, holdAs("bfloat16"), null);
    if (!(total > 0 && bytes >= total)) throw new Error(`a model of ${total} parameters in ${bytes} bytes`);
  },
};

const ADAPTERS = GOLDEN_MODELS.map((folder) => ({
  folder: join(folder, "adapter_init"),
  model: join(folder, "model"),
}));

const adapter: FuzzTarget = {
  name: "adapter",
  make(random, dir) {
    const which = random.below(ADAPTERS.length);
    const { folder, model } = ADAPTERS[which]!;
    copyFileSync(join(model, "config.json"), join(dir, "config.json"));
    const text = readFileSync(join(folder, "adapter_config.json"), "utf8");
    const weights = readFileSync(join(folder, "adapter_model.safetensors"));
    const first = random.below(3);
    const config = join(dir, "adapter_config.json");
    if (random.chance(0.02)) mkdirSync(config);
    else writeFileSync(config, first === 0 ? text : mutatedJson(random, JSON.parse(text)));
    const path = join(dir, "adapter_model.safetensors");
    if (random.chance(0.02)) mkdirSync(path);
    else writeFileSync(path, first === 0 ? mutateBytes(random, weights) : weights);
  },
  async check(dir) {
    const opened = await openAdapter(dir);
    const spec = await readModelSpec(dir);
    const { matrices } = resolveLoraTargets(spec, opened.settings);
    const read = adapterMatrices(opened, matrices);
    for (const { name, shape } of matrices.slice(0, 8)) {
      if ((await read(name)).length !== elementCount(shape)) throw new Error("a matrix of another size");
    }
  },
};

const model: FuzzTarget = {
  name: "model",
  make(random, dir) {
    const folder = join(random.pick(GOLDEN_MODELS), "model");
    const [json, weights] = ["config.json", "model.safetensors"].map((name) => readFileSync(join(folder, name)));
    const damaged = random.chance(0.5);
    writeFileSync(join(dir, "config.json"), damaged ? json! : mutatedJson(random, JSON.parse(json!.toString("utf8"))));
    writeFileSync(join(dir, "model.safetensors"), damaged ? mutateBytes(random, weights!) : weights!);
  },
  async check(dir) {
    const spec = await readModelSpec(dir);
    const files = await openCheckpoint(dir);
    holdAgainst(spec, files, new Map());
    const checkpoint = expertsApart(spec, files);
    for (const block of spec.layers) {
      if (block.kind !== "block" || block.experts === undefined) continue;
      for (const name of expertWeights(block.experts).slice(0, 64)) await readTensor(checkpoint.locate(name));
    }
  },
};

export const MODEL_FILES: readonly FuzzTarget[] = [safetensors, index, config, adapter, model];
