import assert from "node:assert/strict";
import { test } from "node:test";
import { chooseMembers, describeMissing, type Placed } from "../../../src/coordinator/cluster/membership.ts";

const node = (name: string, devices: number, present = devices): Placed[] =>
  Array.from({ length: present }, (_, localIndex) => ({ node: name, localIndex, nodeDevices: devices }));
const places = (workers: Placed[] | null) => workers?.map((worker) => `${worker.node}/${worker.localIndex}`);
const two = { count: 2, names: null, before: [] };

test("ranks are node-major, by name and device, in whatever order workers came", () => {
  const joined = [...node("w-10", 2).reverse(), ...node("w-9", 2)];
  assert.deepEqual(places(chooseMembers(joined, two, false)), ["w-9/0", "w-9/1", "w-10/0", "w-10/1"]);
  assert.deepEqual(places(chooseMembers(joined.reverse(), two, true)), ["w-9/0", "w-9/1", "w-10/0", "w-10/1"]);
});

test("a node counts once all its devices are there; nodes beyond the wanted number are spare", () => {
  assert.equal(chooseMembers([...node("a", 2), ...node("b", 2, 1)], two, true), null);
  const joined = [...node("b", 1), ...node("d", 1), ...node("a", 3, 2), ...node("c", 1)];
  assert.deepEqual(places(chooseMembers(joined, two, true)), ["b/0", "c/0"]);
});

test("a restarted run waits for its own nodes, then takes a spare; names given are binding", () => {
  const again = { ...two, before: ["b", "c"] };
  const joined = [...node("a", 1), ...node("c", 1)];
  assert.equal(chooseMembers(joined, again, false), null);
  assert.deepEqual(places(chooseMembers(joined, again, true)), ["a/0", "c/0"]);
  assert.deepEqual(places(chooseMembers([...joined, ...node("b", 1)], again, true)), ["b/0", "c/0"]);
  const named = { count: 2, names: ["b", "c"], before: [] };
  assert.equal(chooseMembers(joined, named, true), null);
});

test("who is missing is named as far as it can be known", () => {
  const joined = [...node("a", 2), ...node("b", 2, 1)];
  assert.equal(
    describeMissing(joined, { count: 3, names: ["a", "b", "c"], before: [] }),
    "missing: c; joined: a (2 of 2 devices), b (1 of 2 devices; device 1 is missing)",
  );
  assert.match(describeMissing([], { count: 3, names: null, before: [] }), /3 more nodes are missing; joined: nobody/);
});
