import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { hashFiles } from "../../../src/formats/checkpoint-folders.ts";
import { type GoldenRun, goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { certificates, tlsFlags } from "../../support/processes/certificates.ts";
import { coordinator, events, outcome, temporaryFolder } from "../../support/processes/cli.ts";
import { RUN_RECORDS } from "../../support/processes/run-records.ts";
import { makeNetwork, namespacesMissing, type Wire } from "../network/namespaces.ts";

const skip = namespacesMissing();
const PORT = 7700;

/** A golden run over two nodes of two CPU devices each and a coordinator on a third; every file of all three folders. */
async function runOverNodes(t: TestContext, golden: GoldenRun, root: string, more: string[], wire?: Wire) {
  const network = await makeNetwork(t, 3, wire);
  const tls = join(root, "tls");
  await certificates(tls, ["head", "n1", "n2"]);
  const [head, ...nodes] = ["head", "n1", "n2"].map((name) => join(root, name));
  const started = nodes.map((output, index) => {
    const name = `n${index + 1}`;
    const flags = ["--coordinator", `head.cluster:${PORT}`, "--node-name", name, "--devices", "cpu,cpu"];
    const own = ["--threads", "1", "--output-dir", output, ...tlsFlags(tls, name)];
    return network.start(index + 1, "worker", [...flags, ...own]);
  });
  const workers = started.map((child) => outcome(child));
  // The name is known only after the workers asked for it.
  await Promise.all(started.map((child) => new Promise((resolve) => child.stderr.once("data", resolve))));
  for (const index of [1, 2]) network.names(index, { "head.cluster": network.addresses[0]! });
  // These nodes are processes of one host, which would share memory: what is tested is the network.
  const grpc = ["--link", "grpc", ...tlsFlags(tls, "head")];
  const listen = ["--listen", `0.0.0.0:${PORT}`, "--nnodes", "2", "--save-on-each-node", ...grpc];
  const result = await outcome(
    network.start(0, "coordinator", goldenFlags(golden, head!, "--device-map", "balanced", ...more, ...listen)),
  );
  assert.equal(result.code, 0, result.stderr);
  for (const worker of workers) {
    const { code, stderr } = await worker;
    assert.equal(code, 0, stderr);
    assert.match(stderr, /waiting for the coordinator at head\.cluster:7700: .*(ENOTFOUND|EAI_AGAIN)/);
  }
  return { result, folders: [head!, ...nodes] };
}

/** Every file below a folder by its hash, the marks and temporary files of other runs too; but for what the coordinator alone writes. */
async function contents(dir: string): Promise<Record<string, string>> {
  const names = readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !RUN_RECORDS.includes(entry.name))
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(dir.length + 1))
    .sort();
  return Object.fromEntries((await hashFiles(dir, names)).map(({ name, sha256 }) => [name, sha256]));
}

interface PlanEvent {
  readonly devices: readonly { readonly rank: number; readonly segments: readonly { readonly index: number }[] }[];
}

interface PreflightEvent {
  readonly links: readonly { readonly betweenNodes: boolean; readonly latencyMs: number }[];
}

const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

for (const [name, wire] of [
  ["qwen1", undefined],
  ["qwen2-gqa-tied", undefined],
  ["qwen2-gqa-tied", { delayMs: 50, loss: 0.01 }],
] as const) {
  const how = wire === undefined ? "" : ", with 50 ms delay and 1 % loss";
  test(`${name} over three namespaces and mTLS${how}: the bits of one node, the same checkpoints on all`, {
    skip,
  }, async (t) => {
    const golden = goldenRun(name);
    const root = temporaryFolder(t);
    // Each message between nodes takes its delay: a few steps say as much as all.
    const more = wire === undefined ? [] : ["--max-steps", "3"];
    const { result, folders } = await runOverNodes(t, golden, root, more, wire);
    const alone = join(root, "alone");
    assert.equal((await coordinator(goldenFlags(golden, alone, "--workers", "1", ...more))).code, 0);
    assert.deepEqual(adapter(folders[0]!), adapter(alone));
    const [expected, ...others] = await Promise.all(folders.map(contents));
    for (const other of others) assert.deepEqual(other, expected);
    const saves = events(result.stdout, "save") as { step: number; files: Record<string, string> }[];
    assert.ok(saves.length > 0);
    for (const { step, files } of saves) {
      for (const [file, hash] of Object.entries(files)) assert.equal(expected![`checkpoint-${step}/${file}`], hash);
      assert.ok(existsSync(join(folders[1]!, `checkpoint-${step}`, "optimizer.safetensors")));
    }
    const plan = events(result.stdout, "plan")[0]!["plan"] as PlanEvent;
    const ranks = plan.devices
      .flatMap(({ rank, segments }) => segments.map(({ index }) => ({ rank, index })))
      .sort((a, b) => a.index - b.index)
      .map(({ rank }) => rank);
    const { links } = events(result.stdout, "preflight")[0]!["preflight"] as PreflightEvent;
    for (const { latencyMs } of links.filter(({ betweenNodes }) => betweenNodes)) {
      assert.ok(latencyMs >= (wire?.delayMs ?? 0), `${latencyMs} ms between the nodes`);
    }
    // Ranks 0 and 1 are those of n1: the pipeline crosses between the nodes once.
    assert.deepEqual(ranks, [0, 1, 2, 3]);
  });
}
