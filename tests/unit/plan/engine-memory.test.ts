import assert from "node:assert/strict";
import { test } from "node:test";
import type { FloatDtype } from "../../../src/common/dtype.ts";
import { makePlan, type Quantization } from "../../../src/plan/index.ts";
import { addon, MEASURED_WORK, measure, quantizes, SHAPE } from "./measured-engine.ts";
import { cpus, everyExpert, everyLinear, model, request } from "./models.ts";

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
          work: { ...MEASURED_WORK, checkpointing, schedule: "gpipe", microBatches },
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
