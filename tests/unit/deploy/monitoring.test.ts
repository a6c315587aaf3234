import assert from "node:assert/strict";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { test } from "node:test";
import type { IServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import fastify from "fastify";
import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import { Registry } from "prom-client";
import { folder as deploy, render } from "../../../scripts/manifests.mjs";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { TrainingMetrics } from "../../../src/coordinator/run/observers/prometheus.ts";
import { metricsPage } from "../../../src/serve/metrics.ts";
import { mountOf, parseContainer } from "./command-lines.ts";
import { Manifests, podOf } from "./rendered.ts";
import { unknownKeys, validateTypes } from "./schema.ts";

interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly targets?: readonly { readonly expr: string }[];
}

const component = join(deploy, "components", "monitoring");
const dashboard = JSON.parse(readFileSync(join(component, "dashboard.json"), "utf8")) as { panels: Panel[] };

/** Names of all that /metrics of a run tells, with what a histogram and Prometheus add. */
async function toldMetrics(): Promise<Set<string>> {
  const registry = new Registry();
  new TrainingMetrics(registry, false);
  const app = fastify();
  const state = { running: 0, waiting: 0, rows: 0, rowsInUse: 0, promptTokens: 0, newTokens: 0, rounds: 0 };
  await app.register(metricsPage(registry, () => ({ state: () => state as never })));
  const page = (await app.inject("/metrics")).body;
  await app.close();
  const types = [...page.matchAll(/^# TYPE (\w+) (\w+)$/gm)].map(([, name, type]) => ({ name: name!, type }));
  return new Set(
    types.flatMap(({ name, type }) =>
      type === "histogram" ? ["bucket", "sum", "count"].map((part) => `${name}_${part}`) : [name],
    ),
  );
}

/** Names in a query that have labels behind them. */
const asked = (expr: string) => [...expr.matchAll(/(\w+)\{/g)].map(([, name]) => name!);

test("the dashboard asks for what /metrics tells, and leaves little out", async () => {
  const told = await toldMetrics();
  const shown = new Set(dashboard.panels.flatMap(({ targets = [] }) => targets.flatMap(({ expr }) => asked(expr))));
  assert.ok(shown.size > 15);
  assert.deepEqual(
    [...shown].filter((name) => !told.has(name)),
    [],
  );
  assert.deepEqual(
    [...told].filter((name) => name.startsWith("pipelora_") && !shown.has(name)),
    ["pipelora_eval_seconds", "pipelora_train_done", "pipelora_rounds_total"],
  );
});

test("the dashboard's panels have numbers of their own and lie beside each other", () => {
  const { panels } = dashboard;
  assert.equal(new Set(panels.map(({ id }) => id)).size, panels.length);
  const cells = new Set<string>();
  for (const { title, gridPos } of panels) {
    assert.ok(gridPos.x + gridPos.w <= 24, title);
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
        assert.ok(!cells.has(`${x}/${y}`), `${title} lies over another`);
        cells.add(`${x}/${y}`);
      }
    }
  }
});

test("the component lets Prometheus, and nobody else, ask the coordinator with the key", async (t) => {
  const folder = join(PACKAGE_ROOT, "build", "manifests", "monitored");
  mkdirSync(folder, { recursive: true });
  const resources = [join(deploy, "overlays", "two-nodes-8-gpus")].map((path) => relative(folder, path));
  const kustomization = { apiVersion: "kustomize.config.k8s.io/v1beta1", kind: "Kustomization", resources };
  const components = [relative(folder, component)];
  writeFileSync(join(folder, "kustomization.yaml"), JSON.stringify({ ...kustomization, components }));
  const text = render(folder);
  rmSync(folder, { recursive: true });
  if (text === null) return t.skip("no kubectl with kustomize 5 or later here");
  const manifests = new Manifests("monitored", text);
  for (const object of manifests.objects) await assert.doesNotReject(validateTypes(object), object.kind);
  assert.equal(unknownKeys(manifests.objects, "monitored-types"), "");

  const job = manifests.job("coordinator");
  const [container] = podOf(job).containers;
  const { config } = await parseContainer(manifests, podOf(job), container!);
  const service = manifests.service("pipelora-http");
  const monitor = manifests.object<IServiceMonitor>("ServiceMonitor", "pipelora");
  const policy = manifests.object<INetworkPolicy>("NetworkPolicy", "pipelora-http");
  const port = container!.ports!.find(({ name }) => name === "http")!.containerPort;
  assert.equal(config.http, `0.0.0.0:${port}`);
  const [served] = service.spec!.ports!;
  assert.equal(served!.targetPort, "http");
  const labels = job.spec!.template.metadata!.labels!;
  for (const [key, value] of Object.entries(service.spec!.selector!)) assert.equal(labels[key], value);
  for (const [key, value] of Object.entries(monitor.spec.selector.matchLabels!)) {
    assert.equal(service.metadata!.labels![key], value);
  }
  const [endpoint] = monitor.spec.endpoints!;
  assert.deepEqual([endpoint!.port, endpoint!.path], [served!.name, "/metrics"]);
  const key = container!.env!.find(({ name }) => name === "PIPELORA_API_KEY")!.valueFrom!.secretKeyRef!;
  assert.deepEqual(endpoint!.authorization!.credentials, key);
  assert.equal(endpoint!.scheme, "https");
  assert.equal(endpoint!.tlsConfig!.serverName, config.tls_name);
  const { volume } = mountOf(podOf(job), container!, config.http_tls_cert!)!;
  assert.equal(endpoint!.tlsConfig!.ca!.secret!.name, volume.secret!.secretName);
  const guide = readFileSync(join(PACKAGE_ROOT, "docs", "guide", "multi-node.md"), "utf8");
  assert.ok(guide.includes(`create secret generic ${key.name} --from-literal=${key.key}=`), key.name);
  assert.deepEqual(
    policy.spec!.ingress!.map(({ ports }) => ports!.map((open) => open.port)),
    [[port]],
  );
  assert.ok(manifests.configMap("pipelora-dashboard")["pipelora.json"]!.includes('"uid": "pipelora"'));
});
