import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { createLogger } from "../../../src/common/log.ts";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { adapterMessage } from "../../../src/coordinator/assembly/prepare-requests.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { checkpointFingerprint } from "../../../src/formats/fingerprint.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { blockLinears } from "../../../src/models/quantization.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import type { Prepare } from "../../../src/rpc/generated/pipelora/v1/Prepare.ts";
import type { Quantization } from "../../../src/rpc/generated/pipelora/v1/Quantization.ts";
import { decodeRequest, encodeRequest } from "../../../src/rpc/protocol.ts";
import { type PreparedRank, prepareRank } from "../../../src/worker/prepare.ts";
import { HeldLayers } from "../../../src/worker/weights/held-layers.ts";
import { NodeModel } from "../../../src/worker/weights/node-model.ts";
import { goldenRun } from "../../support/models/golden.ts";
import { meanLossBatch } from "../../support/models/one-engine.ts";

interface Setting {
  readonly golden: string;
  readonly lora?: Partial<LoraSettings>;
  readonly quantization?: Quantization;
  /** Layers that are read again though the process holds them: they are trained whole. */
  readonly rereads?: number;
}

const SETTINGS: Readonly<Record<string, Setting>> = {
  plain: { golden: "qwen2-gqa-tied" },
  "trained biases": { golden: "qwen2-gqa-tied", lora: { bias: "all" } },
  "a head that is trained whole": { golden: "qwen1", lora: { modulesToSave: ["lm_head"] }, rereads: 1 },
  DoRA: { golden: "qwen2-gqa-tied", lora: { useDora: true } },
  "rows of tokens": { golden: "qwen1", lora: { trainableTokenIndices: [3, 9] } },
  PiSSA: { golden: "qwen2-gqa-tied", lora: { initLoraWeights: "pissa" } },
  "PiSSA in 4 bits": { golden: "qwen2-gqa-tied", lora: { initLoraWeights: "pissa" }, quantization: { method: "4bit" } },
  "4 bits": { golden: "qwen2-gqa-tied", quantization: { method: "4bit" } },
  "8 bits": { golden: "qwen2-gqa-tied", quantization: { method: "8bit", int8Threshold: 6 } },
  experts: { golden: "qwen3-moe-experts" },
  "packed experts": { golden: "gpt-oss" },
  "a delta net": { golden: "qwen3-next" },
  "latent attention": { golden: "deepseek-v2-lite" },
};

async function model({ golden, lora: settings, quantization }: Setting) {
  const dir = join(goldenRun(golden).folder, "model");
  const spec = await readModelSpec(dir);
  const own = { ...DEFAULT_LORA_SETTINGS, targetModules: ["q_proj", "o_proj", "c_attn"], r: 2, alpha: 4, ...settings };
  const lora = resolveLoraTargets(spec, own);
  const checkpoint = await openCheckpoint(dir, spec);
  const init = {
    seed: 5,
    init_lora_weights: own.initLoraWeights,
    label_smoothing_factor: 0,
    neftune_noise_alpha: null,
  };
  const prepare = {
    ...{ modelDir: dir, modelFingerprint: await checkpointFingerprint(checkpoint), schedule: "1f1b" },
    ...{ holdDtype: "float32", computeDtype: "float32", threads: 1, arenaBytes: 64 << 20 },
    adapters: [adapterMessage({ lora, settings: init, initialise: true })],
    quantization: {
      ...{ quantType: "nf4", doubleQuant: true, modules: blockLinears(spec).map(({ name }) => name) },
      ...(quantization ?? { method: "none" }),
    },
  };
  return { dir, spec, prepare };
}

type Model = Awaited<ReturnType<typeof model>>;

/** The rank's engine for these layers, `cached` of whose blocks keep their weights expanded. */
async function prepared(
  { dir, prepare }: Model,
  [firstLayer, lastLayer]: readonly [number, number],
  cachedBlocks: number,
  kept: { readonly held: HeldLayers; readonly run: string } | undefined,
): Promise<PreparedRank> {
  const segment = {
    index: 0,
    ranks: [0],
    firstLayer,
    lastLayer,
    cachedBlocks,
    needsBackward: true,
    needsInputGrad: firstLayer > 0,
  };
  const request: Prepare = { ...prepare, segments: [segment] };
  const signal = new AbortController().signal;
  const found = await NodeModel.find(
    dir,
    { modelDir: dir, hubModel: null },
    { log: createLogger({ level: "silent", format: "json" }), signal },
  );
  const sent = decodeRequest(encodeRequest({ request: 1, prepare: request })).prepare!;
  return prepareRank(sent, found, 0, {
    device: "cpu",
    addon: loadEngine(),
    signal,
    ...(kept === undefined ? {} : { kept }),
  });
}

/** What a step of the whole model gives. It leaves other trained values behind. */
async function step({ engine, adapters }: PreparedRank): Promise<unknown[]> {
  const rows = [3, 5].map((length) => {
    const ids = Array.from({ length }, (_, place) => (place * 7 + length) % 50);
    return { input_ids: ids, labels: ids };
  });
  const batch = meanLossBatch(rows, true);
  const { lossSum } = await engine.forward(0, batch, null);
  await engine.backward(0, batch.index, null);
  const squares = [...(await engine.gradSquares())];
  const rates = new Float64Array(adapters[0]!.names.length).fill(0.05);
  const update = { step: 1, gradScale: 1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
  await engine.optimizerStep({ ...update, learningRates: rates, weightDecays: rates });
  const { weightBytes } = engine.memory();
  return [lossSum, squares, weightBytes, new Map(adapters[0]!.initial)];
}

const layersOf = ({ layers }: ModelSpec) => layers.length;

for (const [name, setting] of Object.entries(SETTINGS)) {
  test(`layers that an engine takes over from another have the bits of those it would read: ${name}`, async () => {
    const made = await model(setting);
    const last = layersOf(made.spec) - 1;
    const fresh = await prepared(made, [0, last], 1, undefined);
    const expected = await step(fresh);
    const { readBytes } = fresh.loaded;
    await fresh.leave();
    const kept = { held: new HeldLayers(), run: "one" };
    // Whole, with another weight cache; a part without the first layers, or the last; whole again.
    for (const [first, end] of [
      [2, last],
      [0, last - 2],
    ] as const) {
      const whole = await prepared(made, [0, last], 0, kept);
      assert.equal(whole.loaded.takenOver + whole.loaded.read, last + 1);
      await step(whole);
      await whole.leave();
      const part = await prepared(made, [first, end], 2, kept);
      const layers = end - first + 1;
      const rereads = end === last ? (setting.rereads ?? 0) : 0;
      assert.deepEqual(
        { ...part.loaded, readBytes: part.loaded.readBytes > 0 },
        { takenOver: layers - rereads, read: rereads, readBytes: rereads > 0 },
      );
      await part.leave();
      const again = await prepared(made, [0, last], 1, kept);
      assert.equal(again.loaded.takenOver, layers - (end === last ? rereads : 0));
      assert.ok(again.loaded.readBytes > 0 && again.loaded.readBytes < readBytes);
      assert.deepEqual(await step(again), expected);
      await again.leave();
    }
    kept.held.free();
  });
}

test("weights stay for one run, one model and one way of holding them", async () => {
  const plain = await model(SETTINGS["plain"]!);
  const held = new HeldLayers();
  const all = [0, layersOf(plain.spec) - 1] as const;
  await (await prepared(plain, all, 0, { held, run: "one" })).leave();
  const others: [string, Model, string][] = [
    ["another run", plain, "two"],
    ["4 bits", await model(SETTINGS["4 bits"]!), "two"],
    ["another model", await model({ golden: "qwen1" }), "two"],
    ["another base", await model(SETTINGS["PiSSA"]!), "two"],
    ["another seed of what is taken out", { ...(await model(SETTINGS["PiSSA"]!)) }, "three"],
  ];
  for (const [what, made, run] of others) {
    const found = await prepared(made, [0, layersOf(made.spec) - 1], 0, { held, run });
    assert.equal(found.loaded.takenOver, 0, what);
    await found.leave();
  }
  const other = {
    ...plain,
    prepare: { ...plain.prepare, adapters: plain.prepare.adapters.map((one) => ({ ...one, seed: 6 })) },
  };
  await (await prepared(plain, all, 0, { held, run: "one" })).leave();
  const seeded = await prepared(other, all, 0, { held, run: "one" });
  assert.equal(seeded.loaded.read, 0, "the base does not follow from this adapter's seed");
  await seeded.leave();
  held.free();
});

test("an engine that has left its weights takes no more calls, and they are given once", async () => {
  const made = await model(SETTINGS["plain"]!);
  const held = new HeldLayers();
  const { engine, leave } = await prepared(made, [0, 1], 0, { held, run: "one" });
  await leave();
  await assert.rejects(engine.missingWeights(0), /closed/);
  await assert.rejects(engine.release(), /closed/);
  await engine.close();
  const taken = held.take("no such base");
  assert.equal(taken, null);
});
