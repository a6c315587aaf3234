import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  buildSchedule,
  IDEAL_LINKS,
  type Instruction,
  mostHeld,
  rankOf,
  type ScheduleRequest,
  simulate,
} from "../../../src/schedule/index.ts";
import { computeOf, describeRequest, line, policy, request, roundRobin, sharing, unitTimes } from "./shapes.ts";

const always = () => true;
const RUNS = { numRuns: 1000 };

function run(shape: ScheduleRequest, buffer = Number.POSITIVE_INFINITY) {
  const result = simulate(buildSchedule(shape), unitTimes, { ...IDEAL_LINKS, buffer });
  assert.equal(
    result.deadlock,
    null,
    `${describeRequest(shape)}, buffer ${buffer}: ${JSON.stringify(result.deadlock)}`,
  );
  return result.step!;
}

test("every micro-batch runs once, in ascending order, forward in every segment and backward from the lowest trainable up", () => {
  fc.assert(
    fc.property(request, (shape) => {
      const lists = buildSchedule(shape);
      const ascending = Array.from({ length: shape.microBatches }, (_, microBatch) => microBatch);
      for (const [segment, own] of shape.segments.entries()) {
        // By rank, each in ascending order: micro-batch i on the rank whose turn i is.
        const expected = [...new Set(own.ranks)]
          .sort()
          .flatMap((rank) =>
            ascending
              .filter((microBatch) => rankOf(own, microBatch) === rank)
              .map((microBatch) => ({ rank, microBatch })),
          );
        assert.deepEqual(computeOf(lists, "forward", segment), expected);
        assert.deepEqual(computeOf(lists, "backward", segment), shape.needsBackward(segment) ? expected : []);
      }
    }),
    RUNS,
  );
});

test("no shape deadlocks, over unbounded links and over links that buffer one or two messages", () => {
  fc.assert(
    fc.property(request, fc.constantFrom(1, 2, Number.POSITIVE_INFINITY), (shape, buffer) => {
      run(shape, buffer);
    }),
    RUNS,
  );
});

test("no shape deadlocks whatever the operations and messages take", () => {
  fc.assert(
    fc.property(request, fc.array(fc.integer({ min: 0, max: 50 }), { minLength: 9, maxLength: 9 }), (shape, costs) => {
      const times = {
        forward: (segment: number, batch: number) => costs[segment]! * (1 + (batch % 3)),
        backward: (segment: number) => costs[(segment + 1) % 9]!,
      };
      const links = { latency: () => costs[0]!, bytesPerSecond: () => 1, messageBytes: () => costs[1]!, buffer: 1 };
      assert.equal(simulate(buildSchedule(shape), times, links).deadlock, null, describeRequest(shape));
    }),
    RUNS,
  );
});

test("messages of a link direction are received in the order they are sent, and only between different ranks", () => {
  fc.assert(
    fc.property(request, (shape) => {
      const sent = new Map<string, string[]>();
      const received = new Map<string, string[]>();
      const add = (map: Map<string, string[]>, key: string, tag: string) =>
        map.set(key, [...(map.get(key) ?? []), tag]);
      for (const [rank, list] of buildSchedule(shape).entries()) {
        for (const { kind, segment, microBatch, peer } of list) {
          if (kind === "forward" || kind === "backward") {
            assert.equal(peer, undefined);
            continue;
          }
          assert.notEqual(peer, rank);
          const receiver = segment + (kind === "send-forward" ? 1 : kind === "send-backward" ? -1 : 0);
          const tag = `${kind.slice(5)} ${receiver} ${microBatch}`;
          if (kind.startsWith("send")) add(sent, `${rank}-${peer}`, tag);
          else add(received, `${peer}-${rank}`, tag);
        }
      }
      assert.deepEqual(Object.fromEntries(received), Object.fromEntries(sent));
    }),
    RUNS,
  );
});

test("an input is received, used and handed on in that order", () => {
  fc.assert(
    fc.property(request, (shape) => {
      for (const [rank, list] of buildSchedule(shape).entries()) {
        const seen = new Set<string>();
        const need = (key: string) => assert.ok(seen.has(key), `${describeRequest(shape)}: ${key}`);
        const isHere = (segment: number, microBatch: number) => rankOf(shape.segments[segment]!, microBatch) === rank;
        for (const { kind, segment, microBatch } of list) {
          const here = `${segment}/${microBatch}`;
          if (kind === "forward" && segment > 0) {
            need(isHere(segment - 1, microBatch) ? `forward ${segment - 1}/${microBatch}` : `recv-forward ${here}`);
          }
          if (kind === "backward") need(`forward ${here}`);
          if (kind === "backward" && segment + 1 < shape.segments.length) {
            need(isHere(segment + 1, microBatch) ? `backward ${segment + 1}/${microBatch}` : `recv-backward ${here}`);
          }
          if (kind.startsWith("send")) need(`${kind.slice(5)} ${here}`);
          seen.add(`${kind} ${here}`);
        }
      }
    }),
    RUNS,
  );
});

const equalStages = fc.record({ p: fc.integer({ min: 1, max: 10 }), m: fc.integer({ min: 1, max: 24 }) });

test("1f1b and gpipe over equal stages idle (p − 1) / (m + p − 1) of the step, over one-message links too", () => {
  fc.assert(
    fc.property(
      equalStages,
      fc.constantFrom("1f1b" as const, "gpipe" as const),
      fc.constantFrom(1, 2, 9),
      (shape, policy, buffer) => {
        const { p, m } = shape;
        const step = run({ segments: line(p), microBatches: m, policy, needsBackward: always }, buffer);
        assert.ok(Math.abs(step.bubble - (p - 1) / (m + p - 1)) < 1e-9, `p=${p} m=${m}: ${step.bubble}`);
        assert.equal(step.stepTime, 3 * (m + p - 1));
      },
    ),
    { numRuns: 500 },
  );
});

test("sequential takes m times the whole way there and back", () => {
  for (const [p, m] of [
    [1, 3],
    [4, 1],
    [4, 5],
  ] as const) {
    const shape = { segments: line(p), microBatches: m, policy: "sequential", needsBackward: always } as const;
    assert.equal(run(shape).stepTime, 3 * p * m);
  }
});

test("1f1b holds at most min(m, p − stage) micro-batches, gpipe m, sequential 1", () => {
  fc.assert(
    fc.property(equalStages, ({ p, m }) => {
      const held = (policy: ScheduleRequest["policy"]) =>
        run({ segments: line(p), microBatches: m, policy, needsBackward: always }).ranks.map((rank, stage) =>
          rank.peakHeld.get(stage),
        );
      assert.deepEqual(
        held("1f1b"),
        line(p).map((_, stage) => Math.min(m, p - stage)),
      );
      assert.deepEqual(
        held("gpipe"),
        line(p).map(() => m),
      );
      assert.deepEqual(
        held("sequential"),
        line(p).map(() => 1),
      );
    }),
    { numRuns: 300 },
  );
});

test("no rank holds more than mostHeld says, whatever its segments keep of a micro-batch", () => {
  const weights = fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 17, maxLength: 17 });
  fc.assert(
    fc.property(request, weights, (shape, kept) => {
      for (const [rank, list] of buildSchedule(shape).entries()) {
        const most = mostHeld(shape, rank, (segment) => kept[segment % kept.length]!);
        let held = 0;
        for (const { kind, segment } of list) {
          if (!shape.needsBackward(segment)) continue;
          if (kind === "forward") held += kept[segment % kept.length]!;
          if (kind === "backward") held -= kept[segment % kept.length]!;
          assert.ok(held <= most, `${describeRequest(shape)}: rank ${rank} holds ${held}, not ${most}`);
        }
      }
    }),
    RUNS,
  );
});

test("1f1b of a line holds at most min(m, p − stage)", () => {
  const shape = { segments: line(5), microBatches: 3, policy: "1f1b" } as const;
  assert.deepEqual(
    line(5).map((_, rank) => mostHeld(shape, rank, () => 1)),
    [3, 3, 3, 2, 1],
  );
});

test("a shared last segment fills the pipeline as if its time were spread over the stages", () => {
  fc.assert(
    fc.property(
      fc.record({
        p: fc.integer({ min: 2, max: 8 }),
        v: fc.integer({ min: 1, max: 4 }),
        groups: fc.integer({ min: 1, max: 5 }),
        head: fc.integer({ min: 1, max: 12 }),
      }),
      ({ p, v, groups, head }) => {
        const m = p * groups;
        const times = {
          forward: (s: number) => (s === p * v ? head : 1),
          backward: (s: number) => (s === p * v ? 0 : 2),
        };
        const segments = sharing(p, v, p).map(({ ranks }, s) => ({
          ...{ ranks, forward: times.forward(s), backward: times.backward(s) },
        }));
        const shape = {
          segments,
          microBatches: m,
          policy: v === 1 ? "1f1b" : "interleaved",
          needsBackward: always,
        } as const;
        const { step } = simulate(buildSchedule(shape), times);
        // As with stages alone, and the head once for every group; in the first group the ranks begin with it one after another.
        const least = 3 * (v * m + p - 1) + groups * head;
        assert.ok(
          step!.stepTime <= least + 2 * p * v,
          `p=${p} v=${v} m=${m} head=${head}: ${step!.stepTime} and ${least}`,
        );
      },
    ),
    { numRuns: 300 },
  );
});

test("interleaving lowers the bubble, to (p − 1) / (v m + p − 1) where m is a multiple of p", () => {
  fc.assert(
    fc.property(
      fc.record({
        p: fc.integer({ min: 2, max: 8 }),
        v: fc.integer({ min: 2, max: 4 }),
        groups: fc.integer({ min: 1, max: 5 }),
      }),
      ({ p, v, groups }) => {
        const m = p * groups;
        const step = run({ segments: roundRobin(p, v), microBatches: m, policy: "interleaved", needsBackward: always });
        const plain = (p - 1) / (m + p - 1);
        assert.ok(step.bubble < plain, `p=${p} v=${v} m=${m}: ${step.bubble} against ${plain}`);
        assert.ok(Math.abs(step.bubble - (p - 1) / (v * m + p - 1)) < 1e-9, `p=${p} v=${v} m=${m}: ${step.bubble}`);
      },
    ),
    { numRuns: 300 },
  );
});

test("interleaving holds Megatron's warm-up and one, and with a last, smaller group at most p more", () => {
  fc.assert(
    fc.property(
      fc.record({
        p: fc.integer({ min: 1, max: 8 }),
        v: fc.integer({ min: 2, max: 4 }),
        microBatches: fc.integer({ min: 1, max: 24 }),
      }),
      ({ p, v, microBatches }) => {
        const shape = {
          segments: roundRobin(p, v),
          microBatches,
          policy: "interleaved",
          needsBackward: always,
        } as const;
        const ragged = microBatches % p === 0 ? 0 : p;
        for (const [rank, list] of buildSchedule(shape).entries()) {
          const most = 2 * (p - rank - 1) + (v - 1) * p + 1 + ragged;
          let held = 0;
          for (const { kind } of list) {
            if (kind === "forward") held += 1;
            if (kind === "backward") held -= 1;
            assert.ok(held <= most, `p=${p} v=${v} m=${microBatches} rank ${rank}: ${held} > ${most}`);
          }
        }
      },
    ),
    { numRuns: 300 },
  );
});

test("a tied head back on rank 0 keeps the pipeline full", () => {
  const segments = [{ ranks: [0] }, { ranks: [1] }, { ranks: [2] }, { ranks: [0] }];
  const shape = { segments, microBatches: 16, policy: "1f1b", needsBackward: always } as const;
  const step = run(shape);
  // Rank 0 has two of four equal segments: at best it computes all the time but for the pipeline's filling.
  assert.ok(step.stepTime < 2 * 3 * 16 * 1.15, `${step.stepTime}`);
});

test("segments below the lowest trainable one get no backward and send no gradient", () => {
  const shape = { segments: line(4), microBatches: 3, policy: "1f1b", needsBackward: (s: number) => s >= 2 } as const;
  const lists = buildSchedule(shape);
  const kinds = (rank: number) => new Set(lists[rank]!.map((op) => op.kind));
  assert.deepEqual(kinds(0), new Set(["forward", "send-forward"]));
  assert.deepEqual(kinds(1), new Set(["recv-forward", "forward", "send-forward"]));
  assert.ok(!kinds(2).has("send-backward"));
  assert.ok(kinds(3).has("send-backward"));
});

test("a frozen front does not run ahead of what learns behind it", () => {
  const shape = { segments: line(3), microBatches: 20, policy: "1f1b", needsBackward: (s: number) => s >= 2 } as const;
  const list = buildSchedule(shape)[2]!;
  const behind = (upTo: number) => list.slice(0, upTo).filter((op: Instruction) => op.kind === "recv-forward").length;
  for (const [index, op] of list.entries()) {
    if (op.kind === "backward") assert.ok(behind(index) <= op.microBatch + 3);
  }
});

test("evaluation runs forward only and fills the pipeline under every policy", () => {
  fc.assert(
    fc.property(equalStages, policy, ({ p, m }, name) => {
      const shape = { segments: line(p), microBatches: m, policy: name, needsBackward: () => false } as const;
      const lists = buildSchedule(shape);
      assert.ok(lists.flat().every((op) => !op.kind.includes("backward")));
      assert.equal(run(shape).stepTime, p + m - 1);
    }),
    { numRuns: 300 },
  );
});

test("the same request gives the same lists", () => {
  const shape = { segments: roundRobin(3, 2), microBatches: 7, policy: "interleaved", needsBackward: always } as const;
  assert.deepEqual(buildSchedule(shape), buildSchedule(shape));
});

test("classical 1f1b on two ranks", () => {
  const lists = buildSchedule({ segments: line(2), microBatches: 3, policy: "1f1b", needsBackward: always });
  const text = lists.map((list) => list.map((op) => `${op.kind} ${op.microBatch}`));
  assert.deepEqual(text[0], [
    "forward 0", "send-forward 0", "forward 1", "send-forward 1",
    "recv-backward 0", "backward 0", "forward 2", "send-forward 2",
    "recv-backward 1", "backward 1", "recv-backward 2", "backward 2",
  ]); // biome-ignore format: one phase a line
  assert.deepEqual(text[1], [
    "recv-forward 0", "forward 0", "backward 0", "send-backward 0",
    "recv-forward 1", "forward 1", "backward 1", "send-backward 1",
    "recv-forward 2", "forward 2", "backward 2", "send-backward 2",
  ]); // biome-ignore format: one phase a line
});

test("requests that make no schedule are refused", () => {
  const good = { segments: line(3), microBatches: 2, policy: "1f1b", needsBackward: always } as const;
  assert.throws(() => buildSchedule({ ...good, segments: [] }), { code: "PL_INTERNAL" });
  assert.throws(() => buildSchedule({ ...good, microBatches: 0 }), { code: "PL_INTERNAL" });
  assert.throws(() => buildSchedule({ ...good, needsBackward: (s) => s !== 1 }), { code: "PL_INTERNAL" });
});
