import assert from "node:assert/strict";
import { test } from "node:test";
import {
  assertFit,
  formatPreflight,
  judge,
  type NodeFacts,
  type Preflight,
} from "../../../src/coordinator/cluster/preflight.ts";

const node = (name: string, more: Partial<NodeFacts> = {}): NodeFacts => ({
  node: name,
  devices: "cpu,cpu",
  version: "1",
  skewMs: 0,
  freeMemoryBytes: 8 << 30,
  freeDiskBytes: 1e9,
  checkpoint: "abc",
  checkpointProblem: null,
  nccl: null,
  ...more,
});
const link = {
  from: "1 a/cpu",
  to: "2 b/cpu",
  kind: "grpc",
  betweenNodes: true,
  latencyMs: 0.3,
  bytesPerSecond: 1e9,
  problem: null,
};
const found = (nodes: NodeFacts[], more: Partial<Preflight> = {}): Preflight => ({
  coordinator: node("coordinator", { devices: "" }),
  nodes,
  links: [link],
  ...more,
});
const needs = { checkpointBytes: 1e6, diskMustDo: false };

test("a fit cluster has nothing to say; one table holds nodes and links", () => {
  const facts = found([node("a", { nccl: "2.27.3" }), node("b")]);
  assert.deepEqual(judge(facts, needs), { failures: [], warnings: [] });
  const text = formatPreflight(facts);
  for (const part of [
    /^node +devices +version +clock/,
    /\na .* 2\.27\.3\n/,
    /\nb +cpu,cpu.* -\n/,
    /1 a\/cpu -> 2 b\/cpu +grpc +0\.30 ms/,
  ])
    assert.match(text, part);
});

test("each unfitness is said by node, with what to do; all of them at once", () => {
  const facts = found([
    node("a", { skewMs: -86_400_000, version: "2" }),
    node("b", { checkpoint: "def", freeDiskBytes: 10 }),
    node("c", { checkpoint: null, checkpointProblem: "c: no such folder" }),
  ]);
  const { failures } = judge(
    { ...facts, links: [{ ...link, problem: "10.0.0.2:4000: timeout" }] },
    { ...needs, diskMustDo: true },
  );
  const expected = [
    /node "a" runs version 2, the coordinator 1: install one version/,
    /clock of node "a" is 24\.0 h behind the coordinator's: set it/,
    /node "b" holds another checkpoint \(def\) than the coordinator \(abc\)/,
    /node "b" has 10 B left where it saves/,
    /node "c" can't open the model: c: no such folder/,
    /rank 1 a\/cpu can't reach rank 2 b\/cpu at 10\.0\.0\.2:4000: timeout: open that port/,
  ];
  assert.equal(failures.length, expected.length);
  for (const [index, reason] of expected.entries()) assert.match(failures[index]!, reason);
  assert.throws(() => assertFit({ failures, warnings: [] }), { code: "PL_PREFLIGHT_FAILED" });
});

test("what a run can live with is a warning: a clock some seconds off, a slow link between nodes, a node short of disk", () => {
  const facts = found([node("a", { skewMs: 5_000, freeDiskBytes: 10 })], {
    links: [
      { ...link, latencyMs: 100 },
      { ...link, betweenNodes: false, latencyMs: 100 },
    ],
  });
  const { failures, warnings } = judge(facts, needs);
  assert.deepEqual(failures, []);
  assert.equal(warnings.length, 3, warnings.join("\n"));
});
