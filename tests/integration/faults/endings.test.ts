import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { outcome, startCoordinator, startWorker, temporaryFolder } from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen2-gqa-tied");
const LAST_STEP = 4;
const short = { ...golden, args: { ...golden.args, max_steps: LAST_STEP, save_steps: 2 } };

/** Milliseconds after the last step began to be told of; the run saves and says farewell in that time. */
const MOMENTS = [0, 15, 40, 90, 180];

for (const victim of ["the node's parent", "a rank"] as const) {
  test(`${victim} killed as the run finishes: a coded end of all, and no process stays`, async (t) => {
    for (const moment of MOMENTS) {
      const address = `127.0.0.1:${await freePort()}`;
      const flags = ["--coordinator", address, "--devices", "cpu,cpu", "--threads", "1", "--join-timeout", "5"];
      const node = startWorker(flags);
      t.after(() => node.kill("SIGKILL"));
      const nodeEnd = outcome(node);
      const head = goldenFlags(short, join(temporaryFolder(t), "run"), "--listen", address, "--nnodes", "1");
      const child = startCoordinator([...head, "--max-restarts", "0"]);
      let ranks: number[] = [];
      const { code, stderr } = await outcome(child, (text) => {
        if (ranks.length > 0 || !text.includes(`"step":${LAST_STEP},`)) return;
        ranks = childrenOf(node.pid!);
        setTimeout(() => {
          try {
            process.kill(victim === "a rank" ? ranks[1]! : node.pid!, "SIGKILL");
          } catch {
            // It was through already.
          }
        }, moment);
      });
      assert.equal(ranks.length, 2, `${moment} ms: ${stderr}`);
      assert.ok(code === 0 || code === 75, `${moment} ms: ${code} ${stderr}`);
      const end = await nodeEnd;
      for (const [who, text] of [
        ["coordinator", stderr],
        ["node", end.stderr],
      ] as const) {
        assert.doesNotMatch(text, /^\s+at .*\.js:\d+|PL_INTERNAL|node:internal/m, `${who} after ${moment} ms`);
      }
      const deadline = Date.now() + 10_000;
      while (ranks.some(isAlive) && Date.now() < deadline) await sleep(50);
      assert.deepEqual(ranks.filter(isAlive), [], `${moment} ms`);
    }
  });
}
