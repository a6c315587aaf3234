import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import {
  coordinator,
  events,
  outcome,
  startCoordinator,
  startWorker,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";
import { RUN_RECORDS } from "../../support/processes/run-records.ts";

const golden = goldenRun("qwen2-gqa-tied");
const everyStep = { ...golden, args: { ...golden.args, save_steps: 1 } };
/** What a run saves: all but what the coordinator alone writes. */
const saved = (dir: string) =>
  readdirSync(dir)
    .filter((name) => !RUN_RECORDS.includes(name))
    .sort();
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));
const FAKETIME = `/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/faketime/libfaketime.so.1`;

interface Cast {
  readonly head: readonly string[];
  /** Flags of each node's worker, and its environment. */
  readonly nodes: Readonly<
    Record<string, { flags: readonly string[]; environment?: Readonly<Record<string, string>> }>
  >;
}

/** A coordinator and one worker a node, over loopback. */
async function play({ head, nodes }: Cast, onOutput?: (text: string, port: number) => void) {
  const port = await freePort();
  const names = Object.keys(nodes);
  const workers = names.map((name) => {
    const { flags, environment } = nodes[name]!;
    const at = ["--coordinator", `127.0.0.1:${port}`, "--node-name", name, "--devices", "cpu", "--threads", "1"];
    return outcome(startWorker([...at, ...flags], environment));
  });
  const listen = ["--listen", `127.0.0.1:${port}`, "--nnodes", String(names.length)];
  const run = await outcome(startCoordinator([...head, ...listen]), (text) => onOutput?.(text, port));
  return { ...run, workers: Object.fromEntries(names.map((name, index) => [name, workers[index]!])) };
}

test("preflight: another checkpoint on a node and a clock a day off are named before a weight is read", async (t) => {
  const root = temporaryFolder(t);
  const other = join(root, "other-model");
  cpSync(join(golden.folder, "model"), other, { recursive: true });
  const weights = join(other, "model.safetensors");
  const bytes = readFileSync(weights);
  // The same header and size, other weights.
  bytes.fill(1, bytes.length - 300_000);
  writeFileSync(weights, bytes);
  const clock = existsSync(FAKETIME)
    ? { LD_PRELOAD: FAKETIME, FAKETIME: "-1d", FAKETIME_DONT_FAKE_MONOTONIC: "1" }
    : null;
  if (clock === null) t.diagnostic("without libfaketime: the clock's part is left out");
  const result = await play({
    head: goldenFlags(golden, join(root, "run"), "--preflight-only"),
    nodes: {
      good: { flags: [] },
      wrong: { flags: ["--model", other] },
      late: { flags: [], ...(clock === null ? {} : { environment: clock }) },
    },
  });
  assert.equal(result.code, 1);
  assert.match(result.stderr, /PL_PREFLIGHT_FAILED/);
  assert.match(result.stderr, /node \\"wrong\\" holds another checkpoint/);
  if (clock !== null) assert.match(result.stderr, /clock of node \\"late\\" is 24\.0 h behind/);
  assert.doesNotMatch(result.stderr, /node \\"good\\"/);
  const [{ preflight }] = events(result.stdout, "preflight") as [{ preflight: { links: { latencyMs: number }[] } }];
  assert.equal(preflight.links.length, 2);
  for (const { latencyMs } of preflight.links) assert.ok(latencyMs > 0);
  for (const worker of Object.values(result.workers)) assert.equal((await worker).code, 0);
  assert.deepEqual(readdirSync(join(root, "run")), []);
});

test("a node that does not come in time is named; a node that comes after the run began waits, and may", async (t) => {
  const root = temporaryFolder(t);
  const port = await freePort();
  const here = outcome(
    startWorker(["--coordinator", `127.0.0.1:${port}`, "--node-name", "n1", "--devices", "cpu", "--join-timeout", "5"]),
  );
  const listen = ["--listen", `127.0.0.1:${port}`, "--nodes", "n1,n2", "--join-timeout", "5"];
  const { code, stderr } = await coordinator(goldenFlags(golden, join(root, "none"), ...listen));
  assert.equal(code, 75);
  assert.match(stderr, /PL_WORKER_MISSING.*missing: n2; joined: n1 \(1 of 1 devices\)/);
  // It waited for another coordinator, as long as it was told to.
  assert.equal((await here).code, 75);

  const long = { ...golden, args: { ...golden.args, num_train_epochs: 150, save_steps: 1000 } };
  let late: ReturnType<typeof outcome> | null = null;
  const run = await play({ head: goldenFlags(long, join(root, "run")), nodes: { n1: { flags: [] } } }, (text, at) => {
    if (late !== null || !text.includes('"event":"step"')) return;
    late = outcome(startWorker(["--coordinator", `127.0.0.1:${at}`, "--node-name", "n2", "--devices", "cpu"]));
  });
  assert.equal(run.code, 0, run.stderr);
  assert.match(run.stderr, /n2\/cpu .*came after the run began; it waits for the next attempt/);
  assert.equal((await late!).code, 0);
});

/** A file system of so many KiB, or null where none can be mounted. */
function smallDisk(t: TestContext, kib: number): string | null {
  const path = mkdtempSync(join(tmpdir(), "pipelora-disk-"));
  const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${kib}k`, "tmpfs", path]);
  t.after(() => {
    if (status === 0) spawnSync("umount", [path]);
    rmdirSync(path);
  });
  return status === 0 ? path : null;
}

for (const policy of ["warn", "fail"] as const) {
  test(`a full disk on one node (--save-failure ${policy}) fails that node's save by name, leaves nothing half written`, async (t) => {
    const root = temporaryFolder(t);
    // Room for some checkpoints, not for all.
    const disk = smallDisk(t, 1500);
    if (disk === null) return t.skip("no tmpfs can be mounted here");
    const head = join(root, "head");
    const result = await play({
      head: goldenFlags(everyStep, head, "--save-on-each-node", "--save-failure", policy),
      nodes: {
        roomy: { flags: ["--output-dir", join(root, "roomy")] },
        small: { flags: ["--output-dir", join(disk, "out")] },
      },
    });
    const whole = readdirSync(join(disk, "out"));
    assert.deepEqual(
      whole.filter((name) => name.startsWith(".")),
      [],
    );
    const complete = whole.filter((name) => name.startsWith("checkpoint-"));
    assert.ok(complete.length > 0);
    for (const name of complete) {
      assert.deepEqual(readdirSync(join(disk, "out", name)).sort(), readdirSync(join(head, name)).sort());
    }
    const failed = events(result.stdout, "save").filter(({ nodes }) => JSON.stringify(nodes).includes("ENOSPC"));
    if (policy === "fail") {
      assert.equal(result.code, 1);
      assert.match(result.stderr, /PL_OUTPUT_UNWRITABLE.*node \\"small\\" did not save checkpoint-\d+: .*ENOSPC/);
    } else {
      assert.equal(result.code, 0, result.stderr);
      assert.ok(failed.length > 0);
      assert.match(result.stderr, /node "small" did not save checkpoint-\d+: .*ENOSPC/);
      assert.deepEqual(adapter(join(root, "roomy")), adapter(head));
      assert.deepEqual(saved(join(root, "roomy")), saved(head));
    }
  });
}

test("a run resumes from the newest checkpoint that is whole on any node, says which, and ends with the same bits", async (t) => {
  const root = temporaryFolder(t);
  const head = join(root, "head");
  const nodes = {
    n1: { flags: ["--output-dir", join(root, "n1")] },
    n2: { flags: ["--output-dir", join(root, "n2")] },
  };
  const whole = await play({ head: goldenFlags(everyStep, head, "--save-on-each-node"), nodes });
  assert.equal(whole.code, 0, whole.stderr);
  const expected = adapter(head);
  const last = Math.max(...readdirSync(head).map((name) => Number(/^checkpoint-(\d+)$/.exec(name)?.[1] ?? 0)));
  // The coordinator's disk is new; n1 has one checkpoint less; the newest of n2 is torn.
  rmSync(head, { recursive: true });
  rmSync(join(root, "n1", `checkpoint-${last}`), { recursive: true });
  truncateSync(join(root, "n2", `checkpoint-${last}`, "optimizer.safetensors"), 1000);
  for (const dir of ["n1", "n2"]) rmSync(join(root, dir, "adapter_model.safetensors"));
  const refused = await play({ head: goldenFlags(everyStep, join(root, "other"), "--save-on-each-node"), nodes });
  assert.match(refused.stderr, /PL_OUTPUT_UNWRITABLE.*node \\"n[12]\\": .* holds checkpoint-\d+ of an earlier run/);
  const again = goldenFlags(everyStep, head, "--save-on-each-node", "--resume-from-checkpoint");
  const resumed = await play({ head: again, nodes });
  assert.equal(resumed.code, 0, resumed.stderr);
  const notes = events(resumed.stdout, "note").map(({ text }) => String(text));
  assert.ok(
    notes.some((text) => new RegExp(`resuming from checkpoint-${last - 1} of node "n[12]"`).test(text)),
    notes.join("\n"),
  );
  assert.ok(notes.includes(`resumed after step ${last - 1}`));
  for (const dir of ["head", "n1", "n2"]) assert.deepEqual(adapter(join(root, dir)), expected);
});

test("adapters of one run save on each node, each into its folder; what one node alone has is gone on from", async (t) => {
  const root = temporaryFolder(t);
  const head = join(root, "head");
  const file = join(root, "adapters.yaml");
  writeFileSync(
    file,
    JSON.stringify({ low: { learning_rate: 1e-3, max_steps: 4 }, "high.2": { seed: 5, max_steps: 3 } }),
  );
  const nodes = {
    n1: { flags: ["--output-dir", join(root, "n1")] },
    n2: { flags: ["--output-dir", join(root, "n2")] },
  };
  const flags = goldenFlags(everyStep, head, "--save-on-each-node", "--adapters", file);
  const nothing = await play({ head: [...flags, "--resume-from-checkpoint"], nodes });
  assert.equal(nothing.code, 1);
  assert.match(nothing.stderr, /PL_RESUME_INVALID.*no adapter of this run has a checkpoint, here or on any node/);
  const whole = await play({ head: flags, nodes });
  assert.equal(whole.code, 0, whole.stderr);
  const expected = ["low", "high.2"].map((name) => adapter(join(head, name)));
  for (const dir of ["n1", "n2"]) {
    assert.deepEqual(readdirSync(join(root, dir)).sort(), ["high.2", "low"]);
    for (const name of ["low", "high.2"]) {
      assert.deepEqual(saved(join(root, dir, name)), saved(join(head, name)));
      const last = name === "low" ? "checkpoint-4" : "checkpoint-3";
      for (const one of saved(join(head, name, last))) {
        const [there, here] = [join(root, dir, name, last, one), join(head, name, last, one)];
        assert.deepEqual(readFileSync(there), readFileSync(here), there);
      }
    }
  }
  // The coordinator's disk is new, n1 has nothing, n2 lacks the end of one adapter.
  rmSync(head, { recursive: true });
  rmSync(join(root, "n1"), { recursive: true });
  for (const name of ["checkpoint-3", "checkpoint-4"]) rmSync(join(root, "n2", "low", name), { recursive: true });
  const resumed = await play({ head: [...flags, "--resume-from-checkpoint"], nodes });
  assert.equal(resumed.code, 0, resumed.stderr);
  const notes = events(resumed.stdout, "note").map(({ adapter: of, text }) => `${of}: ${text}`);
  assert.ok(notes.includes("low: resumed after step 2"), notes.join("\n"));
  assert.ok(notes.includes("high.2: resumed after step 3"), notes.join("\n"));
  for (const [index, name] of ["low", "high.2"].entries()) {
    for (const dir of ["head", "n1", "n2"])
      assert.deepEqual(adapter(join(root, dir, name)), expected[index], `${dir} ${name}`);
  }
});

test("the checkpoint that a run goes on from is brought to nodes on which its save was cut short", async (t) => {
  const root = temporaryFolder(t);
  const head = join(root, "head");
  const nodes = {
    n1: { flags: ["--output-dir", join(root, "n1")] },
    n2: { flags: ["--output-dir", join(root, "n2")] },
  };
  const flags = goldenFlags(everyStep, head, "--save-on-each-node", "--resume-from-checkpoint", "auto");
  const whole = await play({ head: flags, nodes });
  assert.equal(whole.code, 0, whole.stderr);
  const last = `checkpoint-${Math.max(...readdirSync(head).map((name) => Number(/^checkpoint-(\d+)$/.exec(name)?.[1] ?? 0)))}`;
  rmSync(join(root, "n1", last), { recursive: true });
  // Whole in itself, but of other bytes.
  writeFileSync(join(root, "n2", last, "scheduler.json"), "{}\n");
  const resumed = await play({ head: flags, nodes });
  assert.equal(resumed.code, 0, resumed.stderr);
  for (const dir of ["n1", "n2"]) {
    assert.deepEqual(readdirSync(join(root, dir, last)).sort(), readdirSync(join(head, last)).sort(), dir);
    for (const name of readdirSync(join(head, last))) {
      assert.deepEqual(
        readFileSync(join(root, dir, last, name)),
        readFileSync(join(head, last, name)),
        `${dir} ${name}`,
      );
    }
  }
});

test("checkpoints of an earlier run in the nodes' own folders are set aside as the coordinator's are", async (t) => {
  const root = temporaryFolder(t);
  const head = join(root, "head");
  const nodes = {
    n1: { flags: ["--output-dir", join(root, "n1")] },
    n2: { flags: ["--output-dir", join(root, "n2")] },
  };
  const checkpoints = (dir: string) =>
    readdirSync(join(root, dir))
      .filter((name) => name.startsWith("checkpoint-"))
      .sort();
  const whole = await play({ head: goldenFlags(everyStep, head, "--save-on-each-node"), nodes });
  assert.equal(whole.code, 0, whole.stderr);
  const before = checkpoints("head");
  // Resumed from the third by name: what is later is another run's from now on, what is earlier its own.
  const flags = goldenFlags(everyStep, head, "--save-on-each-node", "--max-steps", "4", "--save-steps", "100");
  const resumed = await play({ head: [...flags, "--resume-from-checkpoint", join(head, "checkpoint-3")], nodes });
  assert.equal(resumed.code, 0, resumed.stderr);
  for (const node of ["n1", "n2"]) assert.match(resumed.stderr, new RegExp(`go on from on node ..?${node}`));
  const expected = before.flatMap((name) => {
    const step = Number(name.slice("checkpoint-".length));
    return step > 4 ? [`${name}.earlier`] : step === 4 ? [name, `${name}.earlier`] : [name];
  });
  for (const dir of ["head", "n1", "n2"]) assert.deepEqual(checkpoints(dir), expected.sort(), dir);
  // Trained anew over all of it: none of them is this run's.
  const anew = goldenFlags(everyStep, head, "--save-on-each-node", "--max-steps", "2", "--overwrite-output-dir");
  const again = await play({ head: anew, nodes });
  assert.equal(again.code, 0, again.stderr);
  for (const dir of ["head", "n1", "n2"]) {
    const own = checkpoints(dir).filter((name) => /^checkpoint-\d+$/.test(name));
    assert.deepEqual(own, ["checkpoint-1", "checkpoint-2"], dir);
    assert.ok(checkpoints(dir).includes("checkpoint-1.earlier"));
  }
});

test("nodes that share one folder write it once", async (t) => {
  const root = temporaryFolder(t);
  const [head, volume] = [join(root, "head"), join(root, "volume")];
  const result = await play({
    head: goldenFlags(golden, head, "--save-on-each-node"),
    nodes: {
      n1: { flags: ["--output-dir", volume] },
      n2: { flags: ["--output-dir", volume] },
      n3: { flags: ["--output-dir", head] },
    },
  });
  assert.equal(result.code, 0, result.stderr);
  const [save] = events(result.stdout, "save") as { nodes: { node: string; shared_with?: string; error: null }[] }[];
  assert.deepEqual(
    save!.nodes.map(({ node, shared_with, error }) => [node, shared_with, error]),
    [
      ["n1", undefined, null],
      ["n2", "n1", null],
      ["n3", "coordinator", null],
    ],
  );
  assert.deepEqual(saved(volume), saved(head));
  assert.deepEqual(adapter(volume), adapter(head));
});

for (const signal of ["SIGKILL", "SIGTERM"] as const) {
  test(`a worker that goes in the preflight (${signal}) is lost, not unfit: exit 75, at once`, async (t) => {
    const port = await freePort();
    const at = ["--coordinator", `127.0.0.1:${port}`, "--devices", "cpu", "--threads", "1"];
    const workers = ["n0", "n1"].map((name) => startWorker([...at, "--node-name", name]));
    t.after(() => {
      for (const worker of workers) worker.kill("SIGKILL");
    });
    const listen = [
      "--listen",
      `127.0.0.1:${port}`,
      "--nnodes",
      "2",
      "--max-restarts",
      "0",
      "--link",
      "grpc",
      "--log-level",
      "info",
    ];
    const child = startCoordinator(goldenFlags(golden, join(temporaryFolder(t), "run"), ...listen));
    let joined = 0;
    let gone = 0;
    child.stderr.on("data", (chunk: Buffer) => {
      joined += chunk.toString().split(" joined").length - 1;
      if (joined < 2 || gone > 0) return;
      gone = performance.now();
      // It answers nothing from now on, so that it goes in the middle of the preflight.
      workers[1]!.kill("SIGSTOP");
      setTimeout(() => {
        workers[1]!.kill(signal);
        workers[1]!.kill("SIGCONT");
      }, 500);
    });
    const { code, stderr } = await outcome(child);
    assert.ok(gone > 0, stderr);
    assert.equal(code, 75, stderr);
    assert.match(stderr, /PL_WORKER_LOST/);
    assert.ok(performance.now() - gone < 10_000, `${Math.round(performance.now() - gone)} ms`);
  });
}
