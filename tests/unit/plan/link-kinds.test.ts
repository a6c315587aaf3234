import assert from "node:assert/strict";
import { test } from "node:test";
import { formatLinks, linkKind, plannedLinks } from "../../../src/plan/link-kinds.ts";
import { makePlan } from "../../../src/plan/plan.ts";
import { cpus, model, request } from "./models.ts";

type Host = Parameters<typeof linkKind>[1];

const hosts = (names: readonly string[]) => cpus(names.length).map((device, id) => ({ ...device, host: names[id]! }));

test("processes of one host share memory; others, and those that are told to, use gRPC", () => {
  const [a, b, c] = ["x", "x", "y"].map((host) => ({ host, node: "n" })) as [Host, Host, Host];
  assert.deepEqual([linkKind("auto", a, b), linkKind("auto", a, c), linkKind("grpc", a, b)], ["shm", "grpc", "grpc"]);
  // On paper: by node.
  assert.equal(linkKind("auto", { node: "n" }, { node: "n" }), "shm");
});

test("the plan names the link of each pair that exchanges tensors", () => {
  const devices = hosts(["x", "x", "y"]);
  const plan = makePlan(request(model("tiny-llama-3-layer"), devices, { strategy: "balanced" }));
  assert.equal(formatLinks(plannedLinks("auto", devices, plan)), "0–1 shm, 0–2 grpc, 1–2 grpc");
  assert.equal(formatLinks(plannedLinks("grpc", devices, plan)), "0–1 grpc, 0–2 grpc, 1–2 grpc");
  assert.throws(() => plannedLinks("shm", devices, plan), {
    code: "PL_CONFIG_INVALID",
    message: /ranks 0 and 2 share no memory/,
  });
});
