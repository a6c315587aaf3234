import assert from "node:assert/strict";
import { test } from "node:test";
import { formatLinks, linkKind, plannedLinks } from "../../../src/plan/link-kinds.ts";
import type { LinkEnd, LinkSettings } from "../../../src/plan/nccl.ts";
import { makePlan } from "../../../src/plan/plan.ts";
import { cpus, model, request } from "./models.ts";

const settings = (link: LinkSettings["link"], insecure = false): LinkSettings => ({ link, insecure });
const hosts = (names: readonly string[]) => cpus(names.length).map((device, id) => ({ ...device, host: names[id]! }));

const V228 = { version: "2.28.3", reason: null };
const gpu = (pciBusId: string, more: Partial<LinkEnd> = {}): LinkEnd => ({
  ...{ kind: "cuda", node: "n", host: "h", nccl: V228, pciBusId },
  ...more,
});

test("processes of one host share memory; others, and those that are told to, use gRPC", () => {
  const [a, b, c] = ["x", "x", "y"].map((host): LinkEnd => ({ host, node: "n", kind: "cpu" })) as [
    LinkEnd,
    LinkEnd,
    LinkEnd,
  ];
  const kinds = [linkKind(settings("auto"), a, b), linkKind(settings("auto"), a, c), linkKind(settings("grpc"), a, b)];
  assert.deepEqual(kinds, ["shm", "grpc", "grpc"]);
  // On paper: by node.
  assert.equal(linkKind(settings("auto"), { node: "n", kind: "cpu" }, { node: "n", kind: "cpu" }), "shm");
});

test("two GPUs of one host use NCCL if both have one version of it, and nobody else does unasked", () => {
  const auto = (a: LinkEnd, b: LinkEnd) => linkKind(settings("auto"), a, b);
  const none = { version: null, reason: "libnccl.so.2: no such file" };
  assert.equal(auto(gpu("1"), gpu("2")), "nccl");
  assert.equal(auto(gpu("1"), gpu("1")), "shm", "one GPU");
  assert.equal(auto(gpu("1"), gpu("2", { nccl: none })), "shm");
  assert.equal(auto(gpu("1"), gpu("2", { nccl: { version: "2.27.3", reason: null } })), "shm");
  assert.equal(auto(gpu("1"), gpu("1", { host: "i" })), "grpc", "two hosts");
  assert.equal(linkKind(settings("auto", true), gpu("1"), gpu("1", { host: "i" })), "grpc", "two hosts");
  assert.equal(auto(gpu("1"), { kind: "cpu", node: "n", host: "h", nccl: V228 }), "shm");
  const host: LinkEnd = { kind: "cpu", node: "n", host: "h", nccl: V228 };
  assert.equal(auto(host, host), "shm", "a library that moves host memory is for whoever asks for it");
  assert.equal(linkKind(settings("shm"), gpu("1"), gpu("2")), "shm");
  assert.equal(linkKind(settings("grpc"), gpu("1"), gpu("2")), "grpc");
});

test("the plan names the link of each pair that exchanges tensors", () => {
  const devices = hosts(["x", "x", "y"]);
  const plan = makePlan(request(model("tiny-llama-3-layer"), devices, { strategy: "balanced" }));
  assert.equal(formatLinks(plannedLinks(settings("auto"), devices, plan)), "0–1 shm, 0–2 grpc, 1–2 grpc");
  assert.equal(formatLinks(plannedLinks(settings("grpc"), devices, plan)), "0–1 grpc, 0–2 grpc, 1–2 grpc");
  assert.throws(() => plannedLinks(settings("shm"), devices, plan), {
    code: "PL_CONFIG_INVALID",
    message: /ranks 0 and 2 share no memory/,
  });
});

test("NCCL carries what lies in device memory: between neighbours, and among replicas; token ids go another way", () => {
  const devices = ["1", "2", "3"].map((at) => gpu(at));
  const segments = [{ ranks: [0] }, { ranks: [1] }, { ranks: [2] }] as never;
  const links = plannedLinks(settings("auto"), devices, { segments, replicas: [[0, 1, 2]] });
  assert.equal(formatLinks(links), "0–1 nccl, 0–2 shm, 1–2 nccl");
  const four = ["1", "2", "3", "4"].map((at) => gpu(at));
  const two = {
    segments: [{ ranks: [0] }, { ranks: [1] }] as never,
    replicas: [
      [0, 1],
      [2, 3],
    ],
  };
  assert.equal(formatLinks(plannedLinks(settings("auto"), four, two)), "0–1 nccl, 0–2 nccl, 1–3 nccl, 2–3 nccl");
  // Ranks 1 and 3 on one GPU can't add up their gradients there; ranks 0 and 2 can.
  const shared = [gpu("1"), gpu("2"), gpu("3"), gpu("2")];
  assert.equal(formatLinks(plannedLinks(settings("auto"), shared, two)), "0–1 nccl, 0–2 nccl, 1–3 shm, 2–3 nccl");
});

test("NCCL that was asked for and can't be had is refused with what remains", () => {
  const segments = [{ ranks: [0] }, { ranks: [1] }] as never;
  const refused = (a: LinkEnd, b: LinkEnd, message: RegExp, insecure = false) =>
    assert.throws(() => plannedLinks(settings("nccl", insecure), [a, b], { segments, replicas: [[0, 1]] }), {
      code: "PL_CONFIG_INVALID",
      message,
      hint: /--link auto/,
    });
  const none = { version: null, reason: "libnccl.so.2: no such file" };
  refused(
    gpu("1"),
    gpu("2", { nccl: none, node: "b" }),
    /^--link nccl: ranks 0 and 1 can't use NCCL: a cuda device of node b can't: libnccl\.so\.2: no such file; between them there is shm and grpc$/,
  );
  refused(gpu("1"), gpu("1"), /they share one GPU \(1\); between them there is shm and grpc/);
  refused(gpu("1"), gpu("2", { nccl: { version: "2.27.3", reason: null } }), /different versions.*2\.28\.3.*2\.27\.3/);
  refused(gpu("1"), gpu("1", { host: "i" }), /not encrypted, which only --insecure allows; between them there is grpc/);
  refused(gpu("1"), { kind: "cpu", node: "n", host: "h", nccl: V228 }, /computes on its CPU/);
  const between = [gpu("1"), gpu("1", { host: "i" })];
  const open = plannedLinks(settings("nccl", true), between, { segments, replicas: [[0, 1]] });
  assert.equal(formatLinks(open), "0–1 nccl");
});
