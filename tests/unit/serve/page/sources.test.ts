import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { createLogger, hearLog, unheardChild } from "../../../../src/common/log.ts";
import { JournalFile } from "../../../../src/coordinator/run/observers/journal-file.ts";
import { LiveRun } from "../../../../src/coordinator/run/observers/live-run.ts";
import { MetricsFile } from "../../../../src/coordinator/run/observers/metrics-file.ts";
import { withObservers } from "../../../../src/coordinator/run/observers/observer.ts";
import type { Reporter } from "../../../../src/coordinator/run/reporter.ts";
import { FolderRun } from "../../../../src/serve/page/folder-run.ts";
import { RunFolder } from "../../../../src/serve/page/run-folder.ts";
import { RunRecord } from "../../../../src/serve/page/run-record.ts";
import type { RunSource } from "../../../../src/serve/page/run-source.ts";
import { viewOf } from "../../../../src/serve/page/run-view.ts";
import { timelineOf } from "../../../../src/serve/page/timeline.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";
import { writeRun } from "../../../support/processes/page-runs.ts";

const noWarning = (text: string) => assert.fail(text);

/** All that the page can be told of a run, but for who heard it when. */
async function shown(run: RunSource) {
  await run.refresh();
  const { columns, evaluations, log, lastStep } = run.record;
  const { summary, ...view } = await viewOf(run, Date.now());
  const { startedAt, heardAt, id, name, ...state } = summary;
  const checkpoints = view.checkpoints.map(({ savedAt, ...checkpoint }) => checkpoint);
  return {
    ...{ view: { ...view, checkpoints }, state, points: columns.between(0, Number.MAX_SAFE_INTEGER, 500), evaluations },
    log: log.page(Number.MAX_SAFE_INTEGER, 100).lines.map(({ level, text }) => [level, text]),
    timeline: timelineOf(lastStep),
  };
}

type Act = (reporter: Reporter, step: number) => void;
const acts: Readonly<Record<string, Act>> = {
  note: (reporter, step) => reporter.note(`note at ${step}`),
  log: (reporter, step) => reporter.log({ step, loss: 9, grad_norm: 1 }),
  evaluate: (reporter, step) => reporter.log({ step, eval_loss: 10 / step, eval_runtime: 1.5 }),
  save: (reporter, step) => reporter.saved({ path: `/x/checkpoint-${step}`, nodes: [], files: {} }, step),
  plan: (reporter, step) =>
    reporter.plan("", {
      ...{
        strategy: `s${step}`,
        layers: ["a", "b"],
        replicas: 1,
        predicted: null,
        links: [{ ranks: [0, 1], kind: "shm" }],
      },
      ranks: [{ rank: 0, node: "n", device: "cpu", name: "CPU", memory_bytes: 5 }],
      devices: [
        { rank: 0, segments: [{ index: 0, first_layer: 0, last_layer: 1 }], memory: { weights: step, budget: 9 } },
      ],
    }),
  look: (reporter, step) =>
    reporter.lastStep({
      ...{ step, began_ms: 1000 * step, ms: 3, measured: { ranks: [{ rank: 0, weight_bytes: step }], step_ms: 3 } },
      ranks: [{ rank: 0, name: "n/cpu", clock_error_ms: 0.1, spans: [["send", 0, 1, 0, 0, 1, 64]] }],
    }),
  predict: (reporter, step) => reporter.predictions("predicted", { ranks: [{ rank: 0, weight_bytes: 100 * step }] }),
};

test("a run shows the same from its files as from itself, whatever it does and wherever it goes on from", async (t) => {
  const root = temporaryFolder(t);
  let count = 0;
  const history = fc.array(
    fc.record({
      back: fc.integer({ min: 0, max: 6 }),
      steps: fc.integer({ min: 1, max: 9 }),
      acts: fc.array(fc.tuple(fc.integer({ min: 0, max: 8 }), fc.constantFrom(...Object.keys(acts))), { maxLength: 8 }),
    }),
    { minLength: 1, maxLength: 4 },
  );
  const ending = fc.constantFrom(
    null,
    { code: "PL_INTERRUPTED", message: "stop" },
    { code: "PL_WORKER_LOST", message: "x" },
  );
  await fc.assert(
    fc.asyncProperty(history, ending, async (parts, error) => {
      const dir = join(root, String(count++));
      mkdirSync(dir);
      const live = await LiveRun.open("", dir, false);
      const files = [new MetricsFile(dir, noWarning), new JournalFile(dir, noWarning)];
      const reporter = withObservers({} as Reporter, [...files, live]);
      const other = new FolderRun("", dir);
      reporter.note("before it begins");
      reporter.began({ settings: { lora_r: 8, model: "m" }, changed: ["model"] });
      let last = 0;
      for (const { back, steps, acts: own } of parts) {
        const first = Math.max(1, last + 1 - back);
        for (let step = first; step < first + steps; step++) {
          reporter.step({
            ...{ step, maxSteps: 40, epoch: step / 8, loss: step + back, learningRate: 1 / step, tokens: 9, stepMs: 3 },
            gradNorm: step % 5 === 0 ? Number.POSITIVE_INFINITY : 0.5,
          });
          for (const [at, name] of own) if (at === step - first) acts[name]!(reporter, step);
        }
        last = first + steps - 1;
        // Somebody looks in the middle of it.
        if (back % 2 === 0) await other.refresh();
      }
      if (error === null) reporter.end({ train_loss: 1 });
      for (const file of files) await file.close(error);
      if (error !== null) live.record.apply({ event: "ended", error });
      const [here, there] = [await shown(live), await shown(new FolderRun("", dir))];
      // Lines of the log come in the order in which they were said, of which the file knows those before the begin last.
      assert.deepEqual({ ...here, log: here.log.toSorted() }, { ...there, log: there.log.toSorted() });
      // Who looked before has the same picture.
      await new Promise((resolve) => setTimeout(resolve, 0));
      const [again, fresh] = [new FolderRun("", dir), new FolderRun("", dir)];
      assert.deepEqual(await shown(again), await shown(fresh));
    }),
    { numRuns: 20 },
  );
});

test("a run of another process is followed: lines that are not whole yet, steps that are done again, a file that begins anew", async (t) => {
  const dir = temporaryFolder(t);
  const path = join(dir, "metrics.jsonl");
  const run = new FolderRun("", dir);
  const line = (step: number, loss: number) =>
    `${JSON.stringify({ event: "step", step, loss, time: 1000 + step + loss })}\n`;
  const losses = async () => {
    await new Promise((resolve) => setTimeout(resolve, 410));
    await run.refresh();
    const { step, loss } = run.record.columns.since(0);
    return step.map((one, at) => [one, loss[at]]);
  };
  assert.deepEqual(await losses(), []);
  writeFileSync(path, line(1, 5) + line(2, 4).slice(0, 12));
  assert.deepEqual(await losses(), [[1, 5]]);
  appendFileSync(path, line(2, 4).slice(12) + line(3, 3));
  assert.deepEqual(await losses(), [
    [1, 5],
    [2, 4],
    [3, 3],
  ]);
  const { generation } = run.record.columns;
  // As long as before, and longer: only what stands there tells.
  writeFileSync(path, line(1, 5) + line(2, 7) + line(3, 8) + line(4, 9));
  assert.deepEqual(await losses(), [
    [1, 5],
    [2, 7],
    [3, 8],
    [4, 9],
  ]);
  assert.notEqual(run.record.columns.generation, generation);
  writeFileSync(path, line(1, 1));
  assert.deepEqual(await losses(), [[1, 1]]);
});

test("a folder of another trainer: its trainer_state.json, or its newest checkpoint's", async (t) => {
  const dir = temporaryFolder(t);
  const state = (steps: readonly number[]) =>
    JSON.stringify({
      ...{ max_steps: 100, best_model_checkpoint: `/elsewhere/checkpoint-${steps[0]}` },
      log_history: steps.flatMap((step) => [
        { step, epoch: step / 50, loss: 1 / step, learning_rate: 0.1, grad_norm: 2 },
        { step, eval_loss: 2 / step, eval_runtime: 3 },
      ]),
    });
  for (const step of [10, 20]) {
    mkdirSync(join(dir, `checkpoint-${step}`));
    writeFileSync(join(dir, `checkpoint-${step}`, "trainer_state.json"), state([10, step].slice(step === 10 ? 1 : 0)));
  }
  writeFileSync(join(dir, "checkpoint-20", "training_args.json"), '{"lora_r": 16}');
  const going = await shown(new FolderRun("", dir));
  assert.deepEqual(going.points.step, [10, 20]);
  assert.deepEqual([going.state.status, going.state.maxSteps, going.state.bestEvalLoss], ["silent", 100, 0.1]);
  assert.deepEqual(going.view.settings, [{ name: "lora_r", value: "16", changed: null }]);
  assert.deepEqual(
    going.view.checkpoints.map(({ name, best }) => [name, best]),
    [
      ["checkpoint-20", false],
      ["checkpoint-10", true],
    ],
  );
  writeFileSync(join(dir, "trainer_state.json"), state([10, 20, 30]));
  const done = await shown(new FolderRun("", dir));
  assert.deepEqual([done.state.status, done.points.step], ["done", [10, 20, 30]]);
});

test("runs below a folder are found by what they left; links and checkpoints are not followed", async (t) => {
  const root = temporaryFolder(t);
  for (const name of ["a-2", "a-10", "deep/one", "deep/two/three/four"])
    writeRun(join(root, name), { steps: 3, ranks: 2 });
  writeRun(join(root, "a-2", "checkpoint-3"), { steps: 3, ranks: 2 });
  mkdirSync(join(root, "empty"));
  const folder = new RunFolder(root);
  const { runs } = await folder.list();
  assert.deepEqual(
    runs.map(({ id }) => id),
    ["a-2", "a-10", "deep/one"],
  );
  assert.equal((await folder.find("a-10"))?.dir, join(root, "a-10"));
  for (const id of ["", "..", "a-2/..", "a-2/checkpoint-3", "empty", "/etc", "a-2\0", "A-2"]) {
    assert.equal(await folder.find(id), undefined, JSON.stringify(id));
  }
});

test("whatever stands in the files, a run is shown as far as it can be told, and nothing fails", async (t) => {
  const dir = temporaryFolder(t);
  const keys = [
    "event",
    "step",
    "loss",
    "eval_loss",
    "plan",
    "devices",
    "segments",
    "memory",
    "ranks",
    "spans",
    "links",
    "layers",
  ];
  const value = fc.letrec((tie) => ({
    any: fc.oneof(
      { maxDepth: 4 },
      fc.constantFrom<unknown>(
        "step",
        "log",
        "save",
        "plan",
        "last_step",
        "began",
        "ended",
        "line",
        "preflight",
        "predictions",
      ),
      fc.constantFrom<unknown>(null, true, 1e300, -1, 0, 3, 1.5, "", "__proto__", "checkpoint-1"),
      fc.array(tie("any"), { maxLength: 4 }),
      fc.dictionary(fc.constantFrom(...keys, "event", "event", "__proto__", "constructor"), tie("any"), { maxKeys: 6 }),
    ),
  })).any;
  await fc.assert(
    fc.asyncProperty(fc.array(value, { maxLength: 12 }), async (events) => {
      const record = new RunRecord();
      for (const event of events) {
        record.apply(event);
        record.addReply(event);
        record.addHistory(event);
      }
      const run = { id: "", dir, live: false, record, refresh: async () => {}, looked: () => false };
      JSON.stringify(await shown(run));
    }),
    { numRuns: 400 },
  );
});

test("a log is heard by who listens, but what one child says", () => {
  const heard: string[] = [];
  const log = createLogger({ format: "json", level: "error" });
  log.error("nobody listens yet");
  hearLog(log, ({ level, text }) => heard.push(`${level}: ${text}`));
  log.error({ error: 1 }, "with fields");
  log.warn("not shown, so not heard");
  log.child({ rank: 1 }).error("of a child");
  unheardChild(log).error("known otherwise");
  unheardChild(log).child({ adapter: "a" }).error("of its child");
  assert.deepEqual(heard, ["error: with fields", "error: of a child"]);
});

test("what was said before a run began is kept with it; of one that never began there is no file", async (t) => {
  const dir = temporaryFolder(t);
  const never = new JournalFile(dir, noWarning);
  never.note("said");
  await never.close(new Error("bad flag"));
  const file = new JournalFile(dir, noWarning);
  file.note("said first");
  file.began({ settings: {}, changed: [] });
  await file.close(null);
  const events = readFileSync(join(dir, "run.jsonl"), "utf8").trimEnd().split("\n");
  assert.deepEqual(
    events.map((line) => (JSON.parse(line) as { event: string }).event),
    ["began", "line", "ended"],
  );
});
