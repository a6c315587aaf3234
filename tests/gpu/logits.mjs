// Logits of the last token of a prompt under a model and its adapter, by the built engine: node logits.mjs MODEL ADAPTER DEVICE IDS
import { Buffer } from "node:buffer";
import { loadEngine } from "../../dist/engine/index.js";
import { adapterMatrices, openAdapter } from "../../dist/formats/adapter.js";
import { openCheckpoint } from "../../dist/formats/checkpoint.js";
import { readModelSpec } from "../../dist/models/index.js";
import { resolveLoraTargets } from "../../dist/models/lora-targets.js";
import { describeSegment, engineArch } from "../../dist/worker/segments.js";

const [modelDir, adapterDir, device, list] = process.argv.slice(2);
const ids = JSON.parse(list);
const spec = await readModelSpec(modelDir);
const adapter = await openAdapter(adapterDir);
const { targets, matrices } = resolveLoraTargets(spec, adapter.settings);
const engine = await loadEngine().openEngine({
  device,
  threads: 2,
  computeDtype: "float32",
  arch: engineArch(spec, "float32"),
  arenaBytes: 256 << 20,
});
const whole = {
  index: 0,
  rank: 0,
  firstLayer: 0,
  lastLayer: spec.layers.length - 1,
  checkpointedBlocks: 0,
  offloadedBlocks: 0,
  cachedBlocks: 0,
};
const pairs = new Map(targets.map((target) => [target.name, { ...target, module: target.name, expertsOf: "" }]));
const { description, weights } = describeSegment(spec, { ...whole, needsInputGrad: false }, pairs);
await engine.addSegment(description);
const checkpoint = await openCheckpoint(modelDir, spec);
for (const name of weights) await engine.loadWeight(0, name, checkpoint.locate(name), "float32");
const read = adapterMatrices(adapter, matrices);
for (const { name } of matrices) await engine.setMatrix(name, "weight", await read(name));
const cache = await engine.createCache(1, ids.length);
const sequence = {
  cuSeqlens: Int32Array.of(0, ids.length),
  slots: Int32Array.of(0),
  starts: Int32Array.of(0),
  past: Int32Array.of(0),
  lengths: Int32Array.of(ids.length),
};
const logits = await engine.infer(0, cache, sequence, Int32Array.from(ids), null);
const bytes = Buffer.from(await engine.read(logits));
process.stdout.write(JSON.stringify([...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)]));
await engine.close();
