import assert from "node:assert/strict";
import { test } from "node:test";
import { DEFAULT_LORA_SETTINGS, type LoraSettings } from "../../../src/common/lora-settings.ts";
import { trainedModules } from "../../../src/coordinator/assembly/prepare-requests.ts";
import { resolveLoraTargets } from "../../../src/models/lora-targets.ts";
import { makePlan, type Quantization } from "../../../src/plan/index.ts";
import { addon, MEASURED_WORK, measure, SHAPE } from "./measured-engine.ts";
import { cpus, model, request } from "./models.ts";

const NONE: Quantization = { method: "none" };
const NF4: Quantization = { method: "4bit", quantType: "nf4", doubleQuant: true };

const KINDS: readonly (Partial<LoraSettings> & { readonly quantization?: Quantization; readonly tied?: boolean })[] = [
  { useDora: true },
  { useDora: true, quantization: NF4 },
  { useDora: true, targetModules: ["lm_head", "v_proj"] },
  { useDora: true, dropout: 0.1 },
  { useDora: true, dropout: 0.1, quantization: NF4, r: 40 },
  { useDora: true, dropout: 0.1, quantization: { method: "8bit" } },
  { useDora: true, dropout: 0.1, targetModules: ["lm_head", "v_proj"] },
  { targetModules: ["embed_tokens"] },
  { targetModules: ["lm_head"] },
  { targetModules: ["q_proj"], modulesToSave: ["embed_tokens"] },
  { targetModules: ["q_proj"], modulesToSave: ["lm_head"] },
  { targetModules: ["q_proj"], modulesToSave: ["embed_tokens", "lm_head"] },
  { targetModules: ["q_proj"], trainableTokenIndices: [5, 17, 2000] },
  { targetModules: ["q_proj"], trainableTokenIndices: [5, 17, 18, 2000], tied: true },
  { useDora: true, targetModules: ["embed_tokens", "o_proj"] },
];

/** Adapters over one base, from one to several. */
const TOGETHER: readonly (readonly Partial<LoraSettings>[])[] = [
  [{ r: 4 }, { r: 64 }, { r: 8, targetModules: ["q_proj"] }],
  [
    { useDora: true },
    { targetModules: ["q_proj"], modulesToSave: ["embed_tokens", "lm_head"] },
    { targetModules: ["lm_head"] },
  ],
  [
    { targetModules: ["q_proj"], modulesToSave: ["lm_head"] },
    { r: 2, modulesToSave: ["lm_head"] },
  ],
  Array.from({ length: 8 }, (_, index) => ({ r: 1 + index })),
];

for (const quantization of [NONE, NF4]) {
  for (const adapters of TOGETHER) {
    const what = `${JSON.stringify(adapters)}, ${quantization.method}`;
    test(`several adapters hold the base once, and take as much as was predicted: ${what}`, {
      skip: addon === null && "no native engine",
    }, async () => {
      const spec = model("llama-3-8b", SHAPE);
      const loras = adapters.map((own) =>
        resolveLoraTargets(spec, { ...DEFAULT_LORA_SETTINGS, targetModules: "all-linear", r: 8, ...own }),
      );
      const [first, ...others] = loras.map(({ targets: lora, matrices }) => ({ lora, matrices }));
      const planned = request(spec, cpus(1), {
        holding: { dtype: "float32", quantization, skipModules: [], fp8: false },
        computeDtype: "float32",
        ...{ ...first!, beside: others },
        work: { ...MEASURED_WORK, checkpointing: "none", schedule: "gpipe", microBatches: adapters.length },
      });
      const { memory } = makePlan(planned).devices[0]!;
      const [trained, ...beside] = loras.map(trainedModules);
      const measured = await measure(planned, adapters.length, trained, 0.01, beside);
      assert.equal(measured.weightBytes, memory.weights);
      assert.equal(measured.loraBytes, memory.lora);
      const arena = memory.activations + memory.workspace;
      assert.ok(measured.arenaPeakBytes <= arena, `peak ${measured.arenaPeakBytes}, predicted ${arena}`);
      const alone = loras.map(
        ({ targets: lora, matrices }) => makePlan({ ...planned, lora, matrices, beside: [] }).devices[0]!.memory,
      );
      assert.equal(
        memory.lora,
        alone.reduce((sum, { lora }) => sum + lora, 0),
      );
      assert.ok(memory.total < alone.reduce((sum, { total }) => sum + total, 0));
    });
  }
}

for (const { quantization = NONE, tied = false, ...settings } of KINDS) {
  for (const checkpointing of ["all", "none"] as const) {
    const how = `${quantization.method}${tied ? ", tied" : ""}, checkpointing ${checkpointing}`;
    const what = `${JSON.stringify(settings)}, ${how}`;
    test(`the engine's peak is what was predicted: ${what}`, {
      skip: addon === null && "no native engine",
    }, async () => {
      const spec = model("llama-3-8b", { ...SHAPE, tie_word_embeddings: tied });
      const lora = resolveLoraTargets(spec, {
        ...DEFAULT_LORA_SETTINGS,
        targetModules: "all-linear",
        r: 8,
        ...settings,
      });
      const planned = request(spec, cpus(1), {
        holding: { dtype: "float32", quantization, skipModules: [], fp8: false },
        computeDtype: "float32",
        ...{ lora: lora.targets, matrices: lora.matrices },
        work: { ...MEASURED_WORK, checkpointing, schedule: "gpipe", microBatches: 2 },
      });
      const { memory } = makePlan(planned).devices[0]!;
      const measured = await measure(planned, 2, trainedModules(lora), 0.01);
      assert.equal(measured.weightBytes, memory.weights);
      assert.equal(measured.loraBytes, memory.lora);
      const arena = memory.activations + memory.workspace;
      assert.ok(measured.arenaPeakBytes <= arena, `peak ${measured.arenaPeakBytes}, predicted ${arena}`);
      assert.ok(measured.arenaPeakBytes >= 0.6 * arena, `peak ${measured.arenaPeakBytes}, predicted ${arena}`);
    });
  }
}
