import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Ajv2020, type AnySchemaObject, type ValidateFunction } from "ajv/dist/2020.js";
import { parse } from "yaml";
import { rendered } from "../../../scripts/manifests.mjs";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import type { KubernetesObject } from "./rendered.ts";

/** "networking.k8s.io/v1" is a module of kubernetes-models, core's "v1" too; the Prometheus operator's has a package of its own. */
const moduleOf = ({ apiVersion }: KubernetesObject) =>
  apiVersion.startsWith("monitoring.coreos.com/")
    ? `@kubernetes-models/prometheus-operator/${apiVersion}`
    : `kubernetes-models/${apiVersion}`;

/** Kinds that other projects define, by "apiVersion kind": from their published definitions (tests/fixtures/k8s/crds). */
const CUSTOM: ReadonlyMap<string, ValidateFunction> = new Map(
  readdirSync(join(rendered, "crds")).map((name) => {
    const { apiVersion, kind, schema } = parse(readFileSync(join(rendered, "crds", name), "utf8")) as {
      apiVersion: string;
      kind: string;
      schema: AnySchemaObject;
    };
    return [`${apiVersion} ${kind}`, compiled(schema)];
  }),
);

/** A check against a JSON schema for which a key that it does not name is a fault. */
export function compiled(schema: AnySchemaObject): ValidateFunction {
  return new Ajv2020({ strict: false, allErrors: true, validateFormats: false }).compile(closed(schema));
}

/** What an API server drops in silence, this schema refuses. */
function closed(schema: AnySchemaObject): AnySchemaObject {
  const each = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(each);
    return typeof value === "object" && value !== null ? closed(value) : value;
  };
  const result = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, each(value)]));
  const open = schema["x-kubernetes-preserve-unknown-fields"] === true || schema["additionalProperties"] !== undefined;
  return typeof schema["properties"] === "object" && schema["type"] === "object" && !open
    ? { ...result, additionalProperties: false }
    : result;
}

const customOf = ({ apiVersion, kind }: KubernetesObject) => CUSTOM.get(`${apiVersion} ${kind}`);

/** Throws with every fault that the check finds. */
export function check(validate: ValidateFunction, value: unknown): void {
  if (!validate(value))
    throw new Error(
      validate
        .errors!.map((error) => `${error.instancePath} ${error.message} ${JSON.stringify(error.params)}`)
        .join("; "),
    );
}

/** Validates against the API's JSON schema: types, enumerations, ranges, required keys. Throws with the path of the fault. */
export async function validateTypes(object: KubernetesObject): Promise<void> {
  const custom = customOf(object);
  if (custom !== undefined) return check(custom, object);
  const models = (await import(moduleOf(object))) as Record<string, new (data: unknown) => { validate(): void }>;
  const Model = models[object.kind];
  if (Model === undefined) throw new Error(`${object.apiVersion} has no ${object.kind}`);
  new Model(object).validate();
}

/**
 * Keys that the API does not know, which its JSON schema lets pass: each object is compiled as a literal of its type, where an
 * excess property is an error. Returns the compiler's messages, empty when all is well.
 */
export function unknownKeys(all: readonly KubernetesObject[], name: string): string {
  // The others' kinds have a schema that refuses them.
  const objects = all.filter((object) => customOf(object) === undefined);
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
