import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { coordinator, readJson, temporaryFolder } from "../../support/processes/cli.ts";

interface TraceEvent {
  readonly ph: string;
  readonly name: string;
  readonly cat?: string;
  readonly pid: number;
  readonly tid?: number;
  readonly id?: string;
  readonly ts: number;
  readonly dur?: number;
  readonly args: Readonly<Record<string, unknown>>;
}

interface TraceJson {
  readonly traceEvents: readonly TraceEvent[];
  readonly otherData: { readonly clock_error_ms: Readonly<Record<string, number>> };
}

const RANKS = [0, 1, 2, 3];
const STEPS = [2, 3];

test("a trace shows what each rank did in the chosen steps, on one clock", async (t) => {
  const folder = temporaryFolder(t);
  const file = join(folder, "made", "trace.json");
  const workers = ["--workers", "4", "--replicas", "2", "--threads", "1", "--max-steps", "4"];
  const { code, stderr } = await coordinator(
    goldenFlags(goldenRun("qwen1"), join(folder, "run"), ...workers, "--trace", file, "--trace-steps", STEPS.join(",")),
  );
  assert.equal(code, 0, stderr);
  const { traceEvents, otherData } = readJson<TraceJson>(file);
  const named = traceEvents.filter(({ name }) => name === "process_name").map(({ args }) => String(args["name"]));
  assert.deepEqual(
    named.map((name) => name.split(":")[0]),
    ["coordinator", ...RANKS.map((rank) => `rank ${rank}`)],
  );
  const of = (rank: number, cat: string, ...phases: string[]) =>
    traceEvents.filter((event) => event.pid === rank + 1 && event.cat === cat && phases.includes(event.ph));
  const steps = traceEvents.filter(({ cat }) => cat === "step");
  assert.deepEqual(
    steps.map(({ name }) => name),
    STEPS.map((step) => `step ${step}`),
  );

  const batches = of(0, "forward", "X").length;
  assert.ok(batches >= STEPS.length, String(batches));
  for (const rank of RANKS) {
    assert.equal(of(rank, "forward", "X").length, batches, `rank ${rank}`);
    assert.equal(of(rank, "backward", "X").length, batches, `rank ${rank}`);
    for (const kind of ["update", "reduce", "norm"]) assert.equal(of(rank, kind, "X").length, STEPS.length, kind);
    // Within the coordinator's step, as far as clocks can be compared.
    const slack = 1000 * otherData.clock_error_ms[rank]! + 1;
    for (const event of traceEvents.filter(({ pid, ph }) => pid === rank + 1 && ph === "X")) {
      const { ts, dur } = steps.find(({ args }) => args["step"] === event.args["step"])!;
      assert.ok(
        event.ts >= ts - slack && event.ts + event.dur! <= ts + dur! + slack,
        JSON.stringify({ event, ts, dur }),
      );
    }
    // One after the other: rows that a viewer can show.
    const rows = traceEvents.filter(({ pid, ph }) => pid === rank + 1 && ph === "X");
    for (const tid of [0, 1]) {
      const row = rows.filter((event) => event.tid === tid).sort((a, b) => a.ts - b.ts);
      for (const [index, { ts }] of row.slice(1).entries()) assert.ok(ts >= row[index]!.ts + row[index]!.dur! - 0.01);
    }
  }

  // A tensor arrives after its sender began to send it.
  let pairs = 0;
  for (const from of RANKS) {
    for (const send of of(from, "send", "b")) {
      const to = Number(send.args["peer"]);
      const same = ({ args }: TraceEvent) =>
        args["peer"] === from && args["step"] === send.args["step"] && args["micro_batch"] === send.args["micro_batch"];
      const ends = of(to, "receive", "b")
        .filter(same)
        .map(({ id }) => of(to, "receive", "e").find((end) => end.id === id)!.ts);
      const slack = 1000 * (otherData.clock_error_ms[from]! + otherData.clock_error_ms[to]!) + 1;
      assert.equal(ends.length, 1, JSON.stringify(send));
      assert.ok(ends[0]! >= send.ts - slack, JSON.stringify({ send, ends, slack }));
      pairs++;
    }
  }
  // Two replicas of two stages each: an activation and a gradient a micro-batch.
  assert.equal(pairs, 2 * 2 * batches);
});

test("a trace of steps that the run does not reach is said to be missing, and a folder that takes none is an error at once", async (t) => {
  const folder = temporaryFolder(t);
  const flags = (name: string, ...more: string[]) =>
    goldenFlags(goldenRun("qwen1"), join(folder, name), "--max-steps", "1", "--threads", "1", ...more);
  const late = await coordinator(flags("late", "--trace", join(folder, "trace.json"), "--trace-steps", "7-9"));
  assert.equal(late.code, 0, late.stderr);
  assert.match(late.stderr, /none of its steps was run/);
  const nowhere = await coordinator(flags("nowhere", "--trace", "/proc/nothing/trace.json"));
  assert.equal(nowhere.code, 1);
  assert.match(nowhere.stderr, /PL_OUTPUT_UNWRITABLE/);
});
