import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dtypeBytes, elementCount } from "../../../src/common/dtype.ts";
import { type Engine, type HoldAs, loadEngine, type MicroBatch } from "../../../src/engine/index.ts";
import { expertLinears, storedTensors } from "../../../src/models/experts.ts";
import { type Holding, makePlan, type PlanRequest } from "../../../src/plan/index.ts";
import { describeSegment, engineArch, type SegmentTrained } from "../../../src/worker/segments.ts";
import { WORK } from "./models.ts";

export const addon = (() => {
  try {
    return loadEngine();
  } catch {
    return null;
  }
})();

const TOKENS = 192;

/** An addon of before the quantised weights lacks it. */
export const quantizes = addon !== null && "quantize" in addon;

/** Runs `inFlight` micro-batches forward, the adapters' in turn, then all backward, and gives what the engine says it held. */
export async function measure(
  planned: PlanRequest,
  inFlight: number,
  trained: readonly SegmentTrained[] = [],
  /** What every weight's numbers are. */
  value = 0,
  /** Of the adapters beside the first. */
  besideTrained: readonly (readonly SegmentTrained[])[] = [],
): Promise<ReturnType<Engine["memory"]>> {
  const { spec, lora } = planned;
  const plan = makePlan(planned);
  const { memory } = plan.devices[0]!;
  const folder = await mkdtemp(join(tmpdir(), "pipelora-memory-"));
  const path = join(folder, "numbers");
  const file = await open(path, "w");
  const numbers = Math.max(...spec.tensors.map(({ shape }) => elementCount(shape)));
  if (value === 0) await file.truncate(numbers * 4);
  else await file.write(new Float32Array(numbers).fill(value));
  await file.close();
  const arenaBytes = Math.ceil((memory.activations + memory.workspace) * 1.1);
  const engine = await addon!.openEngine({
    device: "cpu",
    threads: 2,
    computeDtype: planned.computeDtype,
    arch: engineArch(spec, planned.computeDtype),
    arenaBytes,
  });
  try {
    const pairsOf = (targets: PlanRequest["lora"]) =>
      new Map(
        targets.map((pair) => [pair.name, { ...pair, module: pair.name, expertsOf: pair.stack?.parameter ?? "" }]),
      );
    const blocks = spec.layers.filter((layer) => layer.kind === "block");
    const linears = new Set(
      blocks.flatMap((block) => [...block.linears, ...expertLinears(block)].map(({ name }) => `${name}.weight`)),
    );
    const tensors = [...storedTensors(spec, () => false), ...spec.tensors];
    const { description } = describeSegment(spec, plan.segments[0]!, pairsOf(lora), trained);
    await engine.addSegment(description);
    const { beside = [] } = planned;
    for (const [index, other] of beside.entries()) {
      const adapted = describeSegment(spec, plan.segments[0]!, pairsOf(other.lora), besideTrained[index]);
      await engine.addAdapter(0, adapted.description.layers);
    }
    const adapters = 1 + beside.length;
    for (const name of await engine.missingWeights(0)) {
      const { shape } = tensors.find((tensor) => tensor.name === name)!;
      const bytes = elementCount(shape) * dtypeBytes("float32");
      const holdAs = linears.has(name) ? holdOf(planned.holding) : planned.holding.dtype;
      await engine.loadWeight(0, name, { path, offset: 0, bytes, dtype: "float32", shape }, holdAs);
    }
    for (let index = 0; index < inFlight; index++) {
      await engine.forward(0, { ...microBatch(index), adapter: index % adapters }, null);
    }
    for (let index = 0; index < inFlight; index++) await engine.backward(0, index, null);
    // What memory() tells is noted after an operation; one more makes sure of the last one that counts.
    await engine.zeroGrad();
    return engine.memory();
  } finally {
    await engine.close();
    await rm(folder, { recursive: true });
  }
}

function holdOf({ dtype, quantization }: Holding): HoldAs {
  if (quantization.method === "none") return dtype;
  if (quantization.method === "8bit") return { method: "8bit", dtype, threshold: 6 };
  return { ...quantization, dtype, blockSize: 64 };
}

function microBatch(index: number): MicroBatch {
  return {
    ...{ index, step: 0, seed: 1, training: true, labelSmoothing: 0, noiseAlpha: 0, lossScale: 1 },
    cuSeqlens: Int32Array.of(0, TOKENS / 2, TOKENS),
    rowIds: Int32Array.of(0, 1),
    tokens: new Int32Array(TOKENS),
    targets: new Int32Array(TOKENS),
    weights: new Float32Array(TOKENS).fill(1 / TOKENS),
  };
}

export const SHAPE = {
  hidden_size: 256,
  intermediate_size: 768,
  num_hidden_layers: 4,
  num_attention_heads: 8,
  vocab_size: 2048,
};
export const MEASURED_WORK = {
  ...WORK,
  microBatches: 1,
  tokens: TOKENS,
  labelTokens: TOKENS,
  meanTokens: TOKENS,
  meanLabelTokens: TOKENS,
  rowTokens: TOKENS / 2,
};
