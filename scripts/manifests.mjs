// Renders deploy/k8s with `kubectl kustomize` into tests/fixtures/k8s, so that tests can read the manifests on machines without
// kubectl. Each file's first line holds the hash of what it was rendered from.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { fail, root } from "./lib.mjs";

export const folder = join(root, "deploy", "k8s");
export const rendered = join(root, "tests", "fixtures", "k8s");

/** What can be applied: the base and every overlay, by its name. */
export function targets() {
  const overlays = readdirSync(join(folder, "overlays")).sort();
  return [["base", join(folder, "base")], ...overlays.map((name) => [name, join(folder, "overlays", name)])];
}

/** Hash of every file of deploy/k8s. */
export function sourceHash() {
  const hash = createHash("sha256");
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath ?? entry.path, entry.name)).sort();
  for (const path of paths)
    hash
      .update(`${relative(folder, path)}\0`)
      .update(readFileSync(path))
      .update("\0");
  return hash.digest("hex");
}

/** null where there is no kubectl, or one whose kustomize is older than 5. */
export function render(path) {
  const version = spawnSync("kubectl", ["version", "--client", "--output=json"], { encoding: "utf8" });
  if (version.status !== 0) return null;
  if (!/^v([5-9]|\d\d)\./.test(JSON.parse(version.stdout).kustomizeVersion ?? "")) return null;
  const result = spawnSync("kubectl", ["kustomize", path], { encoding: "utf8" });
  if (result.status !== 0) throw new Error(`kubectl kustomize ${relative(root, path)}: ${result.stderr}`);
  return result.stdout;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const [name, path] of targets()) {
    const text = render(path);
    if (text === null) fail("kubectl with kustomize 5 or later is needed to render deploy/k8s");
    writeFileSync(join(rendered, `${name}.yaml`), `# ${sourceHash()}\n${text}`);
  }
}
