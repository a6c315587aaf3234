import assert from "node:assert/strict";
import { test } from "node:test";
import type { Finding } from "../../../src/doctor/finding.ts";
import { coordinator, outcome, startCoordinator } from "../../support/processes/cli.ts";

test("doctor trains, and ends with 0 only where that works", async () => {
  const here = await coordinator(["doctor", "--json"]);
  const { works, findings } = JSON.parse(here.stdout) as { works: boolean; findings: Finding[] };
  assert.deepEqual([here.code, works], [0, true], here.stdout + here.stderr);
  assert.match(findings.find(({ name }) => name === "training")!.found, /^2 steps of a small model on /);
  const broken = await outcome(startCoordinator(["doctor"], { PIPELORA_ADDON: "/nowhere/pipelora.node" }));
  assert.equal(broken.code, 1);
  assert.match(broken.stdout, /engine +fail +.*\/nowhere\/pipelora\.node/);
  assert.match(broken.stdout, /Training does not work here\.$/m);
});
