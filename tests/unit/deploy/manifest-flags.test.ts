import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { PipeloraError } from "../../../src/common/errors.ts";
import { exitCodeOf, exitCodeOfSignal } from "../../../src/common/exit-codes.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import type { Config } from "../../../src/config/options.ts";
import { LIVENESS } from "../../../src/rpc/health.ts";
import { mountOf, parseContainer } from "./command-lines.ts";
import { ALL_MANIFESTS, containersOf, environmentOf, type Manifests, podOf } from "./rendered.ts";

const guide = readFileSync(join(PACKAGE_ROOT, "docs", "guide", "multi-node.md"), "utf8");
const portOf = (address: string | null) => Number(/:(\d+)$/.exec(address ?? "")?.[1]);

interface Run {
  readonly coordinator: Config;
  readonly worker: Config;
}

/** Both programs' configurations, as their containers would parse them. */
async function parsedRun(manifests: Manifests): Promise<Run> {
  const main = async (role: "coordinator" | "worker") => {
    const pod = podOf(manifests.job(role));
    return (await parseContainer(manifests, pod, pod.containers[0]!)).config;
  };
  return { coordinator: await main("coordinator"), worker: await main("worker") };
}

for (const manifests of ALL_MANIFESTS) {
  const { name } = manifests;
  const coordinatorJob = manifests.job("coordinator");
  const workerJob = manifests.job("worker");

  test(`${name}: the program takes every command line`, async () => {
    for (const pod of manifests.jobs.map(podOf)) {
      for (const container of containersOf(pod)) await parseContainer(manifests, pod, container);
    }
  });

  test(`${name}: a renamed flag is refused`, async () => {
    const pod = structuredClone(podOf(workerJob));
    const [container] = pod.containers;
    container!.args = container!.args!.map((arg) => arg.replace("--join-timeout", "--join-deadline"));
    await assert.rejects(parseContainer(manifests, pod, container!), /--join-deadline/);
  });

  test(`${name}: the processes find each other`, async () => {
    const { coordinator, worker } = await parsedRun(manifests);
    const control = manifests.service("pipelora-coordinator");
    assert.equal(worker.coordinator, `${control.metadata!.name}:${control.spec!.ports![0]!.port}`);
    assert.equal(portOf(worker.coordinator), portOf(coordinator.listen));
    assert.ok(
      podOf(coordinatorJob).containers[0]!.ports!.some((port) => port.containerPort === portOf(coordinator.listen)),
    );
    const workers = manifests.service("pipelora-workers");
    assert.equal(podOf(workerJob).subdomain, workers.metadata!.name);
    const [container] = podOf(workerJob).containers;
    const address = container!.env!.find(({ name: variable }) => variable === "POD_IP")?.valueFrom?.fieldRef?.fieldPath;
    if (container!.args!.includes("--advertise=$(POD_IP)")) assert.equal(address, "status.podIP");
    else assert.equal(worker.advertise, `${workerJob.metadata!.name}-0.${workers.metadata!.name}`);
    assert.match(worker.node_name!, /0$/);
    for (const [service, job] of [
      [control, coordinatorJob],
      [workers, workerJob],
    ] as const) {
      assert.equal(service.spec!.clusterIP, "None");
      assert.equal(service.spec!.publishNotReadyAddresses, true);
      const labels = job.spec!.template.metadata!.labels!;
      for (const [key, value] of Object.entries(service.spec!.selector!)) assert.equal(labels[key], value);
    }
    assert.equal(workerJob.spec!.completionMode, "Indexed");
    assert.deepEqual(
      [workerJob.spec!.completions, workerJob.spec!.parallelism],
      [coordinator.nnodes, coordinator.nnodes],
    );
  });

  test(`${name}: probes ask where the health service answers`, async () => {
    const run = await parsedRun(manifests);
    for (const [config, job] of [
      [run.coordinator, coordinatorJob],
      [run.worker, workerJob],
    ] as const) {
      const { startupProbe, livenessProbe, readinessProbe, ports } = podOf(job).containers[0]!;
      const port = portOf(config.health_listen);
      assert.ok(ports!.some(({ containerPort }) => containerPort === port));
      assert.deepEqual(startupProbe?.grpc, { port, service: LIVENESS });
      assert.deepEqual(livenessProbe?.grpc, { port, service: LIVENESS });
      assert.deepEqual(readinessProbe?.grpc, { port });
    }
  });

  test(`${name}: files lie where volumes are mounted; what is written, where it may be`, async () => {
    const run = await parsedRun(manifests);
    for (const [config, job] of [
      [run.coordinator, coordinatorJob],
      [run.worker, workerJob],
    ] as const) {
      const pod = podOf(job);
      const at = (path: string) => mountOf(pod, pod.containers[0]!, path);
      assert.equal(config.insecure, false);
      for (const [path, key] of [
        [config.tls_ca, "ca.crt"],
        [config.tls_cert, "tls.crt"],
        [config.tls_key, "tls.key"],
        [config.join_token_file, "token"],
      ] as const) {
        const mounted = at(path!);
        assert.equal(mounted?.inside, key);
        assert.ok(mounted?.readOnly);
        const secret = mounted?.volume.secret?.secretName;
        assert.ok(guide.includes(secret!), `the guide makes ${secret}`);
      }
      assert.equal(at(environmentOf(pod.containers[0]!).get("HOME")!)?.readOnly, false);
      for (const { persistentVolumeClaim } of pod.volumes ?? []) {
        const claim = persistentVolumeClaim?.claimName;
        if (claim === undefined || manifests.has("PersistentVolumeClaim", claim)) continue;
        assert.ok(guide.includes(claim), `the guide asks for ${claim}`);
      }
      for (const { configMap } of pod.volumes ?? []) {
        if (configMap?.name !== undefined) assert.ok(manifests.has("ConfigMap", configMap.name));
      }
    }
    const { model, dataset, output_dir, save_on_each_node } = run.coordinator;
    for (const job of [coordinatorJob, workerJob]) assert.ok(mountOf(podOf(job), podOf(job).containers[0]!, model!));
    const coordinator = podOf(coordinatorJob);
    const data = mountOf(coordinator, coordinator.containers[0]!, dataset as string);
    if (data?.volume.configMap !== undefined) assert.ok(manifests.configMap(data.volume.configMap.name!)[data.inside]);
    assert.ok(data !== null);
    const writers = save_on_each_node ? [coordinatorJob, workerJob] : [coordinatorJob];
    for (const job of writers) {
      const output = mountOf(podOf(job), podOf(job).containers[0]!, output_dir!);
      assert.equal(output?.readOnly, false, `${job.metadata!.name} writes ${output_dir}`);
    }
  });

  test(`${name}: Jobs act on exit codes as the table says, and leave time to save`, () => {
    const mistake = exitCodeOf(new PipeloraError("PL_CONFIG_INVALID", ""));
    const temporary = exitCodeOf(new PipeloraError("PL_WORKER_LOST", ""));
    for (const job of [coordinatorJob, workerJob]) {
      const { podFailurePolicy, podReplacementPolicy, backoffLimit } = job.spec!;
      const pod = podOf(job);
      const actionOn = (code: number) =>
        podFailurePolicy!.rules.find(({ onExitCodes }) => onExitCodes?.values.includes(code))?.action ?? "Count";
      assert.deepEqual([exitCodeOfSignal("SIGTERM"), mistake, temporary].map(actionOn), ["Ignore", "FailJob", "Count"]);
      // A node that is drained is nobody's mistake, whatever code its pods end with.
      assert.equal(podFailurePolicy!.rules[0]!.onPodConditions![0]!.type, "DisruptionTarget");
      for (const { onExitCodes } of podFailurePolicy!.rules) {
        if (onExitCodes !== undefined) assert.equal(onExitCodes.containerName, pod.containers[0]!.name);
      }
      assert.ok(backoffLimit! > 0);
      // What a pod failure policy asks for; and one pod at most may hold a rank.
      assert.equal(pod.restartPolicy, "Never");
      assert.equal(podReplacementPolicy, "Failed");
      assert.ok(pod.terminationGracePeriodSeconds! >= 60);
    }
  });

  test(`${name}: a pod's second life resumes`, async () => {
    const { coordinator } = await parsedRun(manifests);
    assert.equal(coordinator.resume_from_checkpoint, "auto");
  });

  test(`${name}: only the run's own pods reach its ports`, async () => {
    const { coordinator, worker } = await parsedRun(manifests);
    const policies = manifests.objects.filter(({ kind }) => kind === "NetworkPolicy") as unknown as {
      spec: { policyTypes: string[]; ingress?: { ports: { port: number; endPort?: number }[]; from: object[] }[] };
    }[];
    const open = policies
      .flatMap(({ spec }) => spec.ingress ?? [])
      .flatMap(({ ports, from }) => {
        assert.ok(from.length > 0);
        return ports;
      });
    const reachable = (port: number) =>
      open.some((range) => port >= range.port && port <= (range.endPort ?? range.port));
    assert.ok(reachable(portOf(coordinator.listen)));
    assert.ok(!reachable(portOf(coordinator.health_listen)) && !reachable(portOf(worker.health_listen)));
    assert.deepEqual([...new Set(policies.flatMap(({ spec }) => spec.policyTypes))].sort(), ["Egress", "Ingress"]);
  });
}
