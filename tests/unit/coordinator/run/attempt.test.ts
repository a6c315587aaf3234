import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { deferred } from "../../../../src/common/deferred.ts";
import { ERROR_CATALOGUE, type ErrorCode, PipeloraError } from "../../../../src/common/errors.ts";
import { Interrupted } from "../../../../src/common/exit-codes.ts";
import {
  type Active,
  Attempt,
  type Planned,
  type Prepared,
  type Stages,
  type Stepping,
} from "../../../../src/coordinator/run/attempt.ts";
import { restartAfter } from "../../../../src/coordinator/run/restart.ts";

const ORDER = ["gathering", "planned", "prepared", "stepping"] as const;
const NEVER = new Promise<never>(() => {});
const planned = {} as Planned["planned"];
const pipeline = {} as Prepared["pipeline"];
const progress = [{ globalStep: 3 }] as unknown as Stepping["progress"];

/** Stages that go through, but for those given. Notes what each was handed. */
function stages(given: Partial<Stages> = {}): { readonly made: Stages; readonly seen: Active[] } {
  const seen: Active[] = [];
  const through: Stages = {
    gathering: async () => ({ name: "planned", planned, cacheRows: 0 }),
    planned: async (state) => ({ ...state, name: "prepared", pipeline }),
    prepared: async (state) => ({ ...state, name: "stepping", progress }),
    stepping: async () => ({ name: "done" }),
    ...given,
  };
  const noted = Object.fromEntries(
    ORDER.map((name) => [
      name,
      (state: never) => {
        seen.push(state);
        return through[name](state);
      },
    ]),
  );
  return { made: noted as unknown as Stages, seen };
}

test("an attempt goes through every state in order and hands on what each owns", async () => {
  const { made, seen } = stages();
  const attempt = new Attempt(made, NEVER);
  assert.equal(attempt.state.name, "gathering");
  assert.deepEqual(await attempt.run(), { name: "done" });
  assert.deepEqual(
    seen.map(({ name }) => name),
    ORDER,
  );
  assert.deepEqual(seen.at(-1), { name: "stepping", planned, cacheRows: 0, pipeline, progress });
  assert.deepEqual(attempt.state, { name: "done" });
});

test("a worker that leaves ends the attempt without counting", async () => {
  const { made } = stages({ stepping: async () => ({ name: "regroup", reason: "rank 1 leaves" }) });
  const attempt = new Attempt(made, NEVER);
  const ended = await attempt.run();
  assert.deepEqual(ended, { name: "regroup", reason: "rank 1 leaves" });
  assert.ok(ended.name === "regroup");
  const restart = restartAfter(ended, { left: 0, stopping: false, elastic: null });
  assert.equal(restart.counts, false);
});

for (const where of ORDER) {
  test(`what fails while the attempt is ${where} is told once, with its state, and nothing later runs`, async () => {
    const lost = new PipeloraError("PL_WORKER_LOST", "rank 0 was lost");
    const { made, seen } = stages({ [where]: () => Promise.reject(lost) });
    const attempt = new Attempt(made, NEVER);
    assert.deepEqual(await attempt.run(), { name: "failed", during: where, error: lost });
    assert.equal(seen.at(-1)!.name, where);
    assert.deepEqual(await attempt.run(), attempt.state);
    assert.equal(seen.length, ORDER.indexOf(where) + 1);
  });
}

for (const where of ORDER.slice(0, 3)) {
  test(`a worker lost while the attempt is ${where} ends it though its work hangs; what hangs is waited for`, async () => {
    const failure = deferred<never>();
    const entered = deferred<void>();
    const work = deferred<never>();
    const hang = () => {
      entered.resolve();
      return work.promise;
    };
    const attempt = new Attempt(stages({ [where]: hang }).made, failure.promise);
    const running = attempt.run();
    await entered.promise;
    assert.equal(attempt.state.name, where);
    failure.reject(new PipeloraError("PL_WORKER_LOST", "rank 1 was lost"));
    const ended = await running;
    assert.ok(ended.name === "failed");
    assert.equal(ended.during, where);
    assert.equal(restartAfter(ended, { left: 1, stopping: false, elastic: null }).counts, true);
    let settled = false;
    const settling = attempt.settled().then(() => {
      settled = true;
    });
    await new Promise(setImmediate);
    assert.equal(settled, false);
    work.reject(new Error("its requests were answered at last"));
    await settling;
  });
}

test("stepping decides for itself: it may have a step to save", async () => {
  const failure = deferred<never>();
  const done = deferred<void>();
  const { made } = stages({
    stepping: async () => {
      await done.promise;
      return { name: "done" };
    },
  });
  const attempt = new Attempt(made, failure.promise);
  const running = attempt.run();
  while (attempt.state.name !== "stepping") await new Promise(setImmediate);
  failure.reject(new Interrupted("SIGTERM", "stop"));
  await new Promise(setImmediate);
  done.resolve();
  assert.deepEqual(await running, { name: "done" });
});

test("the restart rule is the same in every state: only loss and links, while any restart is left and nobody stops the run", () => {
  const codes = Object.keys(ERROR_CATALOGUE) as ErrorCode[];
  fc.assert(
    fc.property(
      fc.constantFrom(...ORDER),
      fc.constantFrom(...codes),
      fc.integer({ min: -1, max: 3 }),
      fc.boolean(),
      (during, code, left, stopping) => {
        const error = new PipeloraError(code, "what happened");
        const rule = () => restartAfter({ name: "failed", during, error }, { left, stopping, elastic: null });
        const again = (code === "PL_WORKER_LOST" || code === "PL_LINK_FAILED") && left > 0 && !stopping;
        if (again) assert.deepEqual(rule().counts, true);
        else assert.throws(rule, error);
      },
    ),
    { numRuns: 500 },
  );
});
