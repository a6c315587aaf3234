import assert from "node:assert/strict";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { Pipeline } from "../../../src/coordinator/cluster/pipeline.ts";
import type { WorkerConnection } from "../../../src/rpc/worker-connection.ts";

const ROLES = [{ ranks: [0, 1, 2], first: 0, heads: [2], owners: new Map(), twins: new Map() }];
const UPDATE = { step: 1 };

/** Ranks that answer a request as they are told: a reply, an error, or never. */
function pipeline(answers: readonly (Error | "reply" | "never")[], failure: Promise<never> = new Promise(() => {})) {
  const members = answers.map((answer) => ({
    request: () =>
      answer === "never"
        ? new Promise(() => {})
        : answer === "reply"
          ? Promise.resolve({ done: {} })
          : Promise.reject(answer),
  }));
  return new Pipeline(members as unknown as WorkerConnection[], ROLES, failure);
}

const link = new PipeloraError("PL_LINK_FAILED", "the link from rank 0 to rank 1 broke");
const memory = new PipeloraError("PL_OUT_OF_MEMORY", "the arena is full");

test("a rank's own failure ends a call though its peers wait for it", async () => {
  await assert.rejects(pipeline(["never", memory, "never"]).adapter(0).applyUpdate(UPDATE), {
    code: "PL_OUT_OF_MEMORY",
  });
});

test("a broken link gives way to its cause, and counts where no other comes", async () => {
  const lost = new PipeloraError("PL_WORKER_LOST", "rank 1 was lost");
  const later = new Promise<never>((_, reject) => setTimeout(() => reject(lost), 50));
  await assert.rejects(pipeline([link, "never", "never"], later).adapter(0).applyUpdate(UPDATE), {
    code: "PL_WORKER_LOST",
  });
  await assert.rejects(pipeline([link, memory, "reply"]).adapter(0).applyUpdate(UPDATE), { code: "PL_OUT_OF_MEMORY" });
  await assert.rejects(pipeline([link, "never", "reply"]).adapter(0).applyUpdate(UPDATE), { code: "PL_LINK_FAILED" });
});

test("all well: every rank has answered", async () => {
  await pipeline(["reply", "reply", "reply"]).adapter(0).applyUpdate(UPDATE);
});

test("a step asks the first rank alone; a failure that another tells unasked ends it, or the call after it", async () => {
  const asked: number[] = [];
  const silent = (rank: number) => ({
    onFailure: null as ((error: unknown) => void) | null,
    heard: () => {},
    request: () => {
      asked.push(rank);
      return new Promise<never>(() => {});
    },
  });
  const members = [0, 1, 2].map(silent);
  const whole = new Pipeline(members as unknown as WorkerConnection[], ROLES, new Promise(() => {}));
  const none = new Int32Array(0);
  const batches = { batchRows: none, rowTokens: none, rowIds: none, tokens: none, targets: none };
  const step = whole.runRound({ round: 1, trace: false, tellsState: false }, [
    { adapter: 0, step: 1, batches: [{ ...batches, weights: new Float32Array(0) }] },
  ]);
  assert.deepEqual(asked, [0]);
  members[2]!.onFailure!(link);
  members[1]!.onFailure!(memory);
  await assert.rejects(step, { code: "PL_OUT_OF_MEMORY" });
  const later = new Pipeline(members as unknown as WorkerConnection[], ROLES, new Promise(() => {}));
  members[1]!.onFailure!(memory);
  await assert.rejects(later.adapter(0).applyUpdate(UPDATE), { code: "PL_OUT_OF_MEMORY" });
});
