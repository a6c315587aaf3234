// npm run faults -- [--elastic] [--runs N] [--seed S] [--only K] [--jobs J] [--from K] [--report FILE] [--keep]
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { coordinator } from "../support/processes/cli.ts";
import { drawCase } from "./drawing.ts";
import { drawElastic } from "./elastic-drawing.ts";
import { describe, outcomeOf, summary } from "./report.ts";
import { describeElastic, summariseElastic } from "./report-elastic.ts";
import { type Common, type Result, runCase } from "./run-case.ts";
import { type ElasticResult, runElastic } from "./run-elastic.ts";
import { kindFlags, makeInputs } from "./settings.ts";
import { mounting } from "./small-disk.ts";
import type { Kind } from "./space.ts";

interface Wanted {
  readonly seed: number;
  /** Elastic runs whose workers join, leave and die, in place of one fault a run. */
  readonly elastic: boolean;
  readonly numbers: readonly number[];
  /** Runs at the same time. */
  readonly jobs: number;
  /** Where results go as JSON; null: nowhere. */
  readonly report: string | null;
  /** Whether the folders of good runs stay too. */
  readonly keep: boolean;
}

function wanted(argv: readonly string[]): Wanted {
  const string = { type: "string" } as const;
  const { values } = parseArgs({
    args: [...argv],
    options: {
      runs: string,
      seed: string,
      only: string,
      from: string,
      jobs: string,
      report: string,
      keep: { type: "boolean" },
      elastic: { type: "boolean" },
    },
  });
  const whole = (name: Exclude<keyof typeof values, "keep" | "elastic">, otherwise: number): number => {
    const value = Number(values[name] ?? otherwise);
    if (!Number.isSafeInteger(value) || value < 0)
      throw new Error(`--${name} takes a whole number, not ${values[name]}`);
    return value;
  };
  const from = whole("from", 0);
  const numbers =
    values.only === undefined
      ? Array.from({ length: whole("runs", 20) }, (_, index) => from + index)
      : [whole("only", 0)];
  const seed = whole("seed", Math.floor(Math.random() * 1e6));
  return {
    seed,
    elastic: values.elastic ?? false,
    numbers,
    jobs: Math.max(1, whole("jobs", 1)),
    report: values.report ?? null,
    keep: values.keep ?? false,
  };
}

/** Runs without a fault, one a kind, made when they are first asked for. */
function calmRuns(folder: string, common: Omit<Common, "calm">): Common["calm"] {
  const made = new Map<Kind, Promise<string>>();
  const make = async (kind: Kind) => {
    const output = join(folder, `calm-${kind.replaceAll(" ", "-")}`);
    const { code, stderr } = await coordinator([
      ...kindFlags(kind, common.inputs),
      "--workers",
      "2",
      "--output-dir",
      output,
    ]);
    if (code !== 0) throw new Error(`the undisturbed run of "${kind}" ended with ${code}: ${stderr}`);
    return output;
  };
  return (kind) => {
    const run = made.get(kind) ?? make(kind);
    made.set(kind, run);
    return run;
  };
}

/** The first SIGINT or SIGTERM lets the runs under way end, and what there is be reported; the second ends at once. */
function stopEarly(stop: () => void): void {
  for (const [signal, code] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    process.once(signal, () => {
      stop();
      process.once(signal, () => process.exit(code));
    });
  }
}

/** How runs of one space are drawn, made and told of. */
interface Space<R extends { readonly wrong: readonly string[] }> {
  /** Null: it can't be made here, which was said. */
  run(number: number, folder: string): Promise<R | null>;
  describe(result: R): string;
  summary(results: readonly R[]): string;
  /** As the report's JSON has it. */
  told(result: R): object;
}

function oneFault({ seed, keep }: Wanted, common: Common): Space<Result> {
  const canMount = mounting() === "here";
  return {
    run: async (number, folder) => {
      const drawn = drawCase(seed, number);
      if (drawn.fault !== "disk full" || canMount) return runCase(drawn, common, folder, keep);
      process.stdout.write(`${number}: left out: no file system can be mounted here, so no disk can be filled\n`);
      return null;
    },
    describe,
    summary,
    told: (result) => ({ ...result, outcome: outcomeOf(result) }),
  };
}

function elasticRuns({ seed, keep }: Wanted, common: Common): Space<ElasticResult> {
  return {
    run: (number, folder) => runElastic(drawElastic(seed, number), common, folder, keep),
    describe: describeElastic,
    summary: summariseElastic,
    told: (result) => result,
  };
}

async function main(argv: readonly string[]): Promise<number> {
  const asked = wanted(argv);
  const folder = mkdtempSync(join(tmpdir(), "pipelora-faults-"));
  const inputs = await makeInputs(folder);
  const common: Common = { inputs, calm: calmRuns(folder, { inputs }) };
  return asked.elastic ? play(asked, folder, elasticRuns(asked, common)) : play(asked, folder, oneFault(asked, common));
}

async function play<R extends { readonly wrong: readonly string[] }>(
  { seed, elastic, numbers, jobs, report, keep }: Wanted,
  folder: string,
  space: Space<R>,
): Promise<number> {
  const results: R[] = [];
  const waiting = [...numbers];
  process.stdout.write(`seed ${seed}, ${numbers.length} runs, in ${folder}\n`);
  stopEarly(() => waiting.splice(0));
  const work = async () => {
    for (let number = waiting.shift(); number !== undefined; number = waiting.shift()) {
      const own = join(folder, `run-${number}`);
      const result = await space.run(number, own);
      if (result === null) continue;
      results.push(result);
      process.stdout.write(`${space.describe(result)}\n`);
      if (result.wrong.length > 0) {
        const again = `npm run faults -- ${elastic ? "--elastic " : ""}--seed ${seed} --only ${number}`;
        process.stdout.write(`   kept: ${own}; again: ${again}\n`);
      }
    }
  };
  await Promise.all(Array.from({ length: jobs }, work));
  process.stdout.write(`\n${space.summary(results)}\n`);
  if (report !== null) writeFileSync(report, JSON.stringify(results.map(space.told)));
  const failed = results.some(({ wrong }) => wrong.length > 0);
  if (!failed && !keep) rmSync(folder, { recursive: true, force: true });
  return failed ? 1 : 0;
}

const IN_NAMESPACE = "FAULTS_IN_NAMESPACE";
const argv = process.argv.slice(2);
if (mounting() === "in a namespace" && process.env[IN_NAMESPACE] === undefined) {
  // Only there can a user fill a disk.
  const again = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  const { status } = spawnSync("unshare", ["-rm", ...again], {
    stdio: "inherit",
    env: { ...process.env, [IN_NAMESPACE]: "1" },
  });
  process.exitCode = status ?? 1;
} else {
  process.exitCode = await main(argv).catch((error: Error) => {
    process.stderr.write(`${error.message}\n`);
    return 1;
  });
}
