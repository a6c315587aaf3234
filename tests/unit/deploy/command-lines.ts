import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Parsed, parseCoordinator, parseWorker } from "../../../src/cli/parse.ts";
import { type Container, expandedArgs, type Manifests, type PodSpec } from "./rendered.ts";

export type VolumeSource = NonNullable<PodSpec["volumes"]>[number];

export interface MountedFile {
  readonly volume: VolumeSource;
  readonly readOnly: boolean;
  /** Path inside the volume. */
  readonly inside: string;
}

/** Where a path of a container comes from; null: from its image. */
export function mountOf(pod: PodSpec, container: Container, path: string): MountedFile | null {
  const mounts = (container.volumeMounts ?? []).filter(
    ({ mountPath }) => path === mountPath || path.startsWith(`${mountPath}/`),
  );
  const mount = mounts.sort((a, b) => b.mountPath.length - a.mountPath.length)[0];
  if (mount === undefined) return null;
  const volume = pod.volumes?.find(({ name }) => name === mount.name);
  if (volume === undefined) throw new Error(`${container.name} mounts ${mount.name}, which is no volume of the pod`);
  const below = path.slice(mount.mountPath.length).replace(/^\//, "");
  return { volume, readOnly: mount.readOnly ?? false, inside: [mount.subPath, below].filter(Boolean).join("/") };
}

/** Parses a container's command line with the program's own parser; --config is read from the manifests' ConfigMap. */
export async function parseContainer(manifests: Manifests, pod: PodSpec, container: Container): Promise<Parsed> {
  const [program, ...args] = expandedArgs(container);
  const folder = mkdtempSync(join(tmpdir(), "pipelora-"));
  try {
    const local = args.map((arg, index) => {
      const path = /^--config=(.*)$/.exec(arg)?.[1];
      if (path === undefined) return arg;
      const mounted = mountOf(pod, container, path);
      const text = manifests.configMap(mounted?.volume.configMap?.name ?? "")[mounted!.inside];
      if (text === undefined) throw new Error(`${container.name}: ${path} is no file of a ConfigMap`);
      const copy = join(folder, `${index}.yaml`);
      writeFileSync(copy, text);
      return `--config=${copy}`;
    });
    const parsed = await (program === "worker" ? parseWorker(local) : parseCoordinator(local));
    if (parsed === null) throw new Error(`${container.name} only prints help`);
    return parsed;
  } finally {
    rmSync(folder, { recursive: true });
  }
}
