import { spawnSync } from "node:child_process";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { clear, type Failure, fuzz, type TargetResult } from "./fuzz.ts";
import { TARGETS } from "./targets/index.ts";

// npm run fuzz -- [--runs N] [--seed S] [--target NAME] [--replay FOLDER]
const { values } = parseArgs({
  options: {
    runs: { type: "string", default: "10000" },
    seed: { type: "string", default: String(Date.now()) },
    target: { type: "string" },
    replay: { type: "string" },
  },
});
const chosen = TARGETS.filter(({ name }) => values.target === undefined || name === values.target);
const runs = Number(values.runs);
if (chosen.length === 0 || !Number.isInteger(runs) || runs < 1) {
  console.error(`expected --runs of a whole number and a --target of ${TARGETS.map(({ name }) => name).join(", ")}`);
  process.exit(1);
}

if (values.replay !== undefined) {
  if (values.target === undefined) throw new Error("--replay FOLDER needs --target NAME");
  const child = fileURLToPath(new URL("./child.ts", import.meta.url));
  const flags = ["--import", "tsx", child, values.target, values.seed, "replay", "0", values.replay];
  process.exit(spawnSync(process.execPath, flags, { stdio: "inherit" }).status ?? 1);
}

const folder = mkdtempSync(join(tmpdir(), "pipelora-fuzz-"));
const results: TargetResult[] = [];
console.log(`seed ${values.seed}, ${runs} inputs, failures go to ${folder}`);
for (const [index, { name }] of chosen.entries()) {
  const inputs = Math.floor(((index + 1) * runs) / chosen.length) - Math.floor((index * runs) / chosen.length);
  const began = performance.now();
  const result = await fuzz({ target: name, seed: values.seed, inputs, folder });
  results.push(result);
  const codes = [...result.codes].sort(([, a], [, b]) => b - a).map(([code, count]) => `${code} ${count}`);
  const kinds = (["crash", "hang", "memory"] as const).map(
    (kind) => `${result.failures.filter((failure) => failure.kind === kind).length} ${kind}`,
  );
  console.log(
    `${name}: ${inputs} inputs in ${((performance.now() - began) / 1000).toFixed(1)} s, ${kinds.join(", ")}; slowest ${(result.slowestMs / 1000).toFixed(2)} s, peak ${Math.round(result.peakBytes / 2 ** 20)} MiB; taken ${result.taken}${codes.length > 0 ? `, ${codes.join(", ")}` : ""}`,
  );
  for (const line of told(result.failures)) console.log(line);
}
clear(folder, results);
process.exit(results.some(({ failures }) => failures.length > 0) ? 1 : 0);

/** One line for failures of one kind and place, with the folder of the first. */
function told(failures: readonly Failure[]): string[] {
  const alike = new Map<string, Failure[]>();
  for (const failure of failures) {
    const [first = "", second = ""] = failure.detail.split("\n");
    const key = `${failure.kind}: ${first.replace(/\d+/g, "N").slice(0, 30)} ${second.trim().slice(0, 120)}`;
    alike.set(key, [...(alike.get(key) ?? []), failure]);
  }
  return [...alike].map(
    ([key, same]) =>
      `  ${same.length} × ${key}\n    ${same[0]!.folder}: ${same[0]!.detail.split("\n")[0]?.slice(0, 300)}`,
  );
}
