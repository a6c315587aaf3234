import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import fc from "fast-check";
import fastify from "fastify";
import { Registry } from "prom-client";
import { PipeloraError } from "../../../../src/common/errors.ts";
import { MetricsFile } from "../../../../src/coordinator/run/observers/metrics-file.ts";
import {
  MlflowObserver,
  type MlflowSettings,
  mlflowSettings,
} from "../../../../src/coordinator/run/observers/mlflow.ts";
import { withObservers } from "../../../../src/coordinator/run/observers/observer.ts";
import { TrainingMetrics } from "../../../../src/coordinator/run/observers/prometheus.ts";
import type { Reporter } from "../../../../src/coordinator/run/reporter.ts";
import { metricsPage } from "../../../../src/serve/metrics.ts";
import { temporaryFolder } from "../../../support/processes/cli.ts";

const progress = (step: number, loss = step) => ({
  ...{ step, maxSteps: 100, epoch: step / 10, loss, learningRate: 1e-3, gradNorm: 0.5, tokens: 50, stepMs: 20 },
});
const noWarning = (text: string) => assert.fail(text);
type Line = { event: string; step?: number; loss?: number; time: number };
const lines = (dir: string) =>
  readFileSync(join(dir, "metrics.jsonl"), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Line);

test("metrics.jsonl: whatever restarts and processes there are, its steps are those of one run", async (t) => {
  const root = temporaryFolder(t);
  let count = 0;
  const history = fc.array(
    fc.record({
      from: fc.integer({ min: 1, max: 12 }),
      steps: fc.integer({ min: 1, max: 6 }),
      anew: fc.boolean(),
      torn: fc.boolean(),
    }),
    { minLength: 1, maxLength: 6 },
  );
  await fc.assert(
    fc.asyncProperty(history, async (parts) => {
      const dir = join(root, String(count++));
      mkdirSync(dir);
      let file = new MetricsFile(dir, noWarning);
      let expected: [number, number][] = [];
      let run = 0;
      for (const { from, steps, anew, torn } of parts) {
        if (anew) {
          await file.close();
          // A process that was killed while it wrote.
          if (torn && expected.length > 0) appendFileSync(join(dir, "metrics.jsonl"), '{"event":"step","st');
          file = new MetricsFile(dir, noWarning);
        }
        const first = Math.min(from, (expected.at(-1)?.[0] ?? 0) + 1);
        expected = expected.filter(([step]) => step < first);
        run += 1;
        for (let step = first; step < first + steps; step++) {
          file.step(progress(step, run));
          if (step % 2 === 0) file.log({ step, loss: run });
          if (step % 3 === 0) file.saved({ path: "checkpoint", nodes: [], files: [] } as never, step);
          expected.push([step, run]);
        }
      }
      file.end({ train_loss: 1 });
      await file.close();
      const all = lines(dir);
      const told = (event: string) =>
        all.filter((line) => line.event === event).map(({ step, loss }) => [step!, loss!]);
      assert.deepEqual(told("step"), expected);
      assert.deepEqual(
        told("log"),
        expected.filter(([step]) => step % 2 === 0),
      );
      assert.deepEqual(
        told("save").map(([step]) => step),
        expected.filter(([step]) => step % 3 === 0).map(([step]) => step),
      );
      assert.equal(all.at(-1)!.event, "end");
    }),
    { numRuns: 40 },
  );
});

test("a file that can't be written costs one warning, never the run", async () => {
  const warnings: string[] = [];
  const file = new MetricsFile("/proc/none", (text) => warnings.push(text));
  for (let step = 1; step < 5; step++) file.step(progress(step));
  await file.close();
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /^metrics\.jsonl can't be written: ENOENT/);
});

test("every observer hears what it listens to, and what shows the run hears all", () => {
  const heard: string[] = [];
  const shown = new Proxy({} as Reporter, { get: (_target, key) => () => heard.push(`shown ${String(key)}`) });
  const reporter = withObservers(shown, [{ log: ({ step }) => heard.push(`log ${step}`), close: async () => {} }]);
  reporter.log({ step: 3, loss: 1 });
  reporter.note("a");
  reporter.end({});
  assert.deepEqual(heard, ["shown log", "log 3", "shown note", "shown end"]);
});

test("/metrics: a run's numbers and a scheduler's, counters that never fall, in Prometheus's form", async (t) => {
  const registry = new Registry();
  const observer = new TrainingMetrics(registry, false).observer(null);
  let state = { running: 2, waiting: 1, rows: 4096, rowsInUse: 100, promptTokens: 30, newTokens: 7, rounds: 5 };
  const app = fastify();
  t.after(() => app.close());
  await app.register(metricsPage(registry, () => ({ state: () => state as never })));
  observer.step!(progress(4, 2.5));
  observer.step!(progress(5, 2.25));
  observer.log!({ step: 5, loss: 2.375, grad_norm: 0.5 });
  observer.log!({ step: 5, eval_loss: 3 });
  const read = async () => {
    const { body, headers } = await app.inject({ url: "/metrics" });
    assert.match(String(headers["content-type"]), /^text\/plain; version=0\.0\.4/);
    const values = body.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
    for (const line of values)
      assert.match(line, /^[a-zA-Z_:][\w:]*(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [+-]?(Nan|Inf|\d[\d.e+-]*)$/);
    return new Map(values.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.split(" ").at(-1))]));
  };
  const first = await read();
  const expected = {
    ...{ pipelora_train_step: 5, pipelora_train_loss: 2.375, pipelora_train_step_loss: 2.25, pipelora_eval_loss: 3 },
    ...{ pipelora_train_tokens_total: 100, pipelora_train_gradient_norm: 0.5, pipelora_train_step_seconds_count: 2 },
    ...{ pipelora_requests_running: 2, pipelora_generated_tokens_total: 7, pipelora_train_done: 0 },
  };
  for (const [key, value] of Object.entries(expected)) assert.equal(first.get(key), value, key);
  assert.ok(first.get("process_resident_memory_bytes")! > 1e7);
  state = { ...state, newTokens: 3 };
  observer.end!({});
  const second = await read();
  assert.equal(second.get("pipelora_generated_tokens_total"), 10);
  assert.equal(second.get("pipelora_train_done"), 1);
});

interface Call {
  readonly method: string;
  readonly path: string;
  readonly authorization: string | undefined;
  readonly body: Record<string, unknown>;
}

/** A tracking server as MLflow's REST API 2.0 describes it, which refuses what MLflow refuses. */
async function trackingServer(t: TestContext, { experiments = ["Default"], broken = 0 } = {}) {
  const calls: Call[] = [];
  const runs = new Map<string, { params: Map<string, string>; status: string }>([
    ["known", { params: new Map(), status: "KILLED" }],
  ]);
  let left = broken;
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const url = new URL(request.url!, "http://localhost");
    const body = chunks.length === 0 ? {} : (JSON.parse(Buffer.concat(chunks).toString()) as Record<string, unknown>);
    const path = url.pathname.replace("/api/2.0/mlflow/", "");
    calls.push({ method: request.method!, path, authorization: request.headers.authorization, body });
    const reply = (status: number, value: object) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    const missing = () => reply(404, { error_code: "RESOURCE_DOES_NOT_EXIST", message: "no such thing" });
    const invalid = (message: string) => reply(400, { error_code: "INVALID_PARAMETER_VALUE", message });
    if (left > 0 && path === "runs/log-batch" && "metrics" in body) {
      left -= 1;
      return void reply(503, {});
    }
    switch (`${request.method} ${path}`) {
      case "GET experiments/get-by-name": {
        const at = experiments.indexOf(url.searchParams.get("experiment_name")!);
        return void (at < 0 ? missing() : reply(200, { experiment: { experiment_id: String(at) } }));
      }
      case "POST experiments/create":
        return void reply(200, { experiment_id: String(experiments.push(body["name"] as string) - 1) });
      case "POST runs/create":
        if (typeof body["experiment_id"] !== "string") return void invalid("experiment_id");
        runs.set("r1", { params: new Map(), status: "RUNNING" });
        return void reply(200, { run: { info: { run_id: "r1" } } });
      case "POST runs/log-batch": {
        const run = runs.get(body["run_id"] as string);
        if (run === undefined) return void missing();
        const params = (body["params"] ?? []) as { key: string; value: string }[];
        const metrics = (body["metrics"] ?? []) as { key: string; value: number; timestamp: number; step: number }[];
        if (params.length > 100 || metrics.length > 1000) return void invalid("too many");
        if (params.some(({ value }) => typeof value !== "string" || value.length > 500)) return void invalid("param");
        if (params.some(({ key }) => run.params.has(key))) return void invalid("a param can't be changed");
        if (metrics.some((one) => ![one.value, one.timestamp, one.step].every(Number.isFinite)))
          return void invalid("metric");
        for (const { key, value } of params) run.params.set(key, value);
        return void reply(200, {});
      }
      case "POST runs/update": {
        const run = runs.get(body["run_id"] as string);
        if (run === undefined) return void missing();
        run.status = body["status"] as string;
        return void reply(200, { run_info: {} });
      }
      default:
        return void missing();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => server.close());
  const uri = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { uri, calls, runs, experiments };
}

const settings = (uri: string, more: Partial<MlflowSettings> = {}): MlflowSettings => ({
  ...{ uri, experiment: "Default", runId: null, runName: "out", authorization: null, timeoutMs: 2000 },
  ...more,
});

test("MLflow: an experiment that is made where there is none, settings as params, entries as metrics, an end", async (t) => {
  const { uri, calls, runs, experiments } = await trackingServer(t);
  const params = {
    learning_rate: 1e-4,
    model: "m".repeat(900),
    dataset: null,
    lora: { r: 8 },
    ...Object.fromEntries(Array.from({ length: 150 }, (_, i) => [`p${i}`, i])),
  };
  const observer = await MlflowObserver.open(
    settings(uri, { experiment: "new one", authorization: "Bearer t" }),
    params,
    noWarning,
  );
  observer.log!({ step: 10, loss: 2, learning_rate: 1e-4, epoch: 0.5 });
  observer.log!({ step: 10, eval_loss: Number.NaN, eval_runtime: 1 });
  await observer.close(null);
  assert.deepEqual(experiments, ["Default", "new one"]);
  const run = runs.get("r1")!;
  assert.equal(run.status, "FINISHED");
  assert.equal(run.params.size, 153);
  assert.equal(run.params.get("lora"), '{"r":8}');
  const metrics = calls.flatMap(
    ({ body }) => (body["metrics"] ?? []) as { key: string; value: number; step: number }[],
  );
  assert.deepEqual(
    metrics.map(({ key, value, step }) => [key, value, step]),
    [
      ["loss", 2, 10],
      ["learning_rate", 1e-4, 10],
      ["epoch", 0.5, 10],
      ["eval_runtime", 1, 10],
    ],
  );
  assert.ok(calls.every(({ authorization }) => authorization === "Bearer t"));
});

test("MLflow: a run to go on with, an interrupt, a failure, a server that fails meanwhile", async (t) => {
  const warnings: string[] = [];
  const { uri, runs, calls } = await trackingServer(t, { broken: 1 });
  const interrupted = await MlflowObserver.open(settings(uri, { runId: "known" }), { learning_rate: 1 }, (text) =>
    warnings.push(text),
  );
  assert.equal(runs.get("known")!.status, "RUNNING");
  interrupted.log({ step: 1, loss: 1 });
  interrupted.log({ step: 2, loss: 1 });
  await interrupted.close(new PipeloraError("PL_INTERRUPTED", "stopped"));
  assert.equal(runs.get("known")!.status, "KILLED");
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /status 503/);
  // What was refused once does not keep the next from coming.
  assert.equal(calls.filter(({ path, body }) => path === "runs/log-batch" && "metrics" in body).length, 2);
  const failed = await MlflowObserver.open(settings(uri), {}, noWarning);
  await failed.close(new Error("lost"));
  assert.equal(runs.get("r1")!.status, "FAILED");
});

test("MLflow: a wrong address, name or answer is said before anything is loaded", async (t) => {
  const { uri } = await trackingServer(t);
  const rejected = (given: MlflowSettings) =>
    assert.rejects(MlflowObserver.open(given, {}, noWarning), { code: "PL_TRACKING_FAILED" });
  await rejected(settings(uri, { runId: "nobody" }));
  await rejected(settings("http://127.0.0.1:9"));
  const other = createServer((_request, response) => response.end("<html>"));
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  t.after(() => other.close());
  await rejected(settings(`http://127.0.0.1:${(other.address() as AddressInfo).port}`));
  const silent = createServer(() => {});
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  t.after(() => silent.closeAllConnections());
  t.after(() => silent.close());
  await rejected(settings(`http://127.0.0.1:${(silent.address() as AddressInfo).port}`, { timeoutMs: 200 }));
  for (const MLFLOW_TRACKING_URI of [undefined, "", "./mlruns", "sqlite:///x"]) {
    assert.throws(() => mlflowSettings("out", { MLFLOW_TRACKING_URI }), { code: "PL_CONFIG_INVALID" });
  }
  const read = mlflowSettings("a/out", {
    MLFLOW_TRACKING_URI: "http://h:1/",
    MLFLOW_TRACKING_USERNAME: "u",
    MLFLOW_TRACKING_PASSWORD: "p",
  });
  assert.deepEqual(read, settings("http://h:1", { authorization: "Basic dTpw", timeoutMs: 10_000 }));
});
