import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { parseCoordinator, parseWorker } from "../../../src/cli/parse.ts";
import { exitCodeOfSignal } from "../../../src/common/exit-codes.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/**
 * The script under Slurm's variables, with programs that only note their arguments and do as told: what it starts, and what it makes of
 * how that ends. Slurm itself is played by an `srun` of two nodes that are this machine.
 */

const script = join(PACKAGE_ROOT, "deploy", "slurm", "pipelora.sbatch");
const FILES = ["ca.crt", "tls.crt", "tls.key", "token"];

interface Ends {
  /** What a program does in place of its work, in shell. */
  readonly coordinator: string;
  readonly worker: string;
  readonly restarts?: number;
}

interface Played {
  readonly code: number | null;
  readonly requeued: boolean;
  readonly coordinator: string[];
  readonly workers: string[][];
}

async function play(t: TestContext, ends: Ends, act?: (pid: number) => void): Promise<Played> {
  const folder = temporaryFolder(t);
  const tool = (name: string, body: string) => {
    writeFileSync(join(folder, "bin", name), `#!/bin/bash\n${body}\n`);
    chmodSync(join(folder, "bin", name), 0o755);
  };
  mkdirSync(join(folder, "bin"));
  mkdirSync(join(folder, "certs"));
  for (const name of FILES) writeFileSync(join(folder, "certs", name), "");
  writeFileSync(
    join(folder, "run.yaml"),
    "model: /shared/model\ndataset: /shared/data.jsonl\noutput_dir: /shared/output\n",
  );
  const note = (file: string) => `for arg in "\${@:2}"; do echo "$arg"; done > ${folder}/${file}`;
  tool(
    "node",
    `case $1 in
      *coordinator.js) ${note("coordinator.args")}; touch ${folder}/started; ${ends.coordinator} ;;
      *worker.js) ${note("worker-$SLURM_NODEID.args")}; ${ends.worker} ;;
    esac`,
  );
  tool(
    "srun",
    `while [[ $1 == --* ]]; do shift; done
     for id in 0 1; do SLURM_NODEID=$id SLURMD_NODENAME=host$id "$@" & done
     trap 'kill -TERM $(jobs -p) 2>/dev/null' TERM
     worst=0
     for job in $(jobs -p); do
       while wait $job; status=$?; kill -0 $job 2>/dev/null; do :; done
       (( status > worst )) && worst=$status
     done
     exit $worst`,
  );
  tool("scontrol", `[[ $1 == requeue && $2 == 4711 ]] && touch ${folder}/requeued`);
  // The wait for Slurm to end a requeued job.
  tool("sleep", `[[ $1 == 60 ]] || exec /usr/bin/sleep "$@"`);
  const child = spawn("bash", [script, join(folder, "run.yaml")], {
    stdio: "ignore",
    detached: true,
    env: {
      PATH: `${join(folder, "bin")}:${process.env["PATH"]}`,
      PIPELORA_CERTS: join(folder, "certs"),
      SLURM_SUBMIT_DIR: folder,
      SLURM_JOB_ID: "4711",
      SLURM_JOB_NUM_NODES: "2",
      SLURMD_NODENAME: "host0",
      SLURM_RESTART_COUNT: String(ends.restarts ?? 0),
    },
  });
  // Whatever a failed test leaves of its group.
  t.after(() => {
    try {
      process.kill(-child.pid!, "SIGKILL");
    } catch {}
  });
  const closed = new Promise<number | null>((resolve) => child.on("close", (code) => resolve(code)));
  if (act !== undefined) {
    while (!existsSync(join(folder, "started"))) await new Promise((resolve) => setTimeout(resolve, 20));
    act(child.pid!);
  }
  const code = await closed;
  /** Empty for a program that was not started, or stopped before it could note them. */
  const args = (file: string) =>
    existsSync(join(folder, file)) ? readFileSync(join(folder, file), "utf8").trim().split("\n") : [];
  return {
    code,
    requeued: existsSync(join(folder, "requeued")),
    coordinator: args("coordinator.args"),
    workers: [args("worker-0.args"), args("worker-1.args")],
  };
}

/** Ends when it is told to, as the programs do. */
const UNTIL_STOPPED = "trap 'exit 143' TERM; while true; do sleep 0.05; done";

test("sbatch: the programs take the command lines, and meet", async (t) => {
  const folder = temporaryFolder(t);
  const played = await play(t, { coordinator: "sleep 0.5", worker: "sleep 0.2" });
  assert.deepEqual([played.code, played.requeued], [0, false]);
  // The run's file is gone with the job's folder; its keys are the user's.
  const run = join(folder, "run.yaml");
  writeFileSync(run, "model: m\ndataset: d\noutput_dir: o\n");
  const args = played.coordinator.map((arg) => (arg.startsWith("--config=") ? `--config=${run}` : arg));
  const { config: coordinator } = (await parseCoordinator(args))!;
  assert.equal(coordinator.nnodes, 2);
  assert.equal(coordinator.resume_from_checkpoint, "auto");
  for (const [index, workerArgs] of played.workers.entries()) {
    const { config: worker } = (await parseWorker(workerArgs))!;
    assert.equal(worker.coordinator, `host0:${coordinator.listen!.split(":").at(-1)}`);
    assert.deepEqual([worker.node_name, worker.advertise], [`node-${index}`, `host${index}`]);
    for (const key of ["tls_ca", "tls_cert", "tls_key", "join_token_file"] as const) {
      assert.ok(FILES.includes(worker[key]!.split("/").at(-1)!));
      assert.equal(worker[key], coordinator[key]);
    }
  }
});

test("sbatch: told to stop, it lets the coordinator save, then requeues, however often", async (t) => {
  const ends = { coordinator: UNTIL_STOPPED, worker: UNTIL_STOPPED, restarts: 100 };
  const { code, requeued } = await play(t, ends, (pid) => process.kill(pid, "SIGTERM"));
  assert.deepEqual([code, requeued], [exitCodeOfSignal("SIGTERM"), true]);
});

test("sbatch: a mistake ends the job, bad luck requeues it a few times", async (t) => {
  const outcome = async (ends: Ends) => {
    const { code, requeued } = await play(t, ends);
    return [code, requeued];
  };
  assert.deepEqual(await outcome({ coordinator: "exit 1", worker: UNTIL_STOPPED }), [1, false]);
  assert.deepEqual(await outcome({ coordinator: "exit 75", worker: UNTIL_STOPPED }), [75, true]);
  assert.deepEqual(await outcome({ coordinator: "exit 75", worker: UNTIL_STOPPED, restarts: 6 }), [75, false]);
  assert.deepEqual(await outcome({ coordinator: UNTIL_STOPPED, worker: "sleep 0.3; exit 137" }), [137, true]);
  assert.deepEqual(await outcome({ coordinator: UNTIL_STOPPED, worker: "sleep 0.3; exit 1" }), [1, false]);
});
