import { float32Of } from "../../../src/common/bytes.ts";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import type { QuantizedHold } from "../../../src/common/quantization.ts";
import { trainedModules } from "../../../src/coordinator/assembly/prepare-requests.ts";
import { type CachedSequences, type Engine, loadEngine, type MicroBatch } from "../../../src/engine/index.ts";
import { adapterMatrices, openAdapter } from "../../../src/formats/adapter.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { initLora } from "../../../src/formats/lora-init.ts";
import { packedExperts, withExperts } from "../../../src/formats/stacked-experts.ts";
import { modelStacks, storedAliases } from "../../../src/models/experts.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { pairNames } from "../../../src/models/kinds/lora.ts";
import { type ResolvedLora, resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { blockLinears } from "../../../src/models/quantization.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { describeSegment, engineArch } from "../../../src/worker/segments.ts";

/**
 * A whole model in one segment of one engine in this process, to look at what no command shows. `hold`: how the blocks' linears are
 * held; null: in float32 as the rest.
 */
export async function wholeModel(
  modelDir: string,
  adapterDir: string | null,
  hold: QuantizedHold | null = null,
): Promise<Engine> {
  const spec = await readModelSpec(modelDir);
  const adapter = adapterDir === null ? null : await openAdapter(adapterDir);
  const lora = adapter === null ? null : resolveLoraTargets(spec, adapter.settings);
  const engine = await loaded(modelDir, spec, lora, hold);
  if (adapter === null || lora === null) return engine;
  const read = adapterMatrices(adapter, lora.matrices);
  for (const { name, twin } of lora.matrices) {
    for (const place of [name, twin?.name ?? []].flat()) await engine.setMatrix(place, "weight", await read(name));
  }
  return engine;
}

/** The same with a new adapter of these settings, its first values as a worker makes them. */
export async function adaptedModel(modelDir: string, settings: Partial<LoraSettings>): Promise<Engine> {
  const spec = await readModelSpec(modelDir);
  const full: LoraSettings = { ...DEFAULT_LORA_SETTINGS, targetModules: [], r: 3, alpha: 6, ...settings };
  const lora = resolveLoraTargets(spec, full);
  const engine = await loaded(modelDir, spec, lora, null);
  for (const target of lora.targets) {
    const { a, b } = initLora({ ...target, embedding: target.role === "embedding" }, full, 11);
    const names = pairNames(target.name, target.role);
    await engine.setMatrix(names.a, "weight", a);
    await engine.setMatrix(names.b, "weight", b);
  }
  await engine.firstValues();
  for (const { name, twin } of lora.matrices) {
    if (twin !== undefined) await engine.setMatrix(twin.name, "weight", await engine.getMatrix(name, "weight"));
  }
  return engine;
}

async function loaded(
  modelDir: string,
  spec: ModelSpec,
  lora: ResolvedLora | null,
  hold: QuantizedHold | null,
): Promise<Engine> {
  const targets = lora?.targets ?? [];
  const engine = await loadEngine().openEngine({
    device: "cpu",
    threads: 1,
    computeDtype: "float32",
    arch: engineArch(spec, "float32"),
    arenaBytes: 64 << 20,
  });
  const whole = {
    index: 0,
    firstLayer: 0,
    lastLayer: spec.layers.length - 1,
    offloadedBlocks: 0,
    checkpointedBlocks: 0,
    cachedBlocks: 0,
    needsInputGrad: false,
  };
  const { description, weights } = describeSegment(
    spec,
    whole,
    new Map(
      targets.map((target) => [
        target.name,
        { ...target, module: target.name, expertsOf: target.stack?.parameter ?? "" },
      ]),
    ),
    lora === null ? [] : trainedModules(lora),
  );
  await engine.addSegment(description);
  const files = await openCheckpoint(modelDir, spec);
  const checkpoint = withExperts(files, modelStacks(spec), storedAliases(spec));
  const { packed } = packedExperts(files, modelStacks(spec));
  const quantized = new Set(hold === null ? [] : blockLinears(spec).map(({ name }) => `${name}.weight`));
  for (const name of weights) {
    const mx = name.endsWith(".weight") ? packed.get(name.slice(0, -".weight".length)) : undefined;
    if (mx !== undefined) {
      await engine.loadPacked(0, name, mx);
      continue;
    }
    await engine.loadWeight(0, name, checkpoint.locate(name), quantized.has(name) ? hold! : "float32");
  }
  return engine;
}

/** New tokens of the one sequence of a cache, behind so many. `length`: tokens that it was begun with. */
export function oneSequence(past: number, count: number, length: number = past + count): CachedSequences {
  const value = (number: number) => Int32Array.of(number);
  return {
    cuSeqlens: Int32Array.of(0, count),
    slots: value(0),
    starts: value(0),
    past: value(past),
    lengths: value(length),
  };
}

/** Logits [V] of the last token of one sequence. */
export async function lastLogits(engine: Engine, ids: readonly number[]): Promise<Float32Array> {
  const cache = await engine.createCache(1, ids.length);
  const logits = await engine.infer(0, cache, oneSequence(0, ids.length), Int32Array.from(ids), null);
  const values = float32Of(await engine.read(logits));
  logits.free();
  await engine.freeCache(cache);
  return values;
}

/** Rows laid end to end; every label's cross entropy weighs 1 / labels. */
export function meanLossBatch(
  rows: readonly { input_ids: number[]; labels: number[] }[],
  training: boolean,
): MicroBatch {
  const targets = rows.flatMap(({ labels }) => [...labels.slice(1), -100]);
  const count = targets.filter((target) => target !== -100).length;
  let end = 0;
  return {
    index: 0,
    cuSeqlens: Int32Array.of(0, ...rows.map(({ input_ids }) => (end += input_ids.length))),
    rowIds: Int32Array.from(rows.keys()),
    step: 1,
    seed: 0,
    training,
    labelSmoothing: 0,
    lossScale: 1,
    noiseAlpha: 0,
    tokens: Int32Array.from(rows.flatMap(({ input_ids }) => input_ids)),
    targets: Int32Array.from(targets),
    weights: Float32Array.from(targets, (target) => (target === -100 ? 0 : 1 / count)),
  };
}
