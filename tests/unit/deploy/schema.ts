import { spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import type { KubernetesObject } from "./rendered.ts";

/** "networking.k8s.io/v1" is a module of kubernetes-models, core's "v1" too; the Prometheus operator's has a package of its own. */
const moduleOf = ({ apiVersion }: KubernetesObject) =>
  apiVersion.startsWith("monitoring.coreos.com/")
    ? `@kubernetes-models/prometheus-operator/${apiVersion}`
    : `kubernetes-models/${apiVersion}`;

/** Validates against the API's JSON schema: types, enumerations, ranges, required keys. Throws with the path of the fault. */
export async function validateTypes(object: KubernetesObject): Promise<void> {
  const models = (await import(moduleOf(object))) as Record<string, new (data: unknown) => { validate(): void }>;
  const Model = models[object.kind];
  if (Model === undefined) throw new Error(`${object.apiVersion} has no ${object.kind}`);
  new Model(object).validate();
}

/**
 * Keys that the API does not know, which its JSON schema lets pass: each object is compiled as a literal of its type, where an
 * excess property is an error. Returns the compiler's messages, empty when all is well.
 */
export function unknownKeys(objects: readonly KubernetesObject[], name: string): string {
  const folder = join(PACKAGE_ROOT, "build", "manifests", name);
  mkdirSync(folder, { recursive: true });
  const lines = objects.map(
    (object, index) =>
      `import type { I${object.kind} as T${index} } from ${JSON.stringify(moduleOf(object))};\n` +
      `export const o${index}: T${index} = ${JSON.stringify(object, null, 1)};\n`,
  );
  writeFileSync(join(folder, "objects.ts"), lines.join("\n"));
  const compiler = join(PACKAGE_ROOT, "node_modules", "typescript", "bin", "tsc");
  const options = [
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--types",
    "",
    "--module",
    "nodenext",
    "--target",
    "es2023",
  ];
  const result = spawnSync(process.execPath, [compiler, "--ignoreConfig", ...options, "objects.ts"], {
    cwd: folder,
    encoding: "utf8",
  });
  rmSync(folder, { recursive: true });
  return result.stdout + result.stderr;
}
