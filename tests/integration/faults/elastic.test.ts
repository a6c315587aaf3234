import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import {
  coordinator,
  events,
  outcome,
  readJson,
  startCoordinator,
  startWorker,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";
import { childrenOf, isAlive } from "../../support/processes/processes.ts";

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 70, save_steps: 1000 } };
const ELASTIC = ["--elastic", "--elastic-join", "always", "--device-map", "balanced", "--log-level", "debug"];
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));
const history = (dir: string) =>
  readJson<{ log_history: Record<string, number>[] }>(dir, "trainer_state.json").log_history.filter(({ loss }) => loss);

const folder = mkdtempSync(join(tmpdir(), "pipelora-elastic-"));
after(() => rmSync(folder, { recursive: true, force: true }));

/** The undisturbed run. */
const calm = (async () => {
  const output = join(folder, "calm");
  const { code, stderr } = await coordinator(goldenFlags(long, output, "--workers", "2"));
  assert.equal(code, 0, stderr);
  return output;
})();

/** Does each of these once, at the end of its step, in this order. */
function atSteps(...what: readonly (readonly [step: number, act: () => void])[]): (text: string) => void {
  const left = [...what];
  return (text) => {
    const [next] = left;
    if (next === undefined || !new RegExp(`"event":"step",.*"step":${next[0]},`).test(text)) return;
    left.shift();
    next[1]();
  };
}

/** Of each change, what its note says. */
function changes(stdout: string) {
  return events(stdout, "note").flatMap(({ text }) => {
    const found = /(\d+) workers go on with step (\d+); (\d+) layers were taken over, (\d+) read \((.*)\)/.exec(
      String(text),
    );
    return found === null ? [] : [{ workers: found[1], takenOver: Number(found[3]), read: Number(found[4]) }];
  });
}

test("workers that are killed, leave and join: the same bits, in the processes that stay, with layers that stay", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const child = startCoordinator(goldenFlags(long, output, "--workers", "4", ...ELASTIC));
  let survivors: number[] = [];
  const { code, stdout, stderr } = await outcome(
    child,
    atSteps(
      [
        8,
        () => {
          const [first, ...others] = childrenOf(child.pid!).sort((a, b) => a - b);
          survivors = others;
          process.kill(first!, "SIGKILL");
        },
      ],
      [20, () => process.kill(survivors.shift()!, "SIGTERM")],
      [
        30,
        () =>
          assert.deepEqual(
            childrenOf(child.pid!).sort((a, b) => a - b),
            survivors,
          ),
      ],
    ),
  );
  assert.equal(code, 0, stderr);
  assert.deepEqual(adapter(output), adapter(await calm));
  assert.deepEqual(history(output), history(await calm));
  const found = changes(stdout);
  assert.deepEqual(
    found.map(({ workers }) => workers),
    ["3", "2"],
  );
  for (const { takenOver, read } of found) assert.ok(takenOver > 0 && read > 0, JSON.stringify(found));
  assert.doesNotMatch(stderr, /\(restart /);
  assert.deepEqual(survivors.filter(isAlive), []);
});

test("a node joins, the first one leaves, the last one dies: the run moves over, then saves and ends with 75, and resumes anywhere", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const address = `127.0.0.1:${await freePort()}`;
  const waiting = ["--listen", address, "--nnodes", "1", "--join-timeout", "2"];
  const child = startCoordinator(goldenFlags(long, output, ...waiting, ...ELASTIC));
  const start = (name: string) => {
    const more = ["--devices", "cpu", "--threads", "1", "--join-timeout", "10"];
    const worker = startWorker(["--coordinator", address, "--node-name", name, ...more]);
    t.after(() => worker.kill("SIGKILL"));
    return worker;
  };
  const first = start("a");
  const left = new Promise((resolve) => first.once("exit", resolve));
  let second: ReturnType<typeof start> | null = null;
  const joins = atSteps([5, () => (second = start("b"))]);
  let changed = 0;
  const { code, stdout, stderr } = await outcome(child, (text) => {
    joins(text);
    if (!text.includes('"text":"the change took')) return;
    changed++;
    if (changed === 1) first.kill("SIGTERM");
    else second!.kill("SIGKILL");
  });
  assert.equal(code, 75, stderr);
  assert.equal(await left, 143);
  assert.deepEqual(
    changes(stdout).map(({ workers }) => workers),
    ["2", "1"],
  );
  assert.match(stderr, /0 workers are left, 1 are needed.*PL_WORKER_MISSING.*--min-workers is 1/s);
  const reached = Math.max(...events(stdout, "step").map(({ step }) => Number(step)));
  const saved = readdirSync(output).flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []);
  assert.equal(saved.length, 1);
  assert.ok(reached - Number(saved[0]) <= 2, `saved ${saved[0]}, reached ${reached}`);
  const resumed = await coordinator(goldenFlags(long, output, "--workers", "3", "--resume-from-checkpoint"));
  assert.equal(resumed.code, 0, resumed.stderr);
  assert.deepEqual(adapter(output), adapter(await calm));
});

/** Runs whose state is more than one adapter's plain matrices, by name: what they are told beside the model, and what they leave. */
const KINDS: Readonly<
  Record<string, { readonly flags: (root: string) => string[]; readonly folders: readonly string[] }>
> = {
  "several adapters, of which one ends early": {
    flags: (root) => {
      const file = join(root, "adapters.yaml");
      writeFileSync(file, JSON.stringify({ a: { lora_r: 2, max_steps: 40 }, b: { lora_dropout: 0.1, max_steps: 22 } }));
      return ["--adapters", file];
    },
    folders: ["a", "b"],
  },
  "PiSSA, with evaluations": {
    flags: () => [
      ...["--init-lora-weights", "pissa", "--lora-r", "2", "--max-steps", "40"],
      ...["--validation-split", "0.3", "--eval-strategy", "steps", "--eval-steps", "7"],
    ],
    folders: ["."],
  },
};

for (const [name, { flags, folders }] of Object.entries(KINDS)) {
  test(`${name}: the same bits after a kill and a leave`, async (t) => {
    const root = temporaryFolder(t);
    const common = [
      ...["--model", join(golden.folder, "model"), "--dataset", join(golden.folder, "data.jsonl"), ...flags(root)],
      ...["--per-device-train-batch-size", "4", "--compute-dtype", "float32", "--logging-steps", "1", "--json"],
      ...["--save-strategy", "no", "--device-map", "balanced"],
    ];
    const [calmly, output] = [join(root, "calm"), join(root, "run")];
    assert.equal((await coordinator([...common, "--output-dir", calmly, "--workers", "2"])).code, 0);
    const child = startCoordinator([...common, "--output-dir", output, "--workers", "4", "--elastic"]);
    const hit = (signal: NodeJS.Signals) => () => process.kill(childrenOf(child.pid!)[0]!, signal);
    const { code, stdout, stderr } = await outcome(child, atSteps([6, hit("SIGKILL")], [30, hit("SIGTERM")]));
    assert.equal(code, 0, stderr);
    assert.equal(changes(stdout).length, 2, stderr);
    for (const folder of folders) {
      assert.deepEqual(adapter(join(output, folder)), adapter(join(calmly, folder)));
      assert.deepEqual(history(join(output, folder)), history(join(calmly, folder)));
    }
  });
}

test("what an elastic run can't be told is said before anything is loaded", async (t) => {
  const output = join(temporaryFolder(t), "run");
  const cases: [string[], RegExp][] = [
    [["--min-workers", "2"], /--min-workers acts only with --elastic/],
    [["--elastic", "--min-workers", "3", "--workers", "2"], /--min-workers 3 is more than --workers 2/],
    [["--elastic", "--device-map", '{"": 0}'], /--elastic plans for whoever is there/],
  ];
  for (const [flags, message] of cases) {
    const { code, stderr } = await coordinator(goldenFlags(long, output, ...flags));
    assert.equal(code, 1);
    assert.match(stderr, message);
  }
});
