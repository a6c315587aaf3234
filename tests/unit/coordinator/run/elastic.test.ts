import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { bytesOf } from "../../../../src/common/bytes.ts";
import { PipeloraError } from "../../../../src/common/errors.ts";
import { KnownRates } from "../../../../src/coordinator/assembly/known-rates.ts";
import { everyMember } from "../../../../src/coordinator/cluster/membership.ts";
import { Returning } from "../../../../src/coordinator/cluster/returning.ts";
import { AdapterRun, type HeldState } from "../../../../src/coordinator/run/adapter-run.ts";
import { initialState, type TrainerState } from "../../../../src/coordinator/run/checkpoints/trainer-state.ts";
import { BoundaryStates } from "../../../../src/coordinator/run/elastic/boundary-states.ts";
import { Changes } from "../../../../src/coordinator/run/elastic/changes.ts";
import { restartAfter } from "../../../../src/coordinator/run/restart.ts";
import { linkKey, type MeasuredDevice } from "../../../../src/plan/request.ts";
import type { BoundaryState__Output } from "../../../../src/rpc/generated/pipelora/v1/BoundaryState.ts";
import { STATE_PARTS } from "../../../../src/rpc/state-parts.ts";
import type { WorkerConnection } from "../../../../src/rpc/worker-connection.ts";

const worker = (node: string, pid: number) => ({ hello: { node, pid } }) as WorkerConnection;

test("a boundary is held once all of its values are there, and only then; late and foreign ones change nothing", () => {
  fc.assert(
    fc.property(
      fc.array(fc.nat({ max: 3 }), { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 0, max: 40 }),
      fc.infiniteStream(fc.nat({ max: 1000 })),
      (matrices, told, order) => {
        const held = new Map<number, HeldState>();
        const counts = matrices.map((count) => count + 1);
        const states = new BoundaryStates(
          counts.map((count, number) => ({
            adapter: { hold: (state: HeldState) => void held.set(number, state) },
            matrices: count,
          })),
        );
        const trainers = counts.map((_, number): TrainerState => ({ ...initialState(), globalStep: 10 + number }));
        const message = (round: number, adapter: number, matrix: number, part: string): BoundaryState__Output => ({
          ...{ round, adapter },
          tensors: [{ name: `m${matrix}`, part, values: Buffer.from(bytesOf(Float32Array.of(round, matrix))) }],
        });
        const all = counts.flatMap((count, adapter) =>
          Array.from({ length: count }, (_, matrix) => STATE_PARTS.map((part) => ({ adapter, matrix, part }))).flat(),
        );
        assert.ok(states.wanted);
        states.begin(7, new Map(trainers.entries()));
        // The step goes on meanwhile.
        for (const trainer of trainers) trainer.globalStep += 1;
        const shuffled = all
          .map((one) => ({ one, key: order.next().value as number }))
          .sort((a, b) => a.key - b.key)
          .map(({ one }) => one);
        for (const { adapter, matrix, part } of shuffled.slice(0, told)) {
          states.take(message(6, adapter, matrix, part));
          states.take(message(7, adapter, matrix, part));
        }
        for (const [adapter, count] of counts.entries()) {
          const own = shuffled.slice(0, told).filter((one) => one.adapter === adapter).length;
          const whole = own === count * STATE_PARTS.length;
          assert.equal(held.has(adapter), whole);
          if (whole) {
            const { state, values } = held.get(adapter)!;
            assert.equal(state.globalStep, 10 + adapter);
            assert.equal(values.length, own);
            assert.ok(values.every((value) => value.values[0] === 7));
          }
        }
        assert.equal(states.wanted, told >= all.length);
      },
    ),
    { numRuns: 300 },
  );
});

test("what is held is never replaced by an earlier step's, and what goes on from it does not change it", async () => {
  const run = new AdapterRun(null, {} as never);
  const at = (globalStep: number): HeldState => ({ state: { ...initialState(), globalStep }, values: [] });
  run.hold(at(5));
  run.hold(at(7));
  run.hold(at(6));
  const { state } = await run.start();
  assert.equal(state.globalStep, 7);
  state.globalStep = 9;
  state.logHistory.push({ step: 9 });
  const again = await run.start();
  assert.deepEqual([again.state.globalStep, again.state.logHistory], [7, []]);
});

test("an elastic run takes every device of whole nodes, and of processes that stand alone each", () => {
  const device = fc.record({
    node: fc.constantFrom("a", "b", "c", "d10", "d9"),
    localIndex: fc.nat({ max: 3 }),
    nodeDevices: fc.constant(2),
  });
  const joined = fc.uniqueArray(device, { selector: ({ node, localIndex }) => `${node} ${localIndex}`, maxLength: 12 });
  fc.assert(
    fc.property(
      joined,
      fc.option(fc.constant<readonly string[]>(["a", "d9"])),
      fc.boolean(),
      (present, names, parts) => {
        const chosen = everyMember(present, { names, parts });
        const countOf = (node: string) => present.filter((one) => one.node === node).length;
        for (const one of present) {
          const expected = (names?.includes(one.node) ?? true) && (parts || countOf(one.node) >= one.nodeDevices);
          assert.equal(chosen.includes(one), expected);
        }
        const order = chosen.map(
          ({ node, localIndex }) => ["a", "b", "c", "d9", "d10"].indexOf(node) * 10 + localIndex,
        );
        assert.deepEqual(
          order,
          [...order].sort((a, b) => a - b),
        );
      },
    ),
  );
});

test("a run waits for the workers that it told to join again, until each is back or gone", () => {
  const returning = new Returning();
  returning.expect([worker("a", 1), worker("a", 2), worker("b", 1)]);
  returning.gone({ node: "a", pid: 1 });
  returning.gone({ node: "c", pid: 1 });
  assert.deepEqual([returning.none, returning.pids], [false, [2, 1]]);
  returning.gone({ node: "b", pid: 1 });
  returning.gone({ node: "a", pid: 2 });
  assert.ok(returning.none);
});

test("what was measured of workers holds for those that go on, at whatever rank", () => {
  const device = (update: number): MeasuredDevice => ({ blockLayer: 1, block: [], head: [], update });
  const rate = (latency: number) => ({ bytesPerSecond: 1, latency, compute: 0 });
  const members = [worker("a", 1), worker("a", 2), worker("b", 3)];
  const known = new KnownRates();
  assert.equal(known.of(members), null);
  known.add(members, {
    measured: new Map([0, 1, 2].map((rank) => [rank, device(rank)])),
    links: new Map([
      [linkKey(0, 1), rate(1)],
      [linkKey("a", "a"), rate(1)],
      [linkKey(1, 2), rate(2)],
      [linkKey("a", "b"), rate(2)],
    ]),
    crowded: new Map([["a", 1]]),
  });
  const left = known.of([members[1]!, members[2]!])!;
  assert.deepEqual([...left.measured.values()], [device(1), device(2)]);
  assert.deepEqual(left.links.get(linkKey(0, 1)), rate(2));
  assert.deepEqual(left.links.get(linkKey("a", "b")), rate(2));
  // No link between these two was measured: that of their nodes holds.
  assert.equal(known.of([members[0]!, members[2]!])!.links.has(linkKey(0, 1)), false);
  assert.equal(known.of([...members, worker("b", 4)]), null);
});

test("changes count against max_restarts only where no new step was made and nobody was told to leave", () => {
  const lost = { name: "failed", during: "stepping", error: new PipeloraError("PL_WORKER_LOST", "rank 1") } as const;
  const standing = (free: boolean, left: number) => ({ left, stopping: false, elastic: { free, fitted: true } });
  assert.equal(restartAfter(lost, standing(true, 0)).counts, false);
  assert.equal(restartAfter(lost, standing(false, 1)).counts, true);
  assert.throws(() => restartAfter(lost, standing(false, 0)), { code: "PL_WORKER_LOST" });
  assert.throws(() => restartAfter(lost, { ...standing(true, 3), stopping: true }), { code: "PL_WORKER_LOST" });
  const infeasible = { ...lost, error: new PipeloraError("PL_PLACEMENT_INFEASIBLE", "too small") };
  assert.equal(restartAfter(infeasible, standing(false, 0)).counts, false);
  const first = { left: 3, stopping: false, elastic: { free: false, fitted: false } };
  assert.throws(() => restartAfter(infeasible, first), { code: "PL_PLACEMENT_INFEASIBLE" });
  assert.throws(() => restartAfter(infeasible, { ...first, elastic: null }), { code: "PL_PLACEMENT_INFEASIBLE" });
});

test("a change is over with the first step that none had made, and tells what it cost", () => {
  const changes = new Changes();
  const made = (step: number) => changes.made(null, step, { workers: 3, stepMs: 0 });
  assert.equal(made(1), null, "the run's beginning is no change");
  assert.equal(made(2), null);
  assert.ok(changes.gotOn);
  changes.begin();
  assert.ok(!changes.gotOn);
  changes.loaded(
    [
      { takenOver: 2, read: 1, readBytes: 1024 },
      { takenOver: 1, read: 0, readBytes: 0 },
    ].map((loaded) => ({ memory: null, seconds: 1, ...loaded })),
  );
  assert.equal(made(2), null, "that step was made before");
  assert.ok(!changes.gotOn);
  assert.match(
    made(3)!,
    /^the change took [\d.]+ s: 3 workers go on with step 3; 3 layers were taken over, 1 read \(1\.0 KiB\)$/,
  );
  assert.ok(changes.gotOn && changes.costMs >= 0);
  changes.tooFew(2);
  assert.equal(changes.atLeast, 3);
});
