import assert from "node:assert/strict";
import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { dtypeBytes, elementCount, type FloatDtype } from "../../../src/common/dtype.ts";
import { type Engine, type HoldAs, loadEngine, type MicroBatch } from "../../../src/engine/index.ts";
import { expertLinears, storedTensors } from "../../../src/models/experts.ts";
import { type Holding, makePlan, type PlanRequest, type Quantization } from "../../../src/plan/index.ts";
import { describeSegment, engineArch } from "../../../src/worker/segments.ts";
import { cpus, everyExpert, everyLinear, model, request, WORK } from "./models.ts";

const addon = (() => {
  try {
    return loadEngine();
  } catch {
    return null;
  }
})();

const TOKENS = 192;

/** An addon of before the quantised weights lacks it. */
const quantizes = addon !== null && "quantize" in addon;

/** Runs `inFlight` micro-batches forward, then all backward, and gives what the engine says it held. */
async function measure(planned: PlanRequest, inFlight: number): Promise<ReturnType<Engine["memory"]>> {
  const { spec, lora } = planned;
  const plan = makePlan(planned);
  const { memory } = plan.devices[0]!;
  const folder = await mkdtemp(join(tmpdir(), "pipelora-memory-"));
  const path = join(folder, "zeros");
  const file = await open(path, "w");
  await file.truncate(Math.max(...spec.tensors.map(({ shape }) => elementCount(shape))) * 4);
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
    const pairs = new Map(
      lora.map((pair) => [pair.name, { ...pair, module: pair.name, expertsOf: pair.stack?.parameter ?? "" }]),
    );
    const blocks = spec.layers.filter((layer) => layer.kind === "block");
    const linears = new Set(
      blocks.flatMap((block) => [...block.linears, ...expertLinears(block)].map(({ name }) => `${name}.weight`)),
    );
    const tensors = [...storedTensors(spec, () => false), ...spec.tensors];
    const { description } = describeSegment(spec, plan.segments[0]!, pairs);
    await engine.addSegment(description);
    for (const name of await engine.missingWeights(0)) {
      const { shape } = tensors.find((tensor) => tensor.name === name)!;
      const bytes = elementCount(shape) * dtypeBytes("float32");
      const holdAs = linears.has(name) ? holdOf(planned.holding) : planned.holding.dtype;
      await engine.loadWeight(0, name, { path, offset: 0, bytes, dtype: "float32", shape }, holdAs);
    }
    for (let index = 0; index < inFlight; index++) await engine.forward(0, microBatch(index), null);
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

const SHAPE = {
  hidden_size: 256,
  intermediate_size: 768,
  num_hidden_layers: 4,
  num_attention_heads: 8,
  vocab_size: 2048,
};
const work = {
  ...WORK,
  microBatches: 1,
  tokens: TOKENS,
  labelTokens: TOKENS,
  meanTokens: TOKENS,
  meanLabelTokens: TOKENS,
  rowTokens: TOKENS / 2,
};

interface Variant {
  readonly family: string;
  readonly dtype: FloatDtype;
  readonly quantization: Quantization;
  /** First block with LoRA pairs. */
  readonly firstBlock: number;
  /** Pairs on experts too. */
  readonly experts?: boolean;
}

const NONE: Quantization = { method: "none" };
const NF4: Quantization = { method: "4bit", quantType: "nf4", doubleQuant: true };
const FP4: Quantization = { method: "4bit", quantType: "fp4", doubleQuant: false };
const EIGHT: Quantization = { method: "8bit" };

const VARIANTS: readonly Variant[] = [
  { family: "qwen2.5-0.5b", dtype: "float32", quantization: NONE, firstBlock: 0 },
  { family: "llama-3-8b", dtype: "float32", quantization: NONE, firstBlock: 0 },
  { family: "qwen3-0.6b", dtype: "float32", quantization: NONE, firstBlock: 0 },
  { family: "llama-3-8b", dtype: "float32", quantization: NONE, firstBlock: 3 },
  ...["gemma2", "gemma3", "granite", "olmo2", "cohere2", "phi3", "internlm2", "exaone4"].map(
    (family) => ({ family, dtype: "float32", quantization: NONE, firstBlock: 0 }) as const,
  ),
  ...["qwen3-moe", "qwen2-moe", "glm4-moe", "gpt-oss"].flatMap(
    (family) =>
      [
        { family, dtype: "float32", quantization: NONE, firstBlock: 0 },
        { family, dtype: "float32", quantization: NONE, firstBlock: 3 },
        { family, dtype: "float32", quantization: NONE, firstBlock: 0, experts: true },
        { family, dtype: "float32", quantization: NF4, firstBlock: 0, experts: true },
      ] as const,
  ),
  ...["qwen3.5", "qwen3-next", "deepseek-v2", "deepseek-v3"].flatMap(
    (family) =>
      [
        { family, dtype: "float32", quantization: NONE, firstBlock: 0 },
        { family, dtype: "float32", quantization: NONE, firstBlock: 2 },
        { family, dtype: "float32", quantization: NF4, firstBlock: 0 },
      ] as const,
  ),
  { family: "qwen3-moe", dtype: "float32", quantization: EIGHT, firstBlock: 0 },
  { family: "gemma2", dtype: "float32", quantization: NONE, firstBlock: 3 },
  { family: "cohere2", dtype: "float32", quantization: NF4, firstBlock: 0 },
  ...[NF4, FP4, EIGHT].map(
    (quantization) => ({ family: "llama-3-8b", dtype: "float32", quantization, firstBlock: 0 }) as const,
  ),
  ...(addon?.capabilities().cpu.bf16
    ? [{ family: "llama-3-8b", dtype: "bfloat16", quantization: NONE, firstBlock: 0 } as const]
    : []),
];

for (const { family, dtype, quantization, firstBlock, experts = false } of VARIANTS) {
  for (const checkpointing of ["all", "none"] as const) {
    for (const microBatches of [1, 3]) {
      const held = quantization.method === "none" ? dtype : quantization.method;
      const skip = (addon === null || (quantization.method !== "none" && !quantizes)) && "no native engine for it";
      const what = `${family}, ${held}, LoRA from block ${firstBlock}${experts ? " and on experts" : ""}, checkpointing ${checkpointing}, ${microBatches} in flight`;
      test(`the engine's peak is what was predicted: ${what}`, { skip }, async () => {
        const spec = model(family, SHAPE);
        const linears = everyLinear(spec, 8, firstBlock);
        const planned = request(spec, cpus(1), {
          holding: { dtype, quantization, skipModules: [], fp8: false },
          computeDtype: dtype,
          lora: experts ? everyExpert(spec, 8, linears) : linears,
          work: { ...work, checkpointing, schedule: "gpipe", microBatches },
        });
        const { memory } = makePlan(planned).devices[0]!;
        const measured = await measure(planned, microBatches);
        assert.equal(measured.weightBytes, memory.weights);
        assert.equal(measured.loraBytes, memory.lora);
        const arena = memory.activations + memory.workspace;
        assert.ok(measured.arenaPeakBytes <= arena, `peak ${measured.arenaPeakBytes}, predicted ${arena}`);
        assert.ok(measured.arenaPeakBytes >= 0.75 * arena, `peak ${measured.arenaPeakBytes}, predicted ${arena}`);
      });
    }
  }
}
