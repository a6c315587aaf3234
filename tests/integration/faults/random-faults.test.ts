import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { drawCase } from "../../faults/drawing.ts";
import { drawElastic, ELASTIC_KINDS, ELASTIC_MOMENTS, EVENTS } from "../../faults/elastic-drawing.ts";
import { excluded, FAULTS, KINDS, MOMENTS, NOT_DRAWN, PLACES, type Point, pointsOf } from "../../faults/space.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

/** Of this seed the first twelve runs meet every fault, moment, place and kind, and none waits long. */
const SEED = 118;
const RUNS = 12;

interface Reported {
  readonly drawn: Point;
  readonly struck: string | null;
  readonly wrong: readonly string[];
}

test("the twelve runs meet every fault, moment, place and kind", () => {
  const drawn = Array.from({ length: RUNS }, (_, number) => drawCase(SEED, number));
  assert.deepEqual(new Set(drawn.map(({ fault }) => fault)), new Set(FAULTS));
  assert.deepEqual(new Set(drawn.map(({ moment }) => moment)), new Set(MOMENTS));
  assert.deepEqual(new Set(drawn.map(({ place }) => place)), new Set(PLACES));
  assert.deepEqual(new Set(drawn.map(({ kind }) => kind)), new Set(KINDS));
});

test("twelve runs with a fault each end with the undisturbed run's bits, or as documented", (t) => {
  const report = join(temporaryFolder(t), "report.json");
  const flags = ["--runs", String(RUNS), "--seed", String(SEED), "--jobs", "3", "--report", report];
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["--import", "tsx", join(PACKAGE_ROOT, "tests", "faults", "run.ts"), ...flags],
    { encoding: "utf8", cwd: PACKAGE_ROOT, env: { ...process.env, NODE_TEST_CONTEXT: "" } },
  );
  assert.equal(status, 0, stdout + stderr);
  const results = JSON.parse(readFileSync(report, "utf8")) as Reported[];
  assert.deepEqual(
    results.flatMap(({ wrong }) => wrong),
    [],
  );
  // Where no file system can be mounted, no disk is filled.
  const able = FAULTS.filter((fault) => fault !== "disk full" || !stdout.includes("no disk can be filled"));
  assert.ok(results.length >= RUNS - 2);
  for (const fault of able) {
    assert.ok(
      results.some(({ drawn, struck }) => drawn.fault === fault && struck !== null),
      `${fault}: met by no run\n${stdout}`,
    );
  }
});

test("every round of runs draws every fault, and all that may be drawn is; a run is the same whenever it is drawn", () => {
  const seen = new Set<string>();
  const pairs = ({ fault, moment, place, kind }: Point) => [
    `${fault} × ${moment}`,
    `${fault} × ${place}`,
    `${moment} × ${kind}`,
  ];
  for (let number = 0; number < FAULTS.length * 150; number++) {
    const drawn = drawCase(SEED, number);
    assert.equal(excluded(drawn), null, pairs(drawn).join(", "));
    const again = drawCase(SEED, number);
    assert.deepEqual({ ...again, draw: again.draw("jitter") }, { ...drawn, draw: drawn.draw("jitter") });
    for (const pair of pairs(drawn)) seen.add(pair);
  }
  assert.deepEqual([...seen].sort(), [...new Set(FAULTS.flatMap(pointsOf).flatMap(pairs))].sort());
  const round = Array.from({ length: FAULTS.length }, (_, number) => drawCase(SEED + 1, number).fault);
  assert.deepEqual(round.sort(), [...FAULTS].sort());
});

test("what is not drawn leaves every fault, moment, place and kind something to be drawn with", () => {
  const all = FAULTS.flatMap(pointsOf);
  for (const fault of FAULTS)
    assert.ok(
      all.some((point) => point.fault === fault),
      fault,
    );
  for (const moment of MOMENTS)
    assert.ok(
      all.some((point) => point.moment === moment),
      moment,
    );
  for (const place of PLACES)
    assert.ok(
      all.some((point) => point.place === place),
      place,
    );
  for (const kind of KINDS)
    assert.ok(
      all.some((point) => point.kind === kind),
      kind,
    );
  // A rule that no point meets says something that is not so.
  for (const [index, { why }] of NOT_DRAWN.entries()) assert.ok(excludedOnlyBy(index) > 0, why);
});

test("elastic runs meet every event, moment, kind and number of workers; each is the same whenever it is drawn", () => {
  const drawn = Array.from({ length: 400 }, (_, number) => drawElastic(SEED, number));
  const events = drawn.flatMap((one) => one.events);
  assert.deepEqual(new Set(events.map(({ event }) => event)), new Set(EVENTS));
  assert.deepEqual(new Set(events.map(({ moment }) => moment)), new Set(ELASTIC_MOMENTS));
  assert.deepEqual(new Set(drawn.map(({ kind }) => kind)), new Set(ELASTIC_KINDS));
  assert.deepEqual(new Set(drawn.map(({ workers }) => workers)), new Set([2, 3, 4, 5]));
  const plain = (one: (typeof drawn)[number]) => ({
    ...one,
    events: one.events.map(({ event, moment, draw }) => ({
      event,
      moment,
      victim: draw("victim"),
      step: draw("step"),
    })),
  });
  for (const one of drawn) {
    assert.deepEqual(plain(drawElastic(SEED, one.number)), plain(one));
    // What can't follow anything comes first, what nothing can follow comes last; only an earlier change can be disturbed.
    for (const [index, { moment }] of one.events.entries()) {
      if (moment === "join" || moment === "load") assert.equal(index, 0);
      if (moment === "finish") assert.equal(index, one.events.length - 1);
      if (moment === "change") assert.ok(index > 0);
      if (moment === "eval") assert.equal(one.kind, "eval");
    }
  }
});

/** How many points would be drawn without this rule that are not. */
function excludedOnlyBy(index: number): number {
  const others = NOT_DRAWN.filter((_, other) => other !== index);
  const points = FAULTS.flatMap((fault) =>
    MOMENTS.flatMap((moment) =>
      PLACES.flatMap((place) => KINDS.map((kind): Point => ({ fault, moment, place, kind }))),
    ),
  );
  return points.filter((point) => excluded(point) !== null && excluded(point, others) === null).length;
}
