import { randomUUID } from "node:crypto";
import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { HASHES_FILE } from "../../src/coordinator/run/checkpoints/checkpoint-store.ts";
import { Cast } from "./cast.ts";
import { damageCheckpoint } from "./damage.ts";
import type { Case } from "./drawing.ts";
import { answerTo, lastWords } from "./ends.ts";
import { inflict } from "./inflict.ts";
import { momentOf, stoppingPoint } from "./moments.ts";
import { bareStacks, compareRuns, halfWritten, oddEnds, processesLeft, temporaryFiles } from "./oracle.ts";
import { type End, Processes } from "./processes.ts";
import { type Inputs, kindFlags, placePlan } from "./settings.ts";
import { SmallDisk } from "./small-disk.ts";

/** No start of the coordinator may take longer, whatever happens to it. */
const DEADLINE_MS = 90_000;
const MOST_STARTS = 6;

export interface Result {
  readonly drawn: Case;
  /** What the fault was, in numbers; null: the run was over, or its victim gone, before the moment came. */
  readonly struck: string | null;
  /** Coded ends on the way, each answered as documented. */
  readonly ends: readonly string[];
  /** Restarts that the coordinator made itself. */
  readonly restarts: number;
  /** Empty: the bits of the undisturbed run, and nothing left. */
  readonly wrong: readonly string[];
  readonly seconds: number;
  /** How long any process outlived the coordinator. */
  readonly lingered: number;
}

/** What runs have in common: inputs, and the undisturbed run's folder for each kind. */
export interface Common {
  readonly inputs: Inputs;
  readonly calm: (kind: Case["kind"]) => Promise<string>;
}

/** One run with its fault, in a folder of its own, which stays if something was wrong or it is to be kept. */
export async function runCase(drawn: Case, common: Common, folder: string, keep: boolean): Promise<Result> {
  const started = performance.now();
  mkdirSync(folder, { recursive: true });
  const calm = await common.calm(drawn.kind);
  const run = new FaultyRun(drawn, common.inputs, folder);
  const wrong: string[] = [];
  try {
    wrong.push(...(await run.play()), ...(await run.check(calm)));
  } catch (error) {
    wrong.push(`the driver failed: ${(error as Error).stack}`);
  }
  const { struck, ends, restarts, lingered } = run;
  if (wrong.length === 0 && !keep) rmSync(folder, { recursive: true, force: true });
  return { drawn, struck, ends, restarts, wrong, lingered, seconds: (performance.now() - started) / 1000 };
}

class FaultyRun {
  readonly #case: Case;
  readonly #inputs: Inputs;
  readonly #processes: Processes;
  readonly #disk: SmallDisk | null;
  readonly #output: string;
  /** Folders of nodes that save too. */
  readonly #nodeOutputs: Readonly<Record<string, string>>;
  readonly ends: string[] = [];
  struck: string | null = null;
  lingered = 0;
  #damaged: string | null = null;
  #done = false;

  constructor(drawn: Case, inputs: Inputs, folder: string) {
    this.#case = drawn;
    this.#inputs = inputs;
    this.#processes = new Processes(folder, randomUUID());
    this.#disk = drawn.fault === "disk full" ? SmallDisk.mount(join(folder, "disk")) : null;
    const roomy = (name: string) => join(folder, name);
    const small = (name: string) => join(this.#disk?.path ?? folder, name);
    const own = drawn.kind === "each node";
    // Where nodes save too, it is one of their disks that is full.
    this.#output = own ? roomy("output") : small("output");
    this.#nodeOutputs = own ? { a: roomy("output-a"), b: small("output-b") } : {};
    mkdirSync(this.#output, { recursive: true });
  }

  get restarts(): number {
    return this.#coordinators().reduce((sum, { stderr }) => sum + stderr.split("(restart ").length - 1, 0);
  }

  /** From the first start to code 0, or to what should not be. Returns what went wrong. */
  async play(): Promise<string[]> {
    const { fault, moment, place, kind } = this.#case;
    const cast = await Cast.open(this.#processes, placePlan(place, this.#inputs), this.#nodeOutputs);
    try {
      let flags: readonly string[] = [];
      if (moment === "resume") {
        await this.#stopped(cast);
        flags = ["--resume-from-checkpoint", "auto"];
      }
      if (fault === "checkpoint damaged") this.#damage();
      for (let start = 0; start < MOST_STARTS; start++) {
        const strikes = start === 0 && fault !== "checkpoint damaged";
        const end = await this.#leg(
          cast,
          [...kindFlags(kind, this.#inputs), ...this.#savingFlags(), ...flags],
          strikes,
        );
        if (end === null) return [`no end within ${DEADLINE_MS / 1000} s: ${lastWords(cast.coordinator.stderr)}`];
        if (end.code === 0) {
          this.#done = true;
          return [];
        }
        const left = halfWritten(this.#output);
        const answer = answerTo(this.#case, cast.coordinator, end);
        if (answer === null) return [`ended with ${end.how}: ${lastWords(cast.coordinator.stderr)}`];
        this.ends.push(answer.name);
        // A process that is killed can't clear what it had begun; the next start does.
        if (end.code !== 137 && left.length > 0) return left;
        if (answer.freesDisk) this.#disk?.free();
        flags = answer.flags;
      }
      return [`no end after ${MOST_STARTS} starts: ${this.ends.join(", ")}`];
    } finally {
      cast.end();
      if (!this.#done) this.#processes.killAll();
      const ended = performance.now();
      this.#left = await processesLeft(this.#processes);
      this.lingered = (performance.now() - ended) / 1000;
      cast.close();
      this.#processes.close();
    }
  }

  #left: string[] = [];

  /** What is wrong once all is over. */
  async check(calm: string): Promise<string[]> {
    const { kind } = this.#case;
    const programs = this.#processes.all;
    const wrong = [...this.#left, ...oddEnds(programs), ...bareStacks(programs), ...temporaryFiles(this.#processes)];
    // Without its list of hashes a checkpoint is believed, as another tool's would be, and stays as it is.
    if (this.#done && this.#damaged?.endsWith(HASHES_FILE) === true)
      rmSync(dirname(this.#damaged), { recursive: true, force: true }); // rotation may have taken it
    if (this.#done) wrong.push(...compareRuns(kind, this.#output, calm));
    for (const [node, dir] of Object.entries(this.#nodeOutputs)) {
      const failed = this.#coordinators().some(({ stderr }) => stderr.includes(`node "${node}" did not save final`));
      const found = [...halfWritten(dir), ...(this.#done && !failed ? compareRuns(kind, dir, calm) : [])];
      wrong.push(...found.map((text) => `node ${node}: ${text}`));
    }
    this.#disk?.unmount(wrong.length === 0 ? null : `${this.#disk.path}-copy`);
    return wrong;
  }

  /** One start of the coordinator, to its end; null: it had none in time. */
  async #leg(cast: Cast, flags: readonly string[], strikes: boolean): Promise<End | null> {
    const over = new AbortController();
    const coordinator = cast.begin(["train", ...flags, "--output-dir", this.#output]);
    const deadline = sleep(DEADLINE_MS, null, { signal: over.signal }).catch(() => null);
    const fault = strikes
      ? momentOf(this.#case, cast, this.#output, over.signal).then(async () => {
          if (over.signal.aborted) return;
          this.struck = await inflict(this.#case, { cast, processes: this.#processes, disk: this.#disk });
        })
      : null;
    // Of the fault only a failure of the driver's own counts here.
    const failed = fault?.then(() => new Promise<never>(() => {})) ?? coordinator.ended;
    const end = await Promise.race([coordinator.ended, deadline, failed]);
    over.abort();
    return end;
  }

  /** A run that was stopped at some step, so that there is something to resume. */
  async #stopped(cast: Cast): Promise<void> {
    const over = new AbortController();
    const { kind, draw } = this.#case;
    const flags = [...kindFlags(kind, this.#inputs), ...this.#savingFlags(), "--output-dir", this.#output];
    const coordinator = cast.begin(["train", ...flags]);
    const stop = stoppingPoint(this.#case, cast, over.signal);
    const timer = sleep(DEADLINE_MS, null, { signal: over.signal }).catch(() => null);
    await Promise.race([stop, coordinator.ended, timer]);
    coordinator.kill(draw("stop by") < 0.5 ? "SIGKILL" : "SIGTERM");
    await Promise.race([coordinator.ended, timer]);
    over.abort();
  }

  #damage(): void {
    const { path, done } = damageCheckpoint(this.#newest(), this.#case.draw);
    this.struck = done;
    this.#damaged = path;
  }

  #savingFlags(): string[] {
    if (this.#case.kind !== "each node") return [];
    return ["--save-on-each-node", "--save-failure", this.#case.draw("save failure") < 0.5 ? "warn" : "fail"];
  }

  #newest(): string {
    const steps = readdirSync(this.#output).flatMap((name) => /^checkpoint-(\d+)$/.exec(name)?.[1] ?? []);
    return join(this.#output, `checkpoint-${Math.max(...steps.map(Number))}`);
  }

  #coordinators() {
    return this.#processes.all.filter(({ name }) => name === "coordinator");
  }
}
