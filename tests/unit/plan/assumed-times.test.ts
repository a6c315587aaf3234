import assert from "node:assert/strict";
import { test } from "node:test";
import type { ModelSpec } from "../../../src/models/spec.ts";
import { type Holding, type PlanRequest, predictTime } from "../../../src/plan/index.ts";
import type { Keeping } from "../../../src/plan/keeping.ts";
import { everyLinear, gpus, model, NF4, PLAIN, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const qwen25 = model("qwen2.5-7b");
const llama = model("llama-3-8b");

/** Steps on one hot H200 (docs/performance.md): what the model is calibrated by. Remeasure them together. */
interface Row {
  readonly name: string;
  readonly spec: ModelSpec;
  readonly holding: Holding;
  readonly r: number;
  readonly dropout: number;
  readonly microBatches: number;
  /** Of a micro-batch. */
  readonly tokens: number;
  readonly labels: number;
  readonly rowTokens: number;
  readonly keeping: Keeping;
  readonly tokensPerSecond: number;
}

const keep = (offloaded: number, checkpointed: number, cached: number): Keeping => ({
  offloaded,
  checkpointed,
  cached,
});

function engine(name: string, holding: Holding, sizes: [number, number, number], keeping: Keeping, speed: number): Row {
  const [tokens, labels, rowTokens] = sizes;
  const counts = { r: 8, dropout: 0.1, microBatches: 1, tokens, labels, rowTokens };
  return { name: `Qwen-7B ${name}`, spec: qwen, holding, ...counts, keeping, tokensPerSecond: speed };
}

function ranks(r: number, microBatches: number, tokens: number, speed: number, of = "Qwen2.5-7B", spec = qwen25): Row {
  const counts = { r, dropout: 0.1, microBatches, tokens, labels: tokens, rowTokens: 384 };
  const name = `${of} nf4, 8 x 384 in ${microBatches}, r ${r}`;
  return { name, spec, holding: NF4, ...counts, keeping: keep(0, 0, 0), tokensPerSecond: speed };
}

function longRows(name: string, spec: ModelSpec, holding: Holding, cached: number, speed: number): Row {
  const counts = { r: 16, dropout: 0, microBatches: 1, tokens: 8192, labels: 8192, rowTokens: 4096 };
  return { name: `${name}, 2 x 4096`, spec, holding, ...counts, keeping: keep(0, 0, cached), tokensPerSecond: speed };
}

const TUTORIAL: [number, number, number] = [1088, 426, 67];
const SHORT: [number, number, number] = [3072, 3072, 384];
const LONG: [number, number, number] = [8192, 8192, 2048];

const ROWS: readonly Row[] = [
  engine("nf4, tutorial, checkpointing", NF4, TUTORIAL, keep(9, 16, 0), 13_515),
  engine("nf4, tutorial", NF4, TUTORIAL, keep(5, 0, 0), 16_006),
  engine("nf4, tutorial, cached", NF4, TUTORIAL, keep(0, 0, 32), 18_588),
  engine("nf4, 8 x 384, checkpointing", NF4, SHORT, keep(9, 16, 0), 15_654),
  engine("nf4, 8 x 384, all recomputed", NF4, SHORT, keep(0, 32, 0), 13_998),
  engine("nf4, 8 x 384", NF4, SHORT, keep(0, 0, 7), 18_579),
  engine("nf4, 8 x 384, cached", NF4, SHORT, keep(0, 0, 32), 19_123),
  engine("nf4, 4 x 2048, checkpointing", NF4, LONG, keep(9, 23, 0), 14_427),
  engine("nf4, 4 x 2048", NF4, LONG, keep(0, 0, 11), 18_111),
  engine("nf4, 1 x 8192, checkpointing", NF4, [8192, 8192, 8192], keep(10, 20, 0), 12_310),
  engine("bf16, 8 x 384", PLAIN, SHORT, keep(0, 0, 0), 19_334),
  longRows("Qwen2.5-7B bf16", qwen25, PLAIN, 0, 17_680),
  longRows("Qwen2.5-7B nf4", qwen25, NF4, 9, 17_365),
  longRows("Llama-3-8B bf16", llama, PLAIN, 0, 16_048),
  longRows("Llama-3-8B nf4", llama, NF4, 11, 15_921),
  ranks(8, 1, 3072, 17_913),
  { ...ranks(16, 1, 3072, 18_257), name: "Qwen2.5-7B nf4, 8 x 384, r 16, cached", keeping: keep(0, 0, 28) },
  ranks(64, 1, 3072, 16_098),
  ranks(128, 1, 3072, 15_850),
  ranks(256, 1, 3072, 14_577),
  ranks(8, 1, 3072, 17_273, "Llama-3-8B", llama),
  ranks(64, 1, 3072, 15_456, "Llama-3-8B", llama),
  ranks(128, 1, 3072, 14_932, "Llama-3-8B", llama),
  ranks(256, 1, 3072, 13_873, "Llama-3-8B", llama),
  ranks(8, 3, 1024, 14_790),
  engine("nf4 in e4m3, 8 x 384, cached", { ...NF4, fp8: true }, SHORT, keep(0, 0, 32), 26_555),
  {
    ...ranks(64, 1, 3072, 22_982),
    ...{
      name: "Qwen2.5-7B nf4 in e4m3, 8 x 384, r 64, cached",
      holding: { ...NF4, fp8: true },
      keeping: keep(0, 0, 28),
    },
  },
];

/** Of a run on one GPU, its blocks kept as told. */
function predictedSeconds(row: Row, device: string): number {
  const { spec, holding, r, dropout, microBatches, tokens, labels, rowTokens, keeping } = row;
  const sizes = { tokens, labelTokens: labels, meanTokens: tokens, meanLabelTokens: labels, rowTokens, microBatches };
  const work: PlanRequest["work"] = { ...WORK, ...sizes, checkpointing: "auto" };
  const lora = everyLinear(spec, r).map((target) => ({ ...target, dropout }));
  const whole = { index: 0, devices: [0], ranks: [0], firstLayer: 0, lastLayer: spec.layers.length - 1 };
  return predictTime(request(spec, gpus(1, 140e9, device), { holding, lora, work }), [whole], [keeping]).step;
}

for (const row of ROWS) {
  test(`an H200's step without calibration, within 5 %: ${row.name}`, () => {
    const predicted = (row.microBatches * row.tokens) / predictedSeconds(row, "NVIDIA H200");
    const text = `${row.name}: predicted ${predicted.toFixed(0)} tokens/s, measured ${row.tokensPerSecond}`;
    if (process.env.PIPELORA_SHOW !== undefined) console.log(text);
    assert.ok(Math.abs(predicted / row.tokensPerSecond - 1) < 0.05, text);
  });
}

test("an H100's steps within 10 %", () => {
  const measured: [string, number][] = [
    ["Qwen-7B nf4, 8 x 384", 18_204],
    ["Qwen-7B nf4, 4 x 2048", 18_021],
    ["Qwen-7B bf16, 8 x 384", 18_913],
    ["Qwen-7B nf4, tutorial", 15_432],
  ];
  for (const [name, speed] of measured) {
    const row = ROWS.find((one) => one.name === name)!;
    const ratio = row.tokens / predictedSeconds(row, "NVIDIA H100 80GB HBM3") / speed;
    assert.ok(Math.abs(ratio - 1) < 0.1, `${name}: ${ratio}`);
  }
});

test("every part that the model counts has its cost", () => {
  const base = ROWS.find(({ name }) => name === "Qwen2.5-7B nf4, 8 x 384 in 1, r 8")!;
  const of = (changes: Partial<Row>) => predictedSeconds({ ...base, ...changes }, "NVIDIA H200");
  const plain = of({});
  // Ranks: in proportion, once the reads are paid that any rank has.
  const slope = (of({ r: 256 }) - of({ r: 64 })) / 192;
  assert.ok(slope > 0 && Math.abs((of({ r: 128 }) - of({ r: 64 })) / 64 / slope - 1) < 0.2);
  // Attention goes with a row's length, the head with the tokens that carry a label.
  assert.ok(of({ rowTokens: 3072 }) > plain);
  assert.ok(of({ labels: 1024 }) < plain - (2 / 3) * 0.008);
  // Cached weights are not expanded, recomputed blocks run forward again and expand again.
  assert.ok(of({ keeping: keep(0, 0, 28) }) < plain && of({ keeping: keep(0, 28, 0) }) > 1.2 * plain);
  assert.ok(of({ holding: PLAIN }) < plain);
});
