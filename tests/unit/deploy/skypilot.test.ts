import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import type { AnySchemaObject } from "ajv/dist/2020.js";
import { parse } from "yaml";
import { parseCoordinator, parseWorker } from "../../../src/cli/parse.ts";
import { PipeloraError } from "../../../src/common/errors.ts";
import { exitCodeOf } from "../../../src/common/exit-codes.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { readJson, temporaryFolder } from "../../support/processes/cli.ts";
import { check, compiled } from "./schema.ts";

/** The task against SkyPilot's published schemas, and its `run` under SkyPilot's variables with programs that only note their arguments. */

interface Task {
  readonly resources: { readonly job_recovery: { readonly recover_on_exit_codes: readonly number[] } };
  readonly file_mounts: Readonly<Record<string, unknown>>;
  readonly setup: string;
  readonly run: string;
}

const task = parse(readFileSync(join(PACKAGE_ROOT, "deploy", "skypilot", "pipelora.yaml"), "utf8")) as Task;
const schemas = readJson<Record<"task" | "resources" | "storage", AnySchemaObject>>(
  join(PACKAGE_ROOT, "tests", "fixtures", "skypilot", "schemas.json"),
);

test("skypilot: the task, its resources and its mounts are what the schemas allow", () => {
  check(compiled(schemas.task), task);
  check(compiled(schemas.resources), task.resources);
  for (const mount of Object.values(task.file_mounts))
    if (typeof mount === "object") check(compiled(schemas.storage), mount);
  assert.throws(() => check(compiled(schemas.resources), { ...task.resources, accelerator: "A100:4" }), /accelerator/);
  assert.throws(() => check(compiled(schemas.task), { ...task, num_nodes: "2" }), /num_nodes/);
});

test("skypilot: what is worth another try is tried again, a mistake is not", () => {
  const codes = task.resources.job_recovery.recover_on_exit_codes;
  assert.ok(codes.includes(exitCodeOf(new PipeloraError("PL_WORKER_LOST", ""))));
  assert.ok(!codes.includes(exitCodeOf(new PipeloraError("PL_CONFIG_INVALID", ""))));
});

interface Played {
  readonly code: number | null;
  readonly coordinator: string[];
  readonly worker: string[];
}

/** Runs a node's task; `ends`: what the programs do in place of their work, in shell. */
async function play(
  t: TestContext,
  rank: number,
  ends: Readonly<Record<"coordinator" | "worker", string>>,
): Promise<Played> {
  const home = temporaryFolder(t);
  const bin = join(home, "pipelora", "node_modules", ".bin");
  mkdirSync(bin, { recursive: true });
  for (const program of ["coordinator", "worker"] as const) {
    const path = join(bin, program);
    writeFileSync(path, `#!/bin/bash\nprintf '%s\\n' "$@" > ~/${program}.args\n${ends[program]}\n`);
    chmodSync(path, 0o755);
  }
  writeFileSync(join(home, "run.yaml"), "model: m\ndataset: d\noutput_dir: /output/o\n");
  const child = spawn("bash", ["-c", task.run], {
    stdio: "ignore",
    detached: true,
    env: {
      PATH: process.env["PATH"],
      HOME: home,
      SKYPILOT_NODE_RANK: String(rank),
      SKYPILOT_NUM_NODES: "2",
      SKYPILOT_NODE_IPS: "10.0.0.1\n10.0.0.2",
    },
  });
  t.after(() => {
    try {
      process.kill(-child.pid!, "SIGKILL");
    } catch {}
  });
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  const args = (program: string) => {
    const file = join(home, `${program}.args`);
    return existsSync(file) ? readFileSync(file, "utf8").trim().split("\n") : [];
  };
  const [coordinator, worker] = [args("coordinator"), args("worker")];
  if (coordinator.length > 0) {
    const { config } = (await parseCoordinator(coordinator))!;
    assert.deepEqual([config.nnodes, config.resume_from_checkpoint, config.listen], [2, "auto", "0.0.0.0:7443"]);
    // SkyPilot mounts what the programs read and write.
    for (const path of [config.tls_ca!, config.join_token_file!]) assert.ok(path.startsWith(join(home, "certs")));
    assert.ok("/output" in task.file_mounts && "~/certs" in task.file_mounts && "~/run.yaml" in task.file_mounts);
  }
  const { config } = (await parseWorker(worker))!;
  assert.deepEqual(
    [config.coordinator, config.node_name, config.advertise],
    ["10.0.0.1:7443", `node-${rank}`, `10.0.0.${rank + 1}`],
  );
  return { code, coordinator, worker };
}

const UNTIL_STOPPED = "trap 'exit 143' TERM; while true; do sleep 0.05; done";

test("skypilot: the first node runs both programs, any other a worker", async (t) => {
  const both = await play(t, 0, { coordinator: "sleep 0.3", worker: "sleep 0.1" });
  assert.deepEqual([both.code, both.coordinator.length > 0], [0, true]);
  const one = await play(t, 1, { coordinator: "", worker: "exit 75" });
  assert.deepEqual([one.code, one.coordinator.length], [75, 0]);
});

test("skypilot: a task ends with the code of the program that failed first, and ends the other", async (t) => {
  const code = async (coordinator: string, worker: string) => (await play(t, 0, { coordinator, worker })).code;
  assert.equal(await code("sleep 0.3; exit 1", UNTIL_STOPPED), 1);
  assert.equal(await code(UNTIL_STOPPED, "sleep 0.2; exit 137"), 137);
  assert.equal(await code("sleep 0.3; exit 75", "exit 0"), 75);
  assert.equal(await code("exit 0", "sleep 0.2"), 0);
});
