import assert from "node:assert/strict";
import { test } from "node:test";
import type { PipeloraError } from "../../../src/common/errors.ts";
import { takenBytes } from "../../../src/plan/arena.ts";
import {
  assertRunnable,
  fastestPlan,
  formatPlan,
  layerWeightBytes,
  linearWeightBytes,
  makePlan,
  microBatchCount,
  planJson,
} from "../../../src/plan/index.ts";
import { buildSchedule, simulateStep } from "../../../src/schedule/index.ts";
import { cpus, everyLinear, GIB, gpus, model, NF4, PLAIN, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");

test("held sizes are bitsandbytes' layouts, byte for byte", () => {
  const linear = { role: "o", name: "transformer.h.0.attn.c_proj", in: 128, out: 96, bias: false } as const;
  const bytes = (method: Parameters<typeof linearWeightBytes>[1]["quantization"]) =>
    linearWeightBytes(linear, { ...PLAIN, quantization: method }, "bfloat16");
  const elements = 128 * 96;
  assert.equal(bytes({ method: "none" }), 2 * elements);
  assert.equal(bytes({ method: "8bit" }), elements + 96 * 4);
  // Packed codes and a float32 absmax a block of 64.
  assert.equal(bytes({ method: "4bit", quantType: "nf4", doubleQuant: false }), elements / 2 + (elements / 64) * 4);
  // One byte an absmax and a float32 for 256 of those.
  const nested = elements / 2 + elements / 64 + Math.ceil(elements / 64 / 256) * 4;
  assert.equal(bytes({ method: "4bit", quantType: "fp4", doubleQuant: true }), nested);
  const skipped = { ...NF4, skipModules: ["transformer.h.0.attn.c_proj"] };
  assert.equal(linearWeightBytes(linear, skipped, "bfloat16"), 2 * elements);
});

test("Qwen-7B's weights as held: 14.4 GiB in 16 bits, 8.3 in 8, 5.4 in 4", () => {
  const total = (holding: typeof NF4) =>
    qwen.layers.reduce((sum, layer) => sum + layerWeightBytes(qwen, layer, holding, "bfloat16"), 0) / GIB;
  assert.ok(Math.abs(total(PLAIN) - 14.38) < 0.01);
  assert.ok(Math.abs(total({ ...PLAIN, quantization: { method: "8bit" } }) - 8.36) < 0.01);
  assert.ok(Math.abs(total(NF4) - 5.43) < 0.01);
});

test("LoRA takes 16 bytes a parameter: weight, gradient, two moments", () => {
  const plan = makePlan(request(qwen, gpus(1)));
  const parameters = everyLinear(qwen).reduce((sum, { r, in: input, out }) => sum + r * (input + out), 0);
  assert.equal(plan.devices[0]!.memory.lora, 16 * parameters);
});

test("checkpointing keeps 8 KiB a token a block of Qwen-7B, without it 0.085 MB and the residual", () => {
  const activations = (checkpointing: "all" | "none") =>
    makePlan(request(qwen, gpus(1), { work: { ...WORK, checkpointing, microBatches: 1 } })).devices[0]!.memory
      .activations;
  const ends = 2 * 8192;
  const ranks = 4 * 5 * 8;
  assert.equal(activations("all"), (32 * (8192 + ranks) + ends) * WORK.tokens);
  // Room for LoRA's inner vectors behind attention's output.
  const tail = 2 * 64;
  assert.equal(activations("none"), (32 * (84_992 + 128 + 8192 + ranks + tail) + ends) * WORK.tokens);
});

test("auto checkpointing recomputes as few blocks as the budget allows", () => {
  const plan = (gib: number) =>
    makePlan(
      request(qwen, gpus(2, null), {
        holding: NF4,
        maxMemory: new Map([
          [0, gib * GIB],
          [1, gib * GIB],
        ]),
        work: { ...WORK, checkpointing: "auto" },
      }),
    );
  const recomputed = (gib: number) => plan(gib).segments.reduce((sum, segment) => sum + segment.checkpointedBlocks, 0);
  assert.equal(recomputed(40), 0);
  const some = recomputed(5);
  assert.ok(some > 0 && some < 32, `${some}`);
  // To the byte that the arenas take, which is more than what is predicted to lie in them.
  for (const { memory } of plan(5).devices) {
    const taken = takenBytes(memory, "cuda");
    assert.ok(memory.total < taken && taken <= memory.budget && taken > memory.budget - 0.2 * GIB);
  }
});

test("the prediction agrees with the simulated schedule of the same stages", () => {
  for (const count of [1, 2, 4]) {
    for (const schedule of ["1f1b", "gpipe", "sequential"] as const) {
      const plan = makePlan(request(qwen, gpus(count), { holding: NF4, work: { ...WORK, schedule } }));
      const { segments, stepTimeMs } = plan.predicted!;
      const lists = buildSchedule({
        segments: plan.segments,
        microBatches: WORK.microBatches,
        policy: schedule,
        needsBackward: (segment) => plan.segments[segment]!.needsBackward,
      });
      const step = simulateStep(
        lists,
        { forward: (s) => segments[s]!.forwardMs[0]!, backward: (s) => segments[s]!.backwardMs[0]! },
        {
          latency: (from, to) => segments[Math.min(from, to)]!.transferMs,
          bytesPerSecond: () => Number.POSITIVE_INFINITY,
          messageBytes: () => 0,
          buffer: 2,
        },
      );
      assert.ok(
        Math.abs(step.stepTime / stepTimeMs - 1) < 0.05,
        `${count} ${schedule}: ${step.stepTime} ${stepTimeMs}`,
      );
    }
  }
});

test("Qwen-7B's head weighs about two blocks under checkpointing", () => {
  const map = { transformer: 0, lm_head: 1 };
  const { predicted } = makePlan(request(qwen, gpus(2), { strategy: map, lora: everyLinear(qwen) }));
  const [blocks, head] = predicted!.segments.map(({ forwardMs, backwardMs }) => forwardMs[0]! + backwardMs[0]!);
  const ratio = head! / (blocks! / 32);
  // Products alone make it 2.26 (four of its passes of the vocabulary's against three of a block's but one of down); a block has more beside them.
  assert.ok(ratio > 1.7 && ratio < 2.3, `${ratio}`);
});

test("70 billion parameters over 512 devices: every device's load within the best", () => {
  const llama = model("llama-3-70b");
  for (const strategy of ["auto", "balanced_low_0", "sequential"] as const) {
    const plan = makePlan(request(llama, gpus(512), { strategy }));
    const blocks = plan.segments.map(({ firstLayer, lastLayer }) => lastLayer - firstLayer + 1);
    if (strategy !== "sequential") assert.ok(Math.max(...blocks) <= 2);
    for (const { memory } of plan.devices) assert.ok(memory.total <= memory.budget);
  }
});

test("the same request gives the same plan", () => {
  const of = () => makePlan(request(qwen, gpus(4), { holding: NF4, strategy: "balanced_low_0" }));
  assert.deepEqual(of(), of());
});

test("generation counts the cache and keeps nothing for backward", () => {
  const work = {
    ...WORK,
    microBatches: 1,
    tokens: 64,
    labelTokens: 1,
    meanLabelTokens: 1,
    checkpointing: "none",
    cacheTokens: 1000,
    forwardOnly: true,
  } as const;
  const { memory } = makePlan(request(qwen, gpus(1), { lora: [], work })).devices[0]!;
  // 16 KiB a token a layer.
  assert.equal(memory.cache, 32 * 16384 * 1000);
  assert.equal(memory.activations, 0);
  assert.equal(memory.lora, 0);
  // An adapter is held, but keeps nothing either; a run that trains beside a cache does.
  const adapted = makePlan(request(qwen, gpus(1), { work })).devices[0]!.memory;
  assert.ok(adapted.lora > 0);
  assert.equal(adapted.activations, 0);
  const training = makePlan(request(qwen, gpus(1), { work: { ...work, forwardOnly: false } })).devices[0]!.memory;
  assert.ok(training.activations > 0);
  assert.equal(training.cache, memory.cache);
});

test("sequences whose cache does not fit: a smaller one that does is named", () => {
  const work = { ...WORK, tokens: 512, labelTokens: 16, checkpointing: "none", forwardOnly: true } as const;
  const serving = (cacheTokens: number) =>
    request(qwen, gpus(1, 24 * GIB), { holding: NF4, lora: [], work: { ...work, cacheTokens } });
  assert.throws(
    () => makePlan(serving(100_000)),
    (error: PipeloraError) => {
      assert.equal(error.code, "PL_PLACEMENT_INFEASIBLE");
      const [, rows] = /--kv-cache-tokens (\d+)/.exec(error.hint!)!;
      assert.equal(Number(rows), 25_000);
      assert.doesNotMatch(error.hint!, /--micro-batch-tokens|--gradient-checkpointing/);
      makePlan(serving(Number(rows)));
      return true;
    },
  );
});

test("a recurrent state is counted for each sequence that a cache has", () => {
  const hybrid = model("qwen3-next", {
    ...{ architectures: ["Qwen3NextForCausalLM"], hidden_size: 128, intermediate_size: 256, num_hidden_layers: 4 },
    ...{ num_attention_heads: 4, vocab_size: 1000, tie_word_embeddings: false, torch_dtype: "bfloat16" },
  });
  const cache = (cacheSequences: number) =>
    makePlan(request(hybrid, cpus(1), { work: { ...WORK, cacheTokens: 100, cacheSequences, forwardOnly: true } }))
      .devices[0]!.memory.cache;
  const [one, two, nine] = [cache(1), cache(2), cache(9)];
  assert.ok(two > one);
  assert.equal(nine - one, 8 * (two - one));
});

test("a map that needs more than max_memory warns; more than the device has, it can't run", () => {
  const map = { "": 0 };
  const tight = makePlan(request(qwen, gpus(1), { strategy: map, maxMemory: new Map([[0, 4 * GIB]]) }));
  assert.match(tight.warnings[0]!, /more than max_memory allows: device 0 1\d\.\d\d GiB of 4\.00 GiB/);
  assert.equal(tight.problem, null);
  const small = makePlan(request(qwen, gpus(1, 8e9), { strategy: map }));
  assert.match(small.problem!, /more memory than there is: device 0/);
  assert.throws(() => assertRunnable(small), { code: "PL_PLACEMENT_INFEASIBLE" });
});

test("no budget at all, and strategies that accelerate lacks, are refused", () => {
  assert.throws(() => makePlan(request(qwen, gpus(1), { maxMemory: new Map([[0, 0]]) })), {
    code: "PL_PLACEMENT_INFEASIBLE",
    message: /budget of 0/,
  });
  assert.throws(() => makePlan(request(qwen, gpus(1), { planner: "accelerate", strategy: "fastest" })), {
    code: "PL_CONFIG_INVALID",
  });
});

test("the JSON form has the documented keys", () => {
  const json = planJson(makePlan(request(model("tiny-llama-3-layer"), cpus(2))), []) as {
    hf_device_map: Record<string, number>;
    devices: { device: number; segments: unknown[]; memory: Record<string, number> }[];
    predicted: Record<string, number>;
    micro_batches: number;
    micro_batch_tokens: number;
  };
  assert.deepEqual([json.micro_batches, json.micro_batch_tokens], [WORK.microBatches, WORK.tokens]);
  assert.deepEqual(JSON.parse(JSON.stringify(json)), json);
  assert.deepEqual(Object.keys(json.predicted), ["step_time_ms", "bubble", "tokens_per_s", "evaluation_time_ms"]);
  assert.deepEqual(new Set(Object.values(json.hf_device_map)), new Set([0, 1]));
  for (const { memory } of json.devices) {
    for (const key of ["weights", "lora", "activations", "workspace", "total", "budget"])
      assert.ok(memory[key]! >= 0, key);
  }
});

test("the table has a line a device and the prediction", () => {
  const spec = model("tiny-llama-3-layer");
  const plan = makePlan(
    request(spec, cpus(3), {
      strategy: "sequential",
      maxMemory: new Map([
        [0, GIB],
        [1, GIB],
        [2, 0],
      ]),
    }),
  );
  const lines = formatPlan(
    plan,
    spec.layers.map(({ name }) => name),
    [],
  ).split("\n");
  assert.match(lines[0]!, /^device +layers +weights +LoRA +activations +workspace +total +budget$/);
  assert.match(lines[1]!, /^0 +model\.embed_tokens … lm_head /);
  assert.match(lines[2]!, /^1 +- .* 1\.00 GiB$/);
  assert.match(lines[3]!, /not used$/);
  assert.match(lines[4]!, /^sequential over 1 device: predicted/);
});

test("the number of micro-batches depends on the step alone, never on the placement", () => {
  assert.equal(microBatchCount(1088, 16, "cuda"), 1);
  assert.equal(microBatchCount(6144, 16, "cuda"), 6);
  assert.equal(microBatchCount(1088, 16, "cpu"), 9);
  assert.equal(microBatchCount(100, 16, "cpu"), 4);
  assert.equal(microBatchCount(100, 2, "cpu"), 2);
  assert.equal(microBatchCount(20_000, 1000, "cpu"), 16);
  assert.equal(microBatchCount(1e6, 1000, "cpu"), Math.ceil(1e6 / 2048));
});

test("asked for the fastest cut, more devices get more micro-batches, and what does not fit is passed over", async () => {
  const cut = (microBatches: number) => {
    const tokens = 16384 / microBatches;
    return { ...WORK, microBatches, tokens, labelTokens: tokens, meanTokens: tokens, meanLabelTokens: tokens };
  };
  const choices = [1, 2, 4, 8, 16, 32].map((count) => ({ replicas: 1, work: () => cut(count) }));
  const best = async (count: number, gib: number) => {
    const maxMemory = new Map(gpus(count).map(({ id }): [number, number] => [id, gib * GIB]));
    const { choice } = await fastestPlan(request(qwen, gpus(count, null), { holding: NF4, maxMemory }), choices);
    return choice.work().microBatches;
  };
  assert.equal(await best(1, 70), 1);
  assert.ok((await best(4, 70)) >= 8);
  assert.ok((await best(1, 8)) > 1);
  await assert.rejects(best(1, 2), { code: "PL_PLACEMENT_INFEASIBLE" });
});

test("the interleaved schedule gets several segments a device, dealt out round robin, within the budgets", () => {
  const work = { ...WORK, schedule: "interleaved" } as const;
  const plan = makePlan(request(qwen, gpus(4), { holding: NF4, work }));
  const ranks = plan.segments.filter((segment) => segment.ranks.length === 1).map((segment) => segment.ranks[0]!);
  assert.ok(ranks.length >= 8);
  assert.deepEqual(
    ranks,
    ranks.map((_, index) => index % 4),
  );
  assert.deepEqual(plan.warnings, []);
  for (const { memory } of plan.devices) assert.ok(memory.total <= memory.budget);
  const contiguous = makePlan(request(qwen, gpus(4), { holding: NF4 }));
  assert.ok(plan.predicted!.stepTimeMs < contiguous.predicted!.stepTimeMs);

  const inOrder = makePlan(request(qwen, gpus(4), { holding: NF4, work, strategy: "balanced_low_0" }));
  assert.match(inOrder.warnings.join(), /balanced_low_0 keeps each device's layers together/);
  const oneUnitEach = makePlan(request(model("tiny-llama-3-layer"), gpus(4), { work }));
  assert.match(oneUnitEach.warnings.join(), /runs as 1f1b/);
  assert.deepEqual(makePlan(request(qwen, gpus(1), { holding: NF4, work })).warnings, []);
});
