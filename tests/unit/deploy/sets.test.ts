import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { folder } from "../../../scripts/manifests.mjs";
import {
  ALL_MANIFESTS,
  containersOf,
  type KubernetesObject,
  Manifests,
  parseObjects,
  podOf,
  setOf,
} from "./rendered.ts";
import { validateTypes } from "./schema.ts";

/** JobSet, Kueue and Kubeflow Trainer: what their schemas leave to their webhooks, and what must agree across objects. */

const queues = parseObjects(readFileSync(join(folder, "cluster", "kueue.yaml"), "utf8"));
const withSets = ALL_MANIFESTS.filter(({ objects }) => objects.some((object) => setOf(object) !== null));
const specOf = <T>(object: KubernetesObject) => (object as unknown as { spec: T }).spec;

test("three overlays make a set", () => {
  assert.deepEqual(
    withSets.map(({ name }) => name),
    ["jobset", "jobset-kueue", "kubeflow"],
  );
});

for (const manifests of withSets) {
  const object = manifests.objects.find((candidate) => setOf(candidate) !== null)!;
  const set = setOf(object)!;

  test(`${manifests.name}: the set is made of both Jobs, whole, and no Job stands beside it`, () => {
    assert.ok(manifests.objects.every(({ kind }) => kind !== "Job"));
    const plain = new Manifests("two-nodes-8-gpus");
    for (const role of ["coordinator", "worker"] as const) {
      const [mine, theirs] = [manifests.job(role).spec!, plain.job(role).spec!];
      assert.deepEqual([mine.completions, mine.backoffLimit], [theirs.completions, theirs.backoffLimit]);
      assert.deepEqual(podOf({ spec: mine } as never).volumes, podOf({ spec: theirs } as never).volumes);
    }
  });

  test(`${manifests.name}: names are names of hosts, and what a policy names is in the set`, () => {
    for (const job of manifests.jobs) {
      const last = (job.spec!.completions ?? 1) - 1;
      assert.match(`${job.metadata!.name}-${last}`, /^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$/);
      // Its pods keep the Services' names only if the set's controller leaves their subdomain alone.
      assert.equal(set.network.enableDNSHostnames, false);
    }
    const names = set.replicatedJobs.map(({ name }) => name);
    for (const name of set.successPolicy.targetReplicatedJobs) assert.ok(names.includes(name));
    assert.deepEqual(set.successPolicy.targetReplicatedJobs, ["coordinator"]);
    for (const { replicas } of set.replicatedJobs) assert.equal(replicas, 1);
    const [mistake] = set.failurePolicy.rules;
    assert.match(mistake!.name, /^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$/);
    // The reason that a Job fails with by its pod failure policy.
    assert.deepEqual([mistake!.action, mistake!.onJobFailureReasons], ["FailJobSet", ["PodFailurePolicy"]]);
  });
}

test("kubeflow: the TrainJob runs the runtime that is there, on as many nodes as the run waits for", () => {
  const manifests = new Manifests("kubeflow");
  const job = specOf<{ runtimeRef: { name: string; kind: string; apiGroup: string }; trainer: { numNodes: number } }>(
    manifests.object("TrainJob", "pipelora"),
  );
  const runtime = manifests.object<KubernetesObject>("TrainingRuntime", job.runtimeRef.name);
  assert.equal(`${job.runtimeRef.apiGroup}/v1alpha1 ${job.runtimeRef.kind}`, `${runtime.apiVersion} ${runtime.kind}`);
  const { mlPolicy } = specOf<{ mlPolicy: { numNodes: number } }>(runtime);
  const { completions } = manifests.job("worker").spec!;
  assert.deepEqual([job.trainer.numNodes, mlPolicy.numNodes], [completions, completions]);
  // Trainer finds its own Job by this label and the container's name.
  const trained = setOf(runtime)!.replicatedJobs.filter(
    ({ template }) => template.metadata?.labels?.["trainer.kubeflow.org/trainjob-ancestor-step"] === "trainer",
  );
  assert.deepEqual(
    trained.map(({ name, template }) => [
      name,
      containersOf(podOf(template as never)).map((container) => container.name),
    ]),
    [["node", ["node"]]],
  );
});

test("kueue: the set waits in a queue that is there, of resources that its pods ask for", async () => {
  const manifests = new Manifests("jobset-kueue");
  const set = manifests.object<KubernetesObject>("JobSet", "pipelora");
  const queue = set.metadata.labels?.["kueue.x-k8s.io/queue-name"];
  const local = specOf<{ clusterQueue: string }>(manifests.object("LocalQueue", queue!));
  for (const object of queues) await validateTypes(object);
  const cluster = queues.find(({ kind, metadata }) => kind === "ClusterQueue" && metadata.name === local.clusterQueue);
  const { resourceGroups } = specOf<{
    resourceGroups: { coveredResources: string[]; flavors: { name: string; resources: { name: string }[] }[] }[];
  }>(cluster!);
  const flavors = queues.filter(({ kind }) => kind === "ResourceFlavor").map(({ metadata }) => metadata.name);
  for (const { coveredResources, flavors: used } of resourceGroups)
    for (const { name, resources } of used) {
      assert.ok(flavors.includes(name));
      assert.deepEqual(
        resources.map((resource) => resource.name),
        coveredResources,
      );
    }
  const covered = resourceGroups.flatMap(({ coveredResources }) => coveredResources);
  for (const pod of manifests.jobs.map(podOf))
    for (const { resources } of containersOf(pod))
      for (const name of Object.keys(resources?.requests ?? {})) assert.ok(covered.includes(name), name);
});

test("a key or a value that a project's schema does not know is refused", async () => {
  const changed = (name: string, kind: string, change: (spec: Record<string, unknown>) => void) => {
    const object = structuredClone(new Manifests(name).object<KubernetesObject>(kind, "pipelora"));
    change(specOf(object));
    return validateTypes(object);
  };
  await assert.rejects(
    changed("jobset", "JobSet", (spec) => Object.assign(spec, { replicatedJob: [] })),
    /replicatedJob/,
  );
  await assert.rejects(
    changed("jobset", "JobSet", (spec) => Object.assign(spec["successPolicy"]!, { operator: "all" })),
    /operator/,
  );
  await assert.rejects(
    changed("kubeflow", "TrainJob", (spec) => Object.assign(spec["trainer"]!, { nodes: 2 })),
    /nodes/,
  );
  await assert.rejects(
    changed("kubeflow", "TrainingRuntime", (spec) => Object.assign(spec["mlPolicy"]!, { numNodes: "2" })),
    /numNodes/,
  );
  await assert.rejects(
    changed("jobset-kueue", "LocalQueue", (spec) => Object.assign(spec, { clusterQueue: "A B" })),
    /clusterQueue/,
  );
});
