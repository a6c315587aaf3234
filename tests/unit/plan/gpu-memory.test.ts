import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockLayer } from "../../../src/models/spec.ts";
import { type Holding, makePlan, type PlanRequest } from "../../../src/plan/index.ts";
import { attentionSizes } from "../../../src/plan/memory/attention-sizes.ts";
import { allProducts, blockProducts } from "../../../src/plan/memory/gpu-products.ts";
import { expandedBytes, expansionBytes, heldAllocations, pagePadding } from "../../../src/plan/memory/gpu-weights.ts";
import { gpuBlockWork } from "../../../src/plan/memory/gpu-work.ts";
import { cpus, everyLinear, GIB, gpus, model, PLAIN, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const NF4: Holding = { ...PLAIN, quantization: { method: "4bit", quantType: "nf4", doubleQuant: true } };
const FP4: Holding = { ...PLAIN, quantization: { method: "4bit", quantType: "fp4", doubleQuant: false } };
const INT8: Holding = { ...PLAIN, quantization: { method: "8bit" } };
const block = qwen.layers.find((layer): layer is BlockLayer => layer.kind === "block")!;
const pairs = everyLinear(qwen).filter(({ layer }) => layer === 1);
const products = (holding: Holding) => blockProducts(block, pairs, holding);

test("a weight that waits to be multiplied has room for LoRA: rows and lines of 64 more", () => {
  const { qkv, o, gateUp, down } = products(NF4);
  assert.equal(expandedBytes(qkv, "bfloat16"), 12352 * 4160 * 2);
  assert.equal(expandedBytes(o, "bfloat16"), 4160 * 4160 * 2);
  assert.equal(expandedBytes(gateUp, "bfloat16"), 22080 * 4160 * 2);
  assert.equal(expandedBytes(down, "bfloat16"), 4160 * 11072 * 2);
  // Four shapes, a place each: 0.385 GiB, once a device.
  const all = [qkv, o, gateUp, down, qkv];
  assert.equal(expansionBytes(all, NF4, "bfloat16"), 413_204_480);
  assert.equal(expansionBytes(allProducts(products(PLAIN)), PLAIN, "bfloat16"), 0);
  // Held in 16 bits and multiplied in 32, weights take turns as well.
  assert.equal(expansionBytes(allProducts(products(PLAIN)), PLAIN, "float32"), 2 * 413_204_480);
});

test("weights are held in pieces of these sizes", () => {
  const { qkv, gateUp, down } = products(NF4);
  const codes = (elements: number) => elements / 2 + 16;
  const scales = (elements: number) => (elements / 64 / 256 + 4) * 4 + elements / 64;
  assert.deepEqual(heldAllocations(down, NF4, "bfloat16"), [codes(4096 * 11008), scales(4096 * 11008)]);
  const one = 11008 * 4096;
  assert.deepEqual(heldAllocations(gateUp, NF4, "bfloat16"), [2 * codes(one), scales(one), scales(one)]);
  // c_attn has a bias, in the compute dtype.
  const attn = 12288 * 4096;
  assert.deepEqual(heldAllocations(qkv, FP4, "float32"), [codes(attn), attn / 16, 12288 * 4]);
  assert.deepEqual(heldAllocations(qkv, INT8, "bfloat16"), [attn, 12288 * 4, 12288 * 2]);
  assert.deepEqual(heldAllocations(products(PLAIN).down, PLAIN, "bfloat16"), [4160 * 11072 * 2]);
  assert.equal(pagePadding([2 ** 20 - 1, 2 ** 20, 2 ** 21 + 1]), 2 ** 20 + 2 ** 21 - 1);
});

test("in e4m3 a weight lies there both ways, with a scale a row and a column", () => {
  const fp8 = (holding: Holding): Holding => ({ ...holding, fp8: true });
  const [down, o] = [4096 * 11008, 4096 * 4096];
  const scales = (4096 + 11008) * 4;
  const of = (holding: Holding) => products(fp8(holding));
  assert.equal(expandedBytes(of(NF4).down, "bfloat16"), 2 * down);
  // A base in 16 bits is not held beside its expansions, and takes no turns; while a weight loads it is there as it comes.
  assert.deepEqual(heldAllocations(of(PLAIN).down, fp8(PLAIN), "bfloat16"), [down, down, scales]);
  assert.equal(expansionBytes([of(PLAIN).down, of(PLAIN).o], fp8(PLAIN), "bfloat16"), 4160 * 11072 * 2);
  const four = heldAllocations(products(NF4).down, NF4, "bfloat16");
  assert.deepEqual(heldAllocations(of(NF4).down, fp8(NF4), "bfloat16"), [...four, scales]);
  assert.deepEqual(heldAllocations(of(INT8).o, fp8(INT8), "bfloat16"), [o, 4096 * 4, 8192 * 4]);
  // Places: down's two ways are two shapes, o's one.
  assert.equal(expansionBytes([of(NF4).down, of(NF4).o, of(NF4).down], fp8(NF4), "bfloat16"), 2 * down + o);
  // Widths that are no multiple of 16 stay as they are.
  const odd: BlockLayer = { ...block, linears: block.linears.map((linear) => ({ ...linear, out: linear.out + 8 })) };
  const left = blockProducts(odd, pairs, fp8(NF4)).down;
  assert.ok(!left.e4m3 && blockProducts(block, pairs, fp8(NF4)).down.e4m3);
});

test("a block's work is SwiGLU's output in 16 bits, and the integer sums of gate and up in 8", () => {
  const tokens = 3072;
  const work = (holding: Holding, eightBit: boolean) =>
    gpuBlockWork(qwen.shape, attentionSizes(qwen, block, 2), products(holding), eightBit, 2, tokens);
  // q, k, v; attention and its tail; the residual; gate and up; log-sum-exp.
  assert.equal(work(NF4, false).kept, (24576 + 8192 + 128 + 8192 + 44032 + 128) * tokens);
  // Without dropout LoRA joins down's gradient, which is widened to 4160 columns.
  assert.equal(work(NF4, false).workspace, (2 * 11008 + 4 * 8 + 2 * 4160) * tokens);
  const integers = (2 * 4160 + 4096 + 4 + 4 * 22016) * tokens + 4 * 8193;
  assert.equal(work(INT8, true).workspace, integers);
});

const planned = (changes: Partial<PlanRequest>, gib: number | null = null) =>
  makePlan(
    request(qwen, gib === null ? gpus(1) : gpus(1, null), {
      holding: NF4,
      ...(gib === null ? {} : { maxMemory: new Map([[0, gib * GIB]]) }),
      ...changes,
    }),
  );
const cachedBlocks = (plan: ReturnType<typeof makePlan>) =>
  plan.segments.reduce((sum, own) => sum + own.cachedBlocks, 0);

test("a whole Qwen-7B in nf4 on one GPU: what its engine holds, piece by piece", () => {
  const { memory } = planned({}).devices[0]!;
  const linear = (elements: number) => elements / 2 + 16 + (elements / 64 / 256 + 4) * 4 + elements / 64;
  const perBlock = linear(12288 * 4096) + linear(4096 * 4096) + 3 * linear(11008 * 4096) + 12288 * 2 + 2 * 4096 * 4;
  const table = 151936 * 4096 * 2;
  assert.equal(memory.weights, 32 * perBlock + table + 4096 * 4);
  assert.equal(memory.hostWeights, table);
  assert.equal(memory.expansion, 413_204_480);
  assert.equal(memory.weightCache, 0);
});

test("an automatic weight cache fills what the budget leaves, checkpointing or not, and no more", () => {
  assert.equal(cachedBlocks(planned({})), 0);
  const all = planned({ weightCache: "auto" });
  assert.equal(cachedBlocks(all), 32);
  assert.equal(all.devices[0]!.memory.weightCache, 32 * 413_204_480);
  // With every block cached no weight is expanded in turn.
  assert.equal(all.devices[0]!.memory.expansion, 0);
  const { total, activations, workspace } = planned({}).devices[0]!.memory;
  // The arena has a tenth more than is predicted of it.
  const plain = (total + 0.1 * (activations + workspace)) / GIB;
  for (const spare of [0.2, 1, 5]) {
    const plan = planned({ weightCache: "auto" }, plain + spare);
    const { memory } = plan.devices[0]!;
    assert.equal(cachedBlocks(plan), Math.floor((spare * GIB - 1) / 413_204_480));
    assert.ok(memory.total <= memory.budget);
  }
  // Without room for one more the cache goes before the micro-batches do.
  const kept = planned({ weightCache: "auto", work: { ...WORK, checkpointing: "auto" } }, plain + 5);
  const uncached = planned({ work: { ...WORK, checkpointing: "auto" } }, plain + 5);
  assert.deepEqual(
    kept.segments.map((own) => own.checkpointedBlocks),
    uncached.segments.map((own) => own.checkpointedBlocks),
  );
});

test("weights are cached for many sequences at a time, beside their keys and values, not for a few", () => {
  const serving = (cacheSequences: number) =>
    planned({
      weightCache: "auto",
      lora: [],
      work: {
        ...WORK,
        tokens: 512,
        labelTokens: cacheSequences,
        cacheTokens: 20_000,
        cacheSequences,
        forwardOnly: true,
      },
    });
  assert.equal(cachedBlocks(serving(8)), 0);
  const many = serving(9);
  assert.equal(cachedBlocks(many), 32);
  const { memory } = many.devices[0]!;
  assert.equal(memory.cache, 32 * 16384 * 20_000);
  assert.ok(memory.total <= memory.budget);
});

test("a cache of every block counts in the placement, also on CPUs; auto leaves CPUs alone", () => {
  const on = planned({ weightCache: "on" });
  assert.equal(cachedBlocks(on), 32);
  assert.throws(() => planned({ weightCache: "on" }, 12), {
    code: "PL_PLACEMENT_INFEASIBLE",
    hint: /--weight-cache auto/,
  });
  const cpu = (weightCache: PlanRequest["weightCache"]) =>
    makePlan(request(qwen, cpus(1), { holding: NF4, weightCache }));
  assert.equal(cachedBlocks(cpu("auto")), 0);
  const { weightCache, expansion } = cpu("on").devices[0]!.memory;
  const elements = 12288 * 4096 + 4096 * 4096 + 3 * 11008 * 4096;
  assert.deepEqual([weightCache, expansion], [32 * 2 * elements, 0]);
  // An unquantised base has nothing to cache.
  assert.equal(cachedBlocks(planned({ weightCache: "auto", holding: PLAIN })), 0);
});

test("a budget above a GPU's free memory is held to what is free, and says what would fit", () => {
  const free = 10 * GIB;
  const plan = (holding: Holding) =>
    makePlan(request(qwen, gpus(1, free), { holding, maxMemory: new Map([[0, 80 * GIB]]) }));
  assert.throws(() => plan(PLAIN), {
    code: "PL_PLACEMENT_INFEASIBLE",
    message: /needed {2}available[\s\S]*10\.00 GiB {2}short of/,
    hint: /--load-in-4bit/,
  });
  const fitting = plan(NF4);
  assert.equal(fitting.devices[0]!.memory.budget, free);
  assert.match(fitting.warnings.join(), /more than its 10\.00 GiB of free memory/);
});
