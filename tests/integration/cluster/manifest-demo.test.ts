import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { coordinator, outcome, startCoordinator, startWorker, temporaryFolder } from "../../support/processes/cli.ts";
import { probeUntil } from "../../support/processes/health-client.ts";
import { freePort } from "../../support/processes/ports.ts";
import { type Container, expandedArgs, Manifests, type PodSpec, podOf } from "../../unit/deploy/rendered.ts";

/** deploy/k8s's CPU demo as its pods would run it, with folders in place of volumes and loopback in place of the cluster's network. */

const demo = new Manifests("cpu-demo");

/** What a cluster gives a pod. */
interface Pod {
  readonly spec: PodSpec;
  readonly folder: string;
  /** Folders of secrets, by name. */
  readonly secrets: Readonly<Record<string, string>>;
  /** What stands in its arguments for addresses of the cluster. */
  readonly addresses: readonly (readonly [string, string])[];
}

/** Makes a container's mounts and returns text with their paths, and the addresses, replaced by local ones. */
function localised(pod: Pod, { volumeMounts = [] }: Container): (text: string) => string {
  const places = volumeMounts.map(({ name, mountPath, subPath = "" }) => {
    const volume = pod.spec.volumes!.find((candidate) => candidate.name === name)!;
    const folder = pod.secrets[volume.secret?.secretName ?? ""] ?? join(pod.folder, name);
    mkdirSync(folder, { recursive: true });
    return { volume, folder, mountPath, place: join(folder, subPath) };
  });
  const replace = (text: string) => {
    const local = new Map([...places.map(({ mountPath, place }) => [mountPath, place] as const), ...pod.addresses]);
    const longestFirst = [...local.keys()].sort((one, other) => other.length - one.length);
    // As the value of a flag, or of a key in YAML.
    const values = new RegExp(`(?<==|: )(${longestFirst.join("|").replaceAll(".", "\\.")})`, "g");
    return text.replaceAll(values, (found) => local.get(found)!);
  };
  for (const { volume, folder } of places) {
    const files = volume.configMap === undefined ? {} : demo.configMap(volume.configMap.name!);
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(join(folder, name), replace(text));
    }
  }
  return replace;
}

/** Runs the init containers, then starts the main one. */
async function start(pod: Pod) {
  for (const container of pod.spec.initContainers ?? []) {
    const args = expandedArgs(container).map(localised(pod, container));
    const { code, stderr } = await coordinator(args.slice(1));
    assert.equal(code, 0, stderr);
  }
  const [container] = pod.spec.containers;
  const [program, ...args] = expandedArgs(container!).map(localised(pod, container!));
  return outcome(program === "worker" ? startWorker(args) : startCoordinator(args));
}

test("the CPU demo's command lines train, over mTLS, and answer probes", async (t) => {
  const root = temporaryFolder(t);
  const certs = join(root, "certs");
  assert.equal((await coordinator(["certs", "--output-dir", certs, "--names", "coordinator,worker"])).code, 0);
  mkdirSync(join(root, "join"));
  writeFileSync(join(root, "join", "token"), "of this test");
  const secrets = {
    "pipelora-coordinator-tls": join(certs, "coordinator"),
    "pipelora-worker-tls": join(certs, "worker"),
    "pipelora-join": join(root, "join"),
  };
  const control = await freePort();
  const health = await freePort();
  const server = start({
    spec: podOf(demo.job("coordinator")),
    folder: join(root, "coordinator"),
    secrets,
    addresses: [
      ["0.0.0.0:7443", `127.0.0.1:${control}`],
      ["0.0.0.0:8081", `127.0.0.1:${health}`],
    ],
  });
  const job = demo.job("worker");
  const workers = Array.from({ length: job.spec!.completions! }, async (_, index) => {
    const spec = structuredClone(podOf(job));
    spec.containers[0]!.env!.find(({ name }) => name === "POD_INDEX")!.value = String(index);
    return start({
      spec,
      folder: join(root, `worker-${index}`),
      secrets,
      addresses: [
        ["pipelora-coordinator:7443", `127.0.0.1:${control}`],
        [`pipelora-worker-${index}.pipelora-workers`, "127.0.0.1"],
        ["0.0.0.0:8081", `127.0.0.1:${await freePort()}`],
        ["0.0.0.0", "127.0.0.1"],
      ],
    });
  });
  const ended = server.then(({ stderr }) => stderr);
  assert.equal(await Promise.race([probeUntil(`127.0.0.1:${health}`, "SERVING"), ended]), "SERVING");
  for (const { code, stderr } of await Promise.all([server, ...workers])) assert.equal(code, 0, stderr);
  const output = join(root, "coordinator", "output", "counting");
  assert.ok(existsSync(join(output, "adapter_model.safetensors")));
  const { log_history } = JSON.parse(readFileSync(join(output, "trainer_state.json"), "utf8")) as {
    log_history: { loss?: number }[];
  };
  const losses = log_history.flatMap(({ loss }) => loss ?? []);
  assert.ok(losses[0]! > 4 && losses.at(-1)! < 0.2, losses.join(", "));
});
