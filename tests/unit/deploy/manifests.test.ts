import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { render, sourceHash, targets } from "../../../scripts/manifests.mjs";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { ALL_MANIFESTS, containersOf, type KubernetesObject, parseObjects, podOf } from "./rendered.ts";
import { unknownKeys, validateTypes } from "./schema.ts";

const byName = new Map(ALL_MANIFESTS.map((manifests) => [manifests.name, manifests]));

test("the rendered manifests are those of the sources (node scripts/manifests.mjs)", () => {
  for (const { name, text } of ALL_MANIFESTS) assert.equal(text.split("\n")[0], `# ${sourceHash()}`, name);
});

for (const [name, path] of targets()) {
  test(`kubectl kustomize renders ${name}`, (t) => {
    const text = render(path);
    if (text === null) return t.skip("no kubectl with kustomize 5 or later here; the rendered copy is checked");
    assert.deepEqual(parseObjects(text), byName.get(name)!.objects);
  });
}

test("every object has the types that the API's schema asks for", async () => {
  for (const { name, objects, jobs } of ALL_MANIFESTS) {
    assert.ok(objects.length >= 7, name);
    for (const object of [...objects, ...(jobs as KubernetesObject[])]) {
      await assert.doesNotReject(validateTypes(object), `${name}: ${object.kind} ${object.metadata.name}`);
    }
  }
  const job = structuredClone(byName.get("base")!.job("worker"));
  Object.assign(job.spec!, { parallelism: "two" });
  await assert.rejects(validateTypes(job as KubernetesObject), /parallelism/);
});

test("no object has a key that the API does not know", () => {
  const objects = ALL_MANIFESTS.flatMap(({ objects, jobs }) => [...objects, ...(jobs as KubernetesObject[])]);
  assert.equal(unknownKeys(objects, "all"), "");
  const job = structuredClone(byName.get("base")!.job("worker"));
  Object.assign(podOf(job).containers[0]!.readinessProbe!, { gprc: {} });
  assert.match(unknownKeys([job as KubernetesObject], "mistaken"), /gprc/);
});

test("pods run without privileges", () => {
  for (const { name, jobs } of ALL_MANIFESTS) {
    for (const job of jobs) {
      const pod = podOf(job);
      const where = `${name}: ${job.metadata!.name}`;
      assert.equal(pod.automountServiceAccountToken, false, where);
      assert.equal(pod.securityContext?.runAsNonRoot, true, where);
      assert.equal(pod.securityContext?.seccompProfile?.type, "RuntimeDefault", where);
      for (const { securityContext } of containersOf(pod)) {
        assert.equal(securityContext?.readOnlyRootFilesystem, true, where);
        assert.equal(securityContext?.allowPrivilegeEscalation, false, where);
        assert.deepEqual(securityContext?.capabilities, { drop: ["ALL"] }, where);
      }
      for (const { name: volume, secret } of pod.volumes ?? []) {
        if (secret !== undefined) assert.equal(secret.defaultMode, 0o440, `${where}: ${volume}`);
      }
    }
  }
});

test("images are the Dockerfile's targets, run by the user it makes", () => {
  const dockerfile = readFileSync(join(PACKAGE_ROOT, "deploy", "docker", "Dockerfile"), "utf8");
  const wanted: Readonly<Record<string, string>> = { base: "cpu", "cpu-demo": "cpu" };
  for (const { name, jobs } of ALL_MANIFESTS) {
    for (const pod of jobs.map(podOf)) {
      assert.ok(dockerfile.includes(`\nUSER ${pod.securityContext?.runAsUser}:${pod.securityContext?.runAsGroup}\n`));
      for (const { image, command } of containersOf(pod)) {
        assert.equal(image, `pipelora:${wanted[name] ?? "cuda"}`);
        // The image's entry point forwards signals and reaps; arguments begin with the program.
        assert.equal(command, undefined);
      }
    }
  }
});

test("GPUs are asked for where the overlay's name says so, and as many as its ranks", () => {
  const gpus = (name: string) => {
    const job = byName.get(name)!.job("worker");
    const limits = podOf(job).containers[0]!.resources?.limits ?? {};
    return Number(limits["nvidia.com/gpu"] ?? 0) * job.spec!.parallelism!;
  };
  assert.deepEqual(
    ALL_MANIFESTS.map(({ name }) => [name, gpus(name)]),
    [
      ["base", 0],
      ["cpu-demo", 0],
      ["jobset", 8],
      ["jobset-kueue", 8],
      ["kubeflow", 8],
      ["one-node-4-gpus", 4],
      ["two-nodes-8-gpus", 8],
    ],
  );
});
