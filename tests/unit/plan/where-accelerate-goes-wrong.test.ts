import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { accelerateDeviceMap } from "../../../src/plan/accelerate/index.ts";
import {
  type Device,
  layerWeightBytes,
  linkKey,
  type MeasuredDevice,
  makePlan,
  type Plan,
  type PlannedDevice,
} from "../../../src/plan/index.ts";
import { cpus, everyLinear, GIB, gpus, model, NF4, PLAIN, request, WORK } from "./models.ts";

const qwen = model("qwen-7b");
const tiny = model("tiny-llama-3-layer");

function used(plan: Plan): PlannedDevice[] {
  return plan.devices.filter(({ segments }) => segments.length > 0);
}

function blocksOf(plan: Plan, device: number): number {
  const layers = plan.segments.filter(({ devices }) => devices.includes(device));
  return layers.reduce((sum, { firstLayer, lastLayer }) => sum + lastLayer - firstLayer + 1, 0);
}

function loadsOf(plan: Plan): Map<number, number> {
  const loads = new Map<number, number>();
  for (const [index, { forwardMs, backwardMs }] of plan.predicted!.segments.entries()) {
    const { devices } = plan.segments[index]!;
    for (const [turn, device] of devices.entries()) {
      loads.set(device, (loads.get(device) ?? 0) + (forwardMs[turn]! + backwardMs[turn]!) / devices.length);
    }
  }
  return loads;
}

function withinBudgets(plan: Plan): void {
  for (const { device, memory } of plan.devices) assert.ok(memory.total <= memory.budget, `device ${device}`);
}

/** Device 0 holds something and no other holds, or computes, less. */
function assertLightest(plan: Plan, id: number): void {
  const zero = plan.devices.find(({ device }) => device === id)!;
  const loads = loadsOf(plan);
  assert.ok(zero.segments.length > 0, `device ${id} takes part`);
  for (const other of used(plan)) {
    assert.ok(zero.memory.weights <= other.memory.weights, `weights against device ${other.device}`);
    assert.ok(zero.memory.total <= other.memory.total, `memory against device ${other.device}`);
    assert.ok(loads.get(id)! <= loads.get(other.device)! + 1e-9, `load against device ${other.device}`);
  }
}

test("the head's reserve does not empty device 0: Qwen-7B on 4 GPUs in 4 bits fills all four", () => {
  const maxMemory = new Map(gpus(4).map(({ id }): [number, number] => [id, 8 * GIB]));
  const theirs = accelerateDeviceMap(qwen, {
    ...{ strategy: "auto", maxMemory, userGiven: true, quantization: "int4", loadDtype: "bfloat16" },
  });
  assert.ok(![...theirs.deviceMap.values()].includes(0), "accelerate leaves device 0 empty");
  const plan = makePlan(request(qwen, gpus(4, null), { holding: NF4, maxMemory }));
  assert.deepEqual(
    used(plan).map(({ device }) => device),
    [0, 1, 2, 3],
  );
  withinBudgets(plan);
});

test("4-bit sizing counts the embedding and the head in 16 bits, blocks at 0.516 bytes a parameter", () => {
  const [embedding, block] = [qwen.layers[0]!, qwen.layers[1]!];
  assert.equal(layerWeightBytes(qwen, embedding, NF4, "bfloat16"), 151936 * 4096 * 2);
  assert.equal(layerWeightBytes(qwen, qwen.layers.at(-1)!, NF4, "bfloat16"), 151936 * 4096 * 2);
  assert.ok(block.kind === "block");
  const parameters = block.linears.reduce((sum, { in: input, out }) => sum + input * out, 0);
  const perParameter = layerWeightBytes(qwen, block, NF4, "bfloat16") / parameters;
  assert.ok(perParameter > 0.5155 && perParameter < 0.5165, `${perParameter}`);
  // Where accelerate would put 311 MB of embedding beside 13 blocks, the true 1.24 GB leave room for fewer.
  const plan = makePlan(
    request(qwen, gpus(2, null), {
      holding: NF4,
      maxMemory: new Map([
        [0, 4 * GIB],
        [1, 6 * GIB],
      ]),
    }),
  );
  withinBudgets(plan);
});

test("balanced_low_0 with skipped or zeroed ids places all of the model, the first usable device lightest", () => {
  for (const ids of [
    [1, 3],
    [2, 5, 7],
    [0, 3],
  ]) {
    const maxMemory = new Map(ids.map((id): [number, number] => [id, 30 * GIB]));
    const plan = makePlan(request(qwen, gpus(8, null), { strategy: "balanced_low_0", maxMemory, holding: NF4 }));
    assert.deepEqual(
      used(plan).map(({ device }) => device),
      ids,
    );
    assertLightest(plan, ids[0]!);
  }
  const zeroed = new Map([
    [0, 0],
    [1, 30 * GIB],
    [2, 30 * GIB],
  ]);
  const plan = makePlan(request(qwen, gpus(3, null), { strategy: "balanced_low_0", maxMemory: zeroed, holding: NF4 }));
  assert.deepEqual(
    used(plan).map(({ device }) => device),
    [1, 2],
  );
  assertLightest(plan, 1);
});

test("balanced_low_0 keeps the last device's cap, and gives device 0 more rather than spill", () => {
  for (const last of [2.5, 3.5, 4.5]) {
    const maxMemory = new Map([
      [0, 40 * GIB],
      [1, 4.5 * GIB],
      [2, last * GIB],
    ]);
    const plan = makePlan(request(qwen, gpus(3, null), { strategy: "balanced_low_0", maxMemory, holding: NF4 }));
    withinBudgets(plan);
    assert.ok([...plan.hfDeviceMap.values()].every((device) => typeof device === "number"));
    // The embedding and a block, or what the other two can't take.
    assert.equal(blocksOf(plan, 0) > 2, last < 3);
  }
});

test("balanced_low_0 leaves device 0 the lightest, never unused, on 2 to 8 devices in 16, 8 and 4 bits", () => {
  for (const holding of [PLAIN, { ...PLAIN, quantization: { method: "8bit" } as const }, NF4]) {
    for (let count = 2; count <= 8; count++) {
      assertLightest(makePlan(request(qwen, gpus(count), { strategy: "balanced_low_0", holding })), 0);
    }
  }
  for (let count = 2; count <= 3; count++) {
    assertLightest(makePlan(request(tiny, cpus(count), { strategy: "balanced_low_0" })), 0);
  }
});

test("a layer larger than a device's cap passes that device over, and the rest still spreads", () => {
  // Device 0 can't hold the embedding; whatever it can hold, it does.
  const maxMemory = new Map([
    [0, 1.5 * GIB],
    [1, 8 * GIB],
    [2, 8 * GIB],
    [3, 8 * GIB],
  ]);
  const plan = makePlan(request(qwen, gpus(4, null), { maxMemory, holding: NF4 }));
  withinBudgets(plan);
  assert.ok(used(plan).length >= 3);
  const largest = Math.max(...loadsOf(plan).values());
  assert.ok(
    largest < 0.5 * [...loadsOf(plan).values()].reduce((sum, load) => sum + load, 0),
    "nothing collapses onto one",
  );
  const filled = makePlan(request(qwen, gpus(4, null), { maxMemory, holding: NF4, strategy: "sequential" }));
  withinBudgets(filled);
});

test("nothing spills: what fits nowhere is refused with what is needed, available, and would make it fit", () => {
  const maxMemory = new Map<number | "cpu", number>([
    [0, 6 * GIB],
    [1, 5 * GIB],
    ["cpu", 100 * GIB],
  ]);
  const error = infeasibility(() => makePlan(request(qwen, gpus(2, null), { maxMemory })));
  assert.match(error.message, /device +needed +available/);
  assert.match(error.message, /^0 +\d+\.\d\d GiB +6\.00 GiB +short of \d/m);
  assert.match(error.message, /^1 +\d+\.\d\d GiB +5\.00 GiB +short of \d/m);
  assert.match(error.hint!, /--load-in-4bit/);
  assert.match(error.hint!, /\d+ more devices? of 6\.00 GiB/);
  // Each remedy is true: the one named first works.
  const four = makePlan(request(qwen, gpus(2, null), { maxMemory, holding: NF4 }));
  withinBudgets(four);
  assert.ok(four.warnings.some((warning) => warning.includes("cpu")));
});

test("the number of further devices it asks for is enough, and one less is not", () => {
  const maxMemory = new Map([[0, 6 * GIB]]);
  const error = infeasibility(() => makePlan(request(qwen, gpus(1, null), { maxMemory })));
  const more = Number(/(\d+) more devices? of 6\.00 GiB/.exec(error.hint!)![1]);
  const over = (count: number) =>
    request(qwen, gpus(count, null), {
      maxMemory: new Map(gpus(count).map(({ id }): [number, number] => [id, 6 * GIB])),
    });
  withinBudgets(makePlan(over(1 + more)));
  infeasibility(() => makePlan(over(more)));
});

test("activations, logits, LoRA, in-flight micro-batches and the context count against the budget", () => {
  const budget = (gib: number) =>
    new Map([
      [0, gib * GIB],
      [1, gib * GIB],
    ]);
  const heavy = { ...WORK, tokens: 8192, labelTokens: 8192, checkpointing: "none" } as const;
  // The weights alone take 2.9 GiB a device; 16 micro-batches' activations do not fit beside them.
  makePlan(request(qwen, gpus(2, null), { holding: NF4, maxMemory: budget(5) }));
  const error = infeasibility(() =>
    makePlan(request(qwen, gpus(2, null), { holding: NF4, work: heavy, maxMemory: budget(5) })),
  );
  assert.match(error.hint!, /--gradient-checkpointing|--micro-batch-tokens/);
  const plan = makePlan(request(qwen, gpus(2), { holding: NF4 }));
  for (const { memory } of plan.devices) {
    assert.ok(memory.lora > 0 && memory.activations > 0 && memory.workspace > 0 && memory.context > 0);
    const { weights, weightCache, expansion, lora, activations, workspace, cache, context, total } = memory;
    assert.equal(total, weights + weightCache + expansion + lora + activations + workspace + cache + context);
    assert.ok(expansion > 0);
  }
  // 1F1B: the first of two equal stages holds two micro-batches in flight, the second one.
  const [first, second] = plan.devices.map(({ memory }) => memory.activations);
  assert.ok(first! > 1.5 * second!);
});

test("devices share the work of a pipeline: 4 equal GPUs each have a quarter, within a block", () => {
  // The optimum for 4 equal devices is a largest load of 9 blocks.
  for (const holding of [PLAIN, NF4]) {
    const plan = makePlan(request(qwen, gpus(4), { holding, strategy: "balanced", work: { ...WORK, rowTokens: 0 } }));
    const loads = [...loadsOf(plan).values()];
    const block = plan.predicted!.segments[1]!;
    const perBlock = (block.forwardMs[0]! + block.backwardMs[0]!) / blocksOf(plan, plan.segments[1]!.devices[0]!);
    assert.ok(Math.abs(Math.max(...loads) / perBlock - 9) < 0.05, `${Math.max(...loads) / perBlock} blocks`);
    assert.ok(plan.predicted!.bubble < 0.25);
  }
});

test("a faster device takes more, a node's devices stay neighbours, and `fastest` leaves a slow link unused", () => {
  const mixed: Device[] = [
    { id: 0, kind: "cuda", name: "Tesla T4", node: "a", memoryBytes: 80e9 },
    { id: 1, kind: "cuda", name: "NVIDIA H100", node: "a", memoryBytes: 80e9 },
  ];
  const plan = makePlan(request(qwen, mixed, { strategy: "balanced" }));
  assert.ok(blocksOf(plan, 1) > 5 * blocksOf(plan, 0));

  const twoNodes = gpus(4).map((device): Device => ({ ...device, node: device.id % 2 === 0 ? "a" : "b" }));
  const grouped = makePlan(request(qwen, twoNodes, { strategy: "balanced" }));
  assert.deepEqual(
    grouped.segments.map(({ devices }) => devices[0]),
    [0, 2, 1, 3],
  );

  const rates = {
    measured: new Map<number, MeasuredDevice>(),
    links: new Map([[linkKey(0, 1), { bytesPerSecond: 1e8, latency: 1e-3, compute: 0 }]]),
    crowded: new Map<string, number>(),
  };
  const alone = makePlan(request(tiny, gpus(2), { strategy: "fastest", rates }));
  assert.deepEqual(
    used(alone).map(({ device }) => device),
    [0],
  );
  const both = makePlan(request(qwen, gpus(2), { strategy: "fastest" }));
  assert.equal(used(both).length, 2);
});

test("sequential fills devices in order and leaves the rest empty", () => {
  const maxMemory = new Map(gpus(4).map(({ id }): [number, number] => [id, 7 * GIB]));
  const plan = makePlan(request(qwen, gpus(4, null), { strategy: "sequential", maxMemory }));
  withinBudgets(plan);
  const order = plan.segments.map(({ devices }) => devices[0]!);
  assert.deepEqual(
    order,
    [...order].sort((a, b) => a - b),
  );
  const roomy = makePlan(request(qwen, gpus(4), { strategy: "sequential" }));
  assert.deepEqual(
    used(roomy).map(({ device }) => device),
    [0],
  );
});

test("a device with a budget of 0 is not used, nor is one that max_memory leaves out", () => {
  const maxMemory = new Map([
    [0, 20 * GIB],
    [1, 0],
    [3, 20 * GIB],
  ]);
  for (const strategy of ["auto", "balanced", "balanced_low_0", "sequential", "fastest"] as const) {
    const plan = makePlan(request(qwen, gpus(4, null), { strategy, maxMemory, lora: everyLinear(qwen) }));
    assert.ok(
      used(plan).every(({ device }) => device === 0 || device === 3),
      strategy,
    );
  }
});

function infeasibility(attempt: () => unknown): PipeloraError {
  try {
    attempt();
  } catch (error) {
    assert.ok(error instanceof PipeloraError);
    assert.equal(error.code, "PL_PLACEMENT_INFEASIBLE");
    return error;
  }
  throw new assert.AssertionError({ message: "expected a refusal" });
}
