import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { PipeloraError } from "../../src/common/errors.ts";
import { Random } from "./random.ts";
import type { FuzzTarget } from "./target.ts";
import { TARGETS } from "./targets/index.ts";

/** What a batch's process tells its parent. */
export type Report =
  | { readonly begin: number }
  | { readonly end: number; readonly ms: number; readonly code: string | null; readonly fault: string | null };

const [name, seed, from, to, folder] = process.argv.slice(2) as [string, string, string, string, string];
const found = TARGETS.find((candidate) => candidate.name === name);
if (found === undefined) throw new Error(`no target "${name}": ${TARGETS.map((target) => target.name).join(", ")}`);
const target: FuzzTarget = found;
const tell = (report: Report) => process.send?.(report);

/** What is thrown where nobody awaits it belongs to the input at hand. */
let stray: unknown = null;
process.on("uncaughtException", (thrown) => {
  stray ??= thrown;
});
process.on("unhandledRejection", (thrown) => {
  stray ??= thrown;
});

const describe = (thrown: unknown) => (thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown));

async function outcome(dir: string): Promise<{ code: string | null; fault: string | null }> {
  try {
    await target.check(dir);
    await new Promise((resolve) => setImmediate(resolve));
    return { code: null, fault: stray === null ? null : `nobody awaited: ${describe(stray)}` };
  } catch (thrown) {
    if (thrown instanceof PipeloraError && thrown.code !== "PL_INTERNAL" && stray === null) {
      return { code: thrown.code, fault: null };
    }
    return { code: null, fault: describe(stray ?? thrown) };
  }
}

/** An earlier failure: its folder is checked as it lies there. */
if (from === "replay") {
  const result = await outcome(folder);
  console.log(result.fault ?? result.code ?? "taken");
  process.exit(result.fault === null ? 0 : 1);
}

for (let number = Number(from); number < Number(to); number++) {
  const dir = join(folder, `${name}-${seed}-${number}`);
  mkdirSync(dir, { recursive: true });
  try {
    await target.make(new Random(seed, name, number), dir);
  } catch (thrown) {
    console.error(`input ${number} could not be made: ${describe(thrown)}`);
    process.exit(3);
  }
  stray = null;
  tell({ begin: number });
  const began = performance.now();
  const { code, fault } = await outcome(dir);
  tell({ end: number, ms: performance.now() - began, code, fault });
  if (fault === null) rmSync(dir, { recursive: true, force: true });
}
process.exit(0);
