import assert from "node:assert/strict";
import { test } from "node:test";
import { buildSchedule, IDEAL_LINKS, type Instruction, simulate, simulateStep } from "../../../src/schedule/index.ts";
import { line, unitTimes } from "./shapes.ts";

const op = (kind: Instruction["kind"], segment: number, microBatch: number, peer?: number): Instruction =>
  peer === undefined ? { kind, segment, microBatch } : { kind, segment, microBatch, peer };

test("two ranks that each wait for the other first are a deadlock, and it says who waits for what", () => {
  const lists = [
    [op("recv-backward", 0, 0, 1), op("forward", 0, 0), op("send-forward", 0, 0, 1)],
    [op("recv-forward", 1, 0, 0), op("forward", 1, 0), op("backward", 1, 0), op("send-backward", 1, 0, 0)],
  ];
  const { deadlock } = simulate(lists, unitTimes);
  assert.deepEqual(
    deadlock?.waiting.map(({ rank, instruction }) => [rank, instruction.kind]),
    [
      [0, "recv-backward"],
      [1, "recv-forward"],
    ],
  );
  assert.throws(() => simulateStep(lists, unitTimes), /rank 0 at recv-backward of segment 0, micro-batch 0/);
});

test("sends that find no room on both sides are a deadlock, with one more buffer they are none", () => {
  const exchange = (rank: number, peer: number): Instruction[] => [
    op("send-forward", rank, 0, peer),
    op("send-forward", rank, 1, peer),
    op("recv-forward", peer + 1, 0, peer),
    op("recv-forward", peer + 1, 1, peer),
  ];
  const lists = [exchange(0, 1), exchange(1, 0)];
  const received = lists.map((list, rank) =>
    list.map((o) => (o.kind === "recv-forward" ? { ...o, segment: 1 - rank + 1 } : o)),
  );
  assert.notEqual(simulate(received, unitTimes, { ...IDEAL_LINKS, buffer: 1 }).deadlock, null);
  assert.equal(simulate(received, unitTimes, { ...IDEAL_LINKS, buffer: 2 }).deadlock, null);
});

test("a receive in another order than the sends is a deadlock on a first-in first-out link", () => {
  const lists = [
    [op("send-forward", 0, 0, 1), op("send-forward", 0, 1, 1)],
    [op("recv-forward", 1, 1, 0), op("recv-forward", 1, 0, 0)],
  ];
  assert.match(simulate(lists, unitTimes).deadlock!.waiting[0]!.reason, /sent input 1\/0 first/);
});

test("latency and bandwidth delay what comes over a link, and messages of a direction queue", () => {
  const lists = buildSchedule({ segments: line(2), microBatches: 2, policy: "gpipe", needsBackward: () => false });
  const links = { latency: () => 0.5, bytesPerSecond: () => 100, messageBytes: () => 300, buffer: 8 };
  const step = simulateStep(lists, { forward: () => 1, backward: () => 0 }, links);
  // Sent at 1 and 2; the link is busy 1…4 and 4…7; the second arrives at 7.5 and takes 1.
  assert.equal(step.stepTime, 8.5);
  assert.equal(step.bytes, 600);
  assert.deepEqual(
    step.ranks.map((rank) => rank.sentBytes),
    [600, 0],
  );
});

test("a slow stage bounds the step", () => {
  const lists = buildSchedule({ segments: line(3), microBatches: 10, policy: "1f1b", needsBackward: () => true });
  const step = simulateStep(lists, { forward: (s) => (s === 1 ? 4 : 1), backward: (s) => (s === 1 ? 8 : 2) });
  assert.equal(step.ranks[1]!.busy, 120);
  assert.ok(step.stepTime < 120 + 12);
  assert.ok(step.ranks[1]!.bubble < 0.1 && step.ranks[0]!.bubble > 0.7);
});

test("ranks that share cores slow each other down while they compute at the same time", () => {
  const alone = (seconds: number) => ({ forward: () => seconds, backward: () => 0 });
  const one: Instruction[] = [op("forward", 0, 0)];
  const cores = (fullSpeed: number) => ({ groupOf: () => "a", fullSpeed: () => fullSpeed });
  const time = (count: number, fullSpeed: number) =>
    simulateStep(
      Array.from({ length: count }, () => one),
      alone(6),
      IDEAL_LINKS,
      cores(fullSpeed),
    ).stepTime;
  assert.equal(time(2, 2), 6);
  assert.equal(time(3, 2), 9);
  assert.equal(time(4, 1), 24);

  // Both at half speed until the shorter is done: 4 of 8 seconds; the other then needs its last 4 at full speed.
  const lists = [[op("forward", 0, 0)], [op("forward", 1, 0)]];
  const step = simulateStep(lists, { forward: (s) => (s === 0 ? 4 : 8), backward: () => 0 }, IDEAL_LINKS, cores(1));
  assert.equal(step.stepTime, 12);
  assert.deepEqual(
    step.ranks.map(({ busy }) => busy),
    [8, 12],
  );
  const apart = { groupOf: (rank: number) => String(rank), fullSpeed: () => 1 };
  assert.equal(simulateStep(lists, { forward: () => 4, backward: () => 0 }, IDEAL_LINKS, apart).stepTime, 4);
});
