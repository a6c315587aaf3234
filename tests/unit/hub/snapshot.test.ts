import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { RepoReference } from "../../../src/hub/reference.ts";
import { type HubSettings, hubSettings } from "../../../src/hub/settings.ts";
import { Snapshot } from "../../../src/hub/snapshot.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";
import { type Fault, LoopbackHub } from "../../support/processes/hub.ts";

const BIG = randomBytes(300_000);
const FILES = {
  "config.json": '{"a": 1}',
  "model-1.safetensors": BIG,
  "empty.txt": "",
  "sub/deep/notes é #1.txt": "n".repeat(5000),
  "vocab.json": "{}",
};
const PATHS = Object.keys(FILES);
const REFERENCE: RepoReference = { kind: "model", name: "owner/some.model", revision: null };

interface Setup {
  readonly hub: LoopbackHub;
  readonly cache: string;
  readonly warnings: string[];
  open(changes?: Partial<HubSettings>, reference?: RepoReference): Promise<Snapshot>;
}

async function setUp(t: TestContext, files: Readonly<Record<string, string | Buffer>> = FILES): Promise<Setup> {
  const hub = await LoopbackHub.start(t);
  hub.add("model", REFERENCE.name, files);
  const cache = temporaryFolder(t);
  const warnings: string[] = [];
  const settings = await hubSettings("huggingface", { HF_ENDPOINT: `${hub.endpoint}/`, HF_HUB_CACHE: cache });
  return {
    hub,
    cache,
    warnings,
    open: (changes = {}, reference = REFERENCE) =>
      Snapshot.open(reference, {
        settings: { ...settings, backoffMs: 5, timeoutMs: 2000, ...changes },
        progress: () => ({ add: () => {}, end: () => {} }),
        warn: (text) => warnings.push(text),
      }),
  };
}

function assertWhole(snapshot: Snapshot): void {
  for (const [path, content] of Object.entries(FILES)) {
    assert.deepEqual(readFileSync(snapshot.pathOf(path)), Buffer.from(content), path);
  }
}

test("the cache is huggingface_hub's: blobs by hash, refs, snapshots of links", async (t) => {
  const { hub, cache, open } = await setUp(t);
  const snapshot = await open();
  assert.deepEqual([...snapshot.paths].sort(), [...PATHS].sort());
  await snapshot.fetch(PATHS);
  assertWhole(snapshot);
  const repository = join(cache, "models--owner--some.model");
  assert.deepEqual(readdirSync(repository).sort(), ["blobs", "refs", "snapshots"]);
  assert.equal(readFileSync(join(repository, "refs", "main"), "utf8"), snapshot.commit);
  assert.equal(snapshot.dir, join(repository, "snapshots", snapshot.commit));
  const sha256 = createHash("sha256").update(BIG).digest("hex");
  const blob = createHash("sha1").update('blob 8\0{"a": 1}').digest("hex");
  assert.equal(readlinkSync(snapshot.pathOf("model-1.safetensors")), `../../blobs/${sha256}`);
  assert.equal(readlinkSync(snapshot.pathOf("config.json")), `../../blobs/${blob}`);
  assert.ok(readlinkSync(snapshot.pathOf("sub/deep/notes é #1.txt")).startsWith("../../../../blobs/"));
  assert.deepEqual(
    readdirSync(join(repository, "blobs")).filter((name) => name.includes(".")),
    [],
  );
  const before = hub.downloads().length;
  await (await open()).fetch(PATHS);
  assert.equal(hub.downloads().length, before, "what is there is not fetched again");
});

test("another commit fetches what has changed alone", async (t) => {
  const { hub, open } = await setUp(t);
  const first = await open();
  await first.fetch(PATHS);
  hub.add("model", REFERENCE.name, { ...FILES, "config.json": '{"a": 2}' });
  const before = hub.downloads().length;
  const second = await open();
  await second.fetch(PATHS);
  assert.notEqual(second.commit, first.commit);
  assert.deepEqual(hub.downloads().slice(before), [`/${REFERENCE.name}/resolve/${second.commit}/config.json`]);
  assert.equal(readFileSync(second.pathOf("config.json"), "utf8"), '{"a": 2}');
  assert.equal(readFileSync(first.pathOf("config.json"), "utf8"), '{"a": 1}');
  const pinned = await open({}, { ...REFERENCE, revision: first.commit });
  assert.equal(pinned.dir, first.dir);
});

for (const cutAfter of [0, 1, 65_536, 299_999]) {
  test(`cut after ${cutAfter} bytes: the rest alone is asked for`, async (t) => {
    const { hub, open } = await setUp(t);
    hub.faults.push({ when: ({ host }) => host === "storage", times: 2, cutAfter });
    const snapshot = await open();
    await snapshot.fetch(["model-1.safetensors"]);
    assert.deepEqual(readFileSync(snapshot.pathOf("model-1.safetensors")), BIG);
    const ranges = hub.requests.filter(({ host }) => host === "storage").map(({ range }) => range);
    assert.equal(ranges.length, cutAfter === 299_999 ? 2 : 3, ranges.join());
    if (cutAfter === 65_536) assert.match(ranges[1]!, /^bytes=[1-9]\d*-$/);
  });
}

test("a process that was killed left a part: the next goes on from it", async (t) => {
  const { hub, cache, open } = await setUp(t);
  const blobs = join(cache, "models--owner--some.model", "blobs");
  mkdirSync(blobs, { recursive: true });
  const incomplete = join(blobs, `${createHash("sha256").update(BIG).digest("hex")}.incomplete`);
  for (const [left, range] of [
    [BIG.subarray(0, 12_345), "bytes=12345-"],
    [BIG, null],
    [Buffer.concat([BIG, BIG]), null],
  ] as const) {
    writeFileSync(incomplete, left);
    const before = hub.requests.length;
    const snapshot = await open();
    await snapshot.fetch(["model-1.safetensors"]);
    assert.deepEqual(readFileSync(snapshot.pathOf("model-1.safetensors")), BIG);
    const asked = hub.requests.slice(before).filter(({ host }) => host === "storage");
    assert.deepEqual(
      asked.map((request) => request.range),
      left.length === BIG.length ? [] : [range],
    );
    assert.ok(!existsSync(incomplete));
    unlinkSync(incomplete.replace(".incomplete", ""));
  }
});

test("a rest that is not the file's beginning is thrown away, and the whole fetched once more", async (t) => {
  const { cache, open } = await setUp(t);
  const blobs = join(cache, "models--owner--some.model", "blobs");
  mkdirSync(blobs, { recursive: true });
  writeFileSync(join(blobs, `${createHash("sha256").update(BIG).digest("hex")}.incomplete`), Buffer.alloc(1000, 1));
  const snapshot = await open();
  await snapshot.fetch(["model-1.safetensors"]);
  assert.deepEqual(readFileSync(snapshot.pathOf("model-1.safetensors")), BIG);
});

test("a server that ignores ranges begins again", async (t) => {
  const { hub, open } = await setUp(t);
  hub.faults.push({ when: ({ host }) => host === "storage", times: 1, cutAfter: 100_000 });
  hub.faults.push({ when: ({ range }) => range !== null, times: 1, wholeAlways: true });
  const snapshot = await open();
  await snapshot.fetch(["model-1.safetensors"]);
  assert.deepEqual(readFileSync(snapshot.pathOf("model-1.safetensors")), BIG);
});

for (const path of ["model-1.safetensors", "config.json"]) {
  test(`${path} with other bytes than listed is refused and not kept`, async (t) => {
    const { hub, cache, open } = await setUp(t);
    hub.faults.push({ when: (request) => /resolve|lfs/.test(request.path), times: 99, damaged: true });
    hub.faults[0]!.times = path === "config.json" ? 99 : 0;
    if (path !== "config.json") hub.faults.push({ when: ({ host }) => host === "storage", times: 99, damaged: true });
    const snapshot = await open();
    await assert.rejects(snapshot.fetch([path]), { code: "PL_HUB_DAMAGED", message: new RegExp(path) });
    assert.ok(!existsSync(snapshot.pathOf(path)));
    assert.deepEqual(readdirSync(join(cache, "models--owner--some.model", "blobs")), []);
    for (const fault of hub.faults) fault.times = 0;
    await snapshot.fetch([path]);
    assert.deepEqual(readFileSync(snapshot.pathOf(path)), Buffer.from(FILES[path as keyof typeof FILES]));
  });
}

for (const status of [429, 500, 502, 503, 504]) {
  test(`status ${status} is asked again, Retry-After waited for`, async (t) => {
    const { hub, open } = await setUp(t);
    const headers = { "retry-after": "0.3" };
    hub.faults.push({ when: ({ path }) => path.startsWith("/api/"), times: 1, status, headers });
    hub.faults.push({ when: ({ host }) => host === "storage", times: 2, status, headers });
    const began = performance.now();
    const snapshot = await open();
    await snapshot.fetch(PATHS);
    assertWhole(snapshot);
    assert.ok(performance.now() - began > 590, `${performance.now() - began} ms`);
  });
}

test("a hub that never answers ends in a coded error, and so does one that stops in the middle", async (t) => {
  const { hub, open } = await setUp(t);
  hub.faults.push({ when: () => true, times: 99, status: 503 });
  await assert.rejects(open({ attempts: 3 }), { code: "PL_HUB_UNREACHABLE", message: /3 attempts.*503/ });
  assert.equal(hub.requests.length, 3);
  hub.faults.length = 0;
  hub.faults.push({ when: ({ host }) => host === "storage", times: 99, stallAfter: 0 });
  const snapshot = await open({ timeoutMs: 150, attempts: 2 });
  await assert.rejects(snapshot.fetch(PATHS), { code: "PL_HUB_UNREACHABLE", message: /nothing came for 0.15 s/ });
});

test("a fetch that nobody wants any more ends at once, whatever it waits for, and the next goes on from it", async (t) => {
  const storage = ({ host }: { host: string }) => host === "storage";
  const waits: Readonly<Record<string, Omit<Fault, "times">>> = {
    "a body that stalls": { when: storage, stallAfter: 1000 },
    "a reply that does not begin": { when: storage, stallAfter: 0 },
    "a pause that the storage asks for": { when: storage, status: 503, headers: { "retry-after": "300" } },
    "a pause that the hub asks for": { when: () => true, status: 429, headers: { "retry-after": "300" } },
  };
  for (const [what, fault] of Object.entries(waits)) {
    const { hub, open } = await setUp(t);
    hub.faults.push({ ...fault, times: 1 });
    const over = new AbortController();
    const reason = new Error("the session ended");
    const fetched = open({ timeoutMs: 60_000, cancelled: over.signal }).then((snapshot) => snapshot.fetch(PATHS));
    while (hub.faults[0]!.times > 0) await delay(5);
    await delay(50);
    const aborted = performance.now();
    over.abort(reason);
    await assert.rejects(fetched, (error) => error === reason, what);
    assert.ok(performance.now() - aborted < 2000, what);
    const snapshot = await open();
    await snapshot.fetch(PATHS);
    assertWhole(snapshot);
  }
});

test("nobody listens: the cache is used and said, else the error tells the endpoint", async (t) => {
  const { hub, open, warnings } = await setUp(t);
  await (await open()).fetch(PATHS);
  hub.stop();
  const snapshot = await open({ attempts: 2 });
  assertWhole(snapshot);
  await snapshot.fetch(PATHS);
  assert.match(warnings.join(), /ECONNREFUSED.*cache/);
  await assert.rejects(open({ attempts: 2 }, { ...REFERENCE, name: "owner/other" }), {
    code: "PL_HUB_UNREACHABLE",
    message: /owner\/other.*127\.0\.0\.1/,
  });
});

test("gated, private and missing repositories are told apart as far as the hub does", async (t) => {
  const { hub, open } = await setUp(t);
  hub.gate(REFERENCE.name);
  await assert.rejects(open(), { code: "PL_HUB_DENIED", hint: /accept the conditions.*HF_TOKEN/ });
  await assert.rejects(open({ token: "wrong" }), { code: "PL_HUB_DENIED", hint: /account of \$HF_TOKEN/ });
  await (await open({ token: "secret" })).fetch(PATHS);
  const storage = hub.requests.filter(({ host }) => host === "storage");
  assert.ok(storage.length > 0);
  assert.ok(
    storage.every(({ authorization }) => authorization === null),
    "the token goes to the endpoint alone",
  );
  const named = (name: string, revision: string | null = null) => open({}, { kind: "model", name, revision });
  await assert.rejects(named("owner/none"), { code: "PL_HUB_DENIED", hint: /does not exist/ });
  hub.add("model", "owner/open", { "config.json": "{}" });
  await assert.rejects(named("owner/open", "v9"), { code: "PL_HUB_NOT_FOUND", message: /revision/ });
  const fetched = await named("owner/open");
  await assert.rejects(fetched.fetch(["tokenizer.json"]), { code: "PL_HUB_NOT_FOUND", message: /tokenizer\.json/ });
});

test("offline: what is there, and nothing is asked for", async (t) => {
  const { hub, open } = await setUp(t);
  await assert.rejects(open({ offline: true }), { code: "PL_HUB_OFFLINE", hint: /coordinator download/ });
  const some = PATHS.filter((path) => path !== "vocab.json");
  await (await open()).fetch(some);
  const asked = hub.requests.length;
  const snapshot = await open({ offline: true });
  assert.deepEqual([...snapshot.paths].sort(), [...some].sort());
  await snapshot.fetch(some);
  await assert.rejects(snapshot.fetch(["vocab.json"]), { code: "PL_HUB_OFFLINE", message: /vocab\.json/ });
  assert.equal(hub.requests.length, asked);
});

test("paths that lead out of the cache are refused", async (t) => {
  for (const path of ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil"]) {
    const { open } = await setUp(t, { [path]: "x" });
    await assert.rejects(open(), { code: "PL_HUB_DAMAGED" }, path);
  }
});

test("several at once fetch each blob once", async (t) => {
  const { hub, open } = await setUp(t);
  const snapshots = await Promise.all(Array.from({ length: 4 }, () => open()));
  await Promise.all(snapshots.map((snapshot) => snapshot.fetch(PATHS)));
  assertWhole(snapshots[0]!);
  const lfs = hub.downloads().filter((path) => path.startsWith("/lfs/"));
  assert.equal(lfs.length, new Set(lfs).size, lfs.join());
});

test("ModelScope's API gives the same files", async (t) => {
  const { hub, cache, open } = await setUp(t);
  const files: Record<string, string> = Object.fromEntries(
    Array.from({ length: 450 }, (_, index) => [`data/part-${index}.jsonl`, `{"n": ${index}}`]),
  );
  hub.add("dataset", "owner/rows", files);
  const settings = await hubSettings("modelscope", { MODELSCOPE_DOMAIN: hub.endpoint, MODELSCOPE_CACHE: cache });
  assert.equal((await hubSettings("modelscope", {})).endpoint, "https://www.modelscope.cn");
  const model = await open({ ...settings, backoffMs: 5 });
  await model.fetch(PATHS);
  assertWhole(model);
  assert.match(model.commit, /^[0-9a-f]{40}$/);
  const rows = await open({ ...settings }, { kind: "dataset", name: "owner/rows", revision: null });
  assert.equal(rows.paths.length, 450);
  await assert.rejects(open(settings, { ...REFERENCE, name: "owner/none" }), { code: "PL_HUB_NOT_FOUND" });
  const offline = await open({ ...settings, offline: true });
  assertWhole(offline);
  assert.ok(lstatSync(offline.pathOf("config.json")).isSymbolicLink());
});
