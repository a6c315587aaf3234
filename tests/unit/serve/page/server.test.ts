import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { join } from "node:path";
import { Duplex } from "node:stream";
import { type TestContext, test } from "node:test";
import type { FastifyInstance } from "fastify";
import { type AppOptions, createApp, listenOn } from "../../../../src/serve/app.ts";
import { LiveStreams } from "../../../../src/serve/page/live-streams.ts";
import { runsPage } from "../../../../src/serve/page/page.ts";
import { RunFolder } from "../../../../src/serve/page/run-folder.ts";
import { RunRecord } from "../../../../src/serve/page/run-record.ts";
import type { Change, RunList, RunView, Series, Timeline } from "../../../../src/serve/page/wire.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";
import { writeRun } from "../../../support/processes/page-runs.ts";

const OPEN: AppOptions = { apiKey: null, tls: null, onFailure: () => {}, ready: () => true };

async function pageOf(t: TestContext, dir: string, changes: Partial<AppOptions> & { trustsMachine?: boolean } = {}) {
  const app = await createApp({ ...OPEN, ...changes });
  const trustsMachine = changes.trustsMachine ?? true;
  await app.register(runsPage({ folder: new RunFolder(dir), chat: false, trustsMachine }));
  t.after(() => app.close());
  return app;
}

async function json<T>(app: FastifyInstance, url: string): Promise<T> {
  const { statusCode, body } = await app.inject({ url });
  assert.equal(statusCode, 200, `${url}: ${body}`);
  return JSON.parse(body) as T;
}

test("the page's files need no key and say nothing of a run; all else needs it, and nothing else's scripts may run", async (t) => {
  const dir = temporaryFolder(t);
  writeRun(dir, { steps: 5, ranks: 2, settings: { note: "a-secret-setting" } });
  const app = await pageOf(t, dir, { apiKey: "k1", trustsMachine: false });
  for (const url of ["/", "/main.js", "/main.css", "/icon.svg"]) {
    const { statusCode, headers, body } = await app.inject({ url });
    assert.equal(statusCode, 200, url);
    const policy = String(headers["content-security-policy"]);
    assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self'/);
    assert.ok(!/unsafe|https?:|\*/.test(policy), policy);
    assert.equal(headers["x-content-type-options"], "nosniff");
    assert.ok(!body.includes("a-secret-setting"));
    assert.equal((await app.inject({ url, headers: { "if-none-match": String(headers["etag"]) } })).statusCode, 304);
  }
  const shell = (await app.inject({ url: "/" })).body;
  assert.ok(!/<script(?![^>]*\bsrc=)|\bon\w+=|style=|https?:\/\//.test(shell), shell);
  const data = ["runs", "run?run=", "series?run=", "timeline?run=", "log?run=", "replies?run=", "live?run="];
  for (const url of data.map((part) => `/page/${part}`)) {
    assert.equal((await app.inject({ url })).statusCode, 401, url);
    assert.equal((await app.inject({ url, headers: { authorization: "Bearer k2" } })).statusCode, 401, url);
  }
  const right = await app.inject({ url: "/page/run?run=", headers: { authorization: "Bearer k1" } });
  assert.match(right.body, /a-secret-setting/);
  assert.equal(right.headers["cache-control"], "no-store");
});

test("no name leads out of the folder, and no other site's name leads in", async (t) => {
  const root = temporaryFolder(t);
  writeRun(join(root, "outside"), { steps: 2, ranks: 1 });
  writeRun(join(root, "shown", "own"), { steps: 2, ranks: 1 });
  const app = await pageOf(t, join(root, "shown"));
  for (const run of [
    "../outside",
    "own/../../outside",
    join(root, "outside"),
    "",
    "own%00",
    "%2e%2e/outside",
    "own/",
  ]) {
    for (const part of ["run", "series", "timeline", "log", "replies", "live"]) {
      const { statusCode } = await app.inject({ url: `/page/${part}?run=${encodeURIComponent(run)}` });
      assert.equal(statusCode, 404, `${part} of ${run}`);
    }
  }
  for (const url of [
    "/../package.json",
    "/..%2fpackage.json",
    "/web/main.js",
    "/main.js/../../cli/coordinator.js",
    "/%2e%2e/x",
  ]) {
    assert.equal((await app.inject({ url })).statusCode, 404, url);
  }
  for (const url of [
    "/page/series?run=own&from=-1",
    "/page/series?run=own&points=x",
    "/page/run",
    "/page/log?run=own&lines=1e99",
  ]) {
    assert.equal((await app.inject({ url })).statusCode, 400, url);
  }
  const by = async (host: string) => (await app.inject({ url: "/page/runs", headers: { host } })).statusCode;
  for (const host of ["localhost:8001", "127.0.0.1", "[::1]:8001", "127.8.9.1:80", "box.localhost"]) {
    assert.equal(await by(host), 200, host);
  }
  for (const host of ["evil.example", "127.0.0.1.evil.example:8001", "localhost.evil.example"]) {
    assert.equal(await by(host), 403, host);
  }
  const open = await pageOf(t, join(root, "shown"), { trustsMachine: false });
  assert.equal((await open.inject({ url: "/page/runs", headers: { host: "gpu-box.lan:8001" } })).statusCode, 200);
});

test("100,000 steps and 64 ranks: every reply is small, and the one step that went wrong is in it", async (t) => {
  const dir = temporaryFolder(t);
  writeRun(dir, { steps: 100_000, ranks: 64, microBatches: 32, loss: 4 });
  const app = await pageOf(t, dir);
  const started = performance.now();
  const { runs } = await json<RunList>(app, "/page/runs");
  assert.deepEqual([runs[0]!.step, runs[0]!.status], [100_000, "done"]);
  const read = performance.now() - started;
  assert.ok(read < 10_000, `${read} ms to read it first`);
  const sizes = new Map<string, number>();
  const size = async (url: string) => {
    const { body } = await app.inject({ url });
    sizes.set(url, body.length);
    return body;
  };
  const series = JSON.parse(await size("/page/series?run=")) as Series;
  assert.equal(series.points.step.length, 1500);
  assert.deepEqual([series.firstStep, series.lastStep, series.points.step.at(-1)], [1, 100_000, 100_000]);
  assert.ok(Math.max(...series.points.lossHigh.map(Number)) > 12);
  const close = JSON.parse(await size("/page/series?run=&from=49990&to=50010&points=500")) as Series;
  assert.deepEqual(
    close.points.step,
    Array.from({ length: 21 }, (_, at) => 49_990 + at),
  );
  const most = JSON.parse(await size("/page/series?run=&points=9007199254740991")) as Series;
  assert.equal(most.points.step.length, 5_000);
  const { timeline } = JSON.parse(await size("/page/timeline?run=")) as { timeline: Timeline };
  assert.equal(timeline.ranks.length, 64);
  const view = JSON.parse(await size("/page/run?run=")) as RunView;
  assert.deepEqual([view.placement!.devices.length, view.nodes.length, view.links.length], [64, 8, 126]);
  await size("/page/log?run=&lines=1000");
  for (const [url, bytes] of sizes) assert.ok(bytes < 1.5 * 2 ** 20, `${url}: ${bytes} bytes`);
  assert.ok(sizes.get("/page/series?run=")! < 150_000, String(sizes.get("/page/series?run=")));
});

test("who listens hears what is new, what is no longer true, and the end", async (t) => {
  const dir = temporaryFolder(t);
  writeRun(dir, { steps: 10, ranks: 2, error: null });
  const app = await pageOf(t, dir);
  const url = await listenOn(app, "127.0.0.1:0");
  const path = join(dir, "metrics.jsonl");
  const step = (number: number, more = {}) =>
    appendFileSync(
      path,
      `${JSON.stringify({ event: "step", step: number, loss: 1, max_steps: 20, time: Date.now() / 1000, ...more })}\n`,
    );

  const { cursor } = (await (await fetch(`${url}/page/series?run=`)).json()) as Series;
  const ending = new AbortController();
  t.after(() => ending.abort());
  const response = await fetch(`${url}/page/live?run=&generation=${cursor.generation}&rows=${cursor.rows}`, {
    signal: ending.signal,
  });
  assert.equal(response.headers.get("content-type"), "text/event-stream; charset=utf-8");
  const changes = changesOf(response);
  const first = (await changes.next()).value!;
  assert.deepEqual([first.summary.status, first.points!.step], ["running", []]);
  step(11);
  step(12);
  assert.deepEqual((await changes.next()).value!.points!.step, [11, 12]);
  step(7);
  assert.deepEqual((await changes.next()).value!.points, null);
  step(8);
  const next = (await changes.next()).value!;
  assert.deepEqual([next.points!.step, next.summary.step], [[8], 8]);
  appendFileSync(path, `${JSON.stringify({ event: "end", time: Date.now() / 1000 })}\n`);
  assert.equal((await changes.next()).value!.summary.status, "done");
});

test("a client that takes nothing is dropped, the others hear on, and nobody is asked for when nobody listens", async () => {
  const record = new RunRecord();
  let refreshed = 0;
  const run = { id: "", dir: "/run", live: true, record, looked: () => false, refresh: async () => void refreshed++ };
  const streams = new LiveStreams({ tickMs: 2, mostBufferedBytes: 40_000 });
  const response = (take: boolean) => {
    const socket = new Duplex({ read: () => {}, write: (_chunk, _encoding, done) => (take ? done() : undefined) });
    const out = new ServerResponse(new IncomingMessage(socket as Socket));
    out.assignSocket(socket as Socket);
    return out;
  };
  const [slow, quick] = [response(false), response(true)];
  for (const out of [slow, quick]) streams.add(run, out, { generation: 0, rows: 0 });
  for (let step = 1; step <= 20_000 && !slow.destroyed; step++) {
    record.apply({ event: "step", step, loss: step / 3, learning_rate: 1 / step, tokens: 9, step_ms: 3, time: step });
    if (step % 100 === 0) await new Promise((resolve) => setTimeout(resolve, 3));
  }
  assert.ok(slow.destroyed);
  assert.ok(!quick.destroyed);
  assert.ok(slow.writableLength < 200_000, `${slow.writableLength} bytes were kept`);
  quick.destroy();
  await new Promise((resolve) => setTimeout(resolve, 20));
  const before = refreshed;
  await new Promise((resolve) => setTimeout(resolve, 30));
  assert.equal(refreshed, before);
});

async function* changesOf(response: Response): AsyncGenerator<Change> {
  let text = "";
  for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
    text += chunk;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (event.startsWith("data: ")) yield JSON.parse(event.slice(6)) as Change;
    }
  }
}
