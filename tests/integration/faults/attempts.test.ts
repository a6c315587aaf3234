import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../../support/processes/cli.ts";
import { childrenOf } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen2-gqa-tied");
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

/** Moments of an attempt, by what the coordinator says when they begin. */
const MOMENTS = [
  { state: "planned", says: '"event":"plan"', victim: 0 },
  { state: "planned, near its end", says: '"event":"plan"', victim: 1 },
  { state: "prepared", says: "is loaded after", victim: 1 },
  { state: "stepping", says: '"step":1,', victim: 0 },
] as const;

test("a worker lost in any state of the attempt costs one restart, and no bit", async (t) => {
  const root = temporaryFolder(t);
  assert.equal((await coordinator(goldenFlags(golden, join(root, "calm"), "--workers", "2"))).code, 0);
  for (const [index, { state, says, victim }] of MOMENTS.entries()) {
    const output = join(root, `run-${index}`);
    const child = startCoordinator(goldenFlags(golden, output, "--workers", "2", "--log-level", "debug"));
    let heard = "";
    let hit = false;
    const listen = (chunk: Buffer) => {
      heard += chunk.toString();
      if (hit || !heard.includes(says)) return;
      hit = true;
      process.kill(childrenOf(child.pid!)[victim]!, "SIGKILL");
    };
    child.stdout.on("data", listen);
    child.stderr.on("data", listen);
    const { code, stderr } = await outcome(child);
    assert.ok(hit, state);
    assert.equal(code, 0, `${state}: ${stderr}`);
    assert.match(stderr, /was lost.*going on from the last checkpoint \(restart 1 of 3\)/s, state);
    assert.doesNotMatch(stderr, /restart 2 of/, state);
    assert.deepEqual(adapter(output), adapter(join(root, "calm")), state);
  }
});
