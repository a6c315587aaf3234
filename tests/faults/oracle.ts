import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { RUN_RECORDS } from "../support/processes/run-records.ts";
import { lastWords } from "./ends.ts";
import { commandLine, type Processes, type Program } from "./processes.ts";
import { JOIN_TIMEOUT_S, LAST_STEP } from "./settings.ts";
import type { Kind } from "./space.ts";

const ADAPTER = "adapter_model.safetensors";
const STATE = "trainer_state.json";
const CHECKPOINT = /^checkpoint-\d+$/;
/** A run that could not be resumed and was started anew has put these aside. */
const SET_ASIDE = /^checkpoint-\d+\.earlier(-\d+)?$/;
/** The longest that a process may outlive the run: it waits for another coordinator, then ends with 75. */
const PATIENCE_MS = (JOIN_TIMEOUT_S + 5) * 1000;
/** How long things took. */
const TIMES = /^(train|eval)_(runtime|samples_per_second|steps_per_second)$/;
const STACK = /^\s+at .*:\d+:\d+\)?$|node:internal|PL_INTERNAL|Unhandled|Uncaught/m;

/** What is wrong with a run that ended with code 0 beside the undisturbed one; empty: nothing. */
export function compareRuns(kind: Kind, output: string, calm: string): string[] {
  const wrong: string[] = [];
  const bytes = (dir: string) => readFileSync(join(dir, ADAPTER));
  if (!existsSync(join(output, ADAPTER))) return [`no ${ADAPTER}`];
  if (!bytes(output).equals(bytes(calm))) wrong.push("other bits in the adapter");
  const [state, expected] = [stateWithoutTimes(output), stateWithoutTimes(calm)];
  if (state !== expected) wrong.push(`another ${STATE}: ${firstDifference(state, expected)}`);
  return [...wrong, ...compareFiles(kind, output, calm)];
}

/** Names in the folder: those of the undisturbed run, and whole checkpoints of this one. */
function compareFiles(kind: Kind, output: string, calm: string): string[] {
  const wrong: string[] = [];
  const expected = readdirSync(calm);
  const found = readdirSync(output);
  for (const name of expected.filter(
    (name) => !CHECKPOINT.test(name) && !RUN_RECORDS.includes(name) && !found.includes(name),
  )) {
    wrong.push(`file missing: ${name}`);
  }
  for (const name of found) {
    if (!expected.includes(name) && !CHECKPOINT.test(name) && !SET_ASIDE.test(name)) wrong.push(`file left: ${name}`);
  }
  const last = `checkpoint-${LAST_STEP}`;
  if (!found.includes(last)) wrong.push(`no ${last}`);
  const files = readdirSync(join(calm, last)).sort();
  const checkpoints = found.filter((name) => CHECKPOINT.test(name));
  for (const name of checkpoints) {
    const own = readdirSync(join(output, name)).sort();
    if (own.join() !== files.join()) wrong.push(`${name} holds ${own.join(", ")}`);
    // One that an interrupt asked for stands at a step of its own.
    else if (expected.includes(name)) wrong.push(...otherBits(name, join(output, name), join(calm, name)));
  }
  if (kind === "eval" && checkpoints.length > 2) wrong.push(`save_total_limit 2, but ${checkpoints.join(", ")}`);
  return wrong;
}

function otherBits(checkpoint: string, dir: string, calm: string): string[] {
  return readdirSync(dir)
    .filter((name) => name.endsWith(".safetensors") || name === "scheduler.json")
    .filter((name) => !readFileSync(join(dir, name)).equals(readFileSync(join(calm, name))))
    .map((name) => `other bits in ${checkpoint}/${name}`);
}

/** Half-written files of a folder, whatever became of the run. */
export function halfWritten(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir)
    .filter((name) => name.startsWith(".") || name.endsWith(".tmp"))
    .map((name) => `file left: ${name}`);
}

/** What a program said that no user should meet. */
export function bareStacks(programs: readonly Program[]): string[] {
  return programs.flatMap(({ name, stderr }) => {
    const found = STACK.exec(stderr);
    return found === null ? [] : [`a bare stack of ${name}: ${found[0].trim()}`];
  });
}

/** Done, temporary, killed, terminated: what a node may end with here. Anything else is for people to mend, and nothing is broken. */
const NODE_ENDS = [0, 75, 137, 143];

/** Nodes that ended as if something were wrong with their flags, files or this program. */
export function oddEnds(programs: readonly Program[]): string[] {
  return programs
    .filter(({ name, end }) => name !== "coordinator" && end !== null && !NODE_ENDS.includes(end.code))
    .map(({ name, end, stderr }) => `${name} ended with ${end!.how}: ${lastWords(stderr)}`);
}

/** Temporary files that stay. Shared memory of links has no name, so it can't. */
export function temporaryFiles(processes: Processes): string[] {
  return readdirSync(processes.temporary).map((name) => `temporary file left: ${name}`);
}

/** Processes of the run that stay. */
export async function processesLeft(processes: Processes, patienceMs = PATIENCE_MS): Promise<string[]> {
  return (await processes.left(patienceMs)).map((pid) => `process left: ${commandLine(pid).slice(0, 200)}`);
}

function stateWithoutTimes(dir: string): string {
  return JSON.stringify(JSON.parse(readFileSync(join(dir, STATE), "utf8")), (key, value: unknown) =>
    TIMES.test(key) ? undefined : value,
  );
}

function firstDifference(one: string, other: string): string {
  let place = 0;
  while (place < one.length && one[place] === other[place]) place++;
  const around = (text: string) => text.slice(Math.max(0, place - 60), place + 60);
  return `${around(one)} | ${around(other)}`;
}
