import { randomUUID } from "node:crypto";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Cast, HELD_S } from "./cast.ts";
import { between, choose } from "./drawing.ts";
import { type DrawnEvent, type ElasticCase, plainMoment } from "./elastic-drawing.ts";
import { lastWords } from "./ends.ts";
import { hit } from "./inflict.ts";
import { momentOf } from "./moments.ts";
import { bareStacks, compareRuns, halfWritten, oddEnds, processesLeft, temporaryFiles } from "./oracle.ts";
import { type End, Processes, type Program } from "./processes.ts";
import type { Common } from "./run-case.ts";
import { elasticPlan, kindFlags, MOST_WORKERS } from "./settings.ts";

const DEADLINE_MS = 120_000;
const TEMPORARY = 75;
/** A worker that says nothing for ten seconds counts as lost. */
const SILENT_MS = [11_000, 13_000] as const;
/** Where nobody is left, somebody comes so late. */
const RESCUE_MS = 700;

export interface Happened {
  readonly drawn: DrawnEvent;
  /** What was done; null: the moment did not come, or nobody was there to be hit. */
  readonly done: string | null;
}

export interface ElasticResult {
  readonly drawn: ElasticCase;
  readonly happened: readonly Happened[];
  /** Seconds of each change that the run told of: from its beginning to the first new step, less that step. */
  readonly changes: readonly number[];
  /** Coded ends, answered with --resume-from-checkpoint. */
  readonly ends: readonly string[];
  /** Empty: the bits of the undisturbed run, and nothing left. */
  readonly wrong: readonly string[];
  readonly seconds: number;
}

/** One elastic run with its events, in a folder of its own, which stays if something was wrong or it is to be kept. */
export async function runElastic(
  drawn: ElasticCase,
  common: Common,
  folder: string,
  keep: boolean,
): Promise<ElasticResult> {
  const started = performance.now();
  mkdirSync(folder, { recursive: true });
  const calm = await common.calm(drawn.kind);
  const run = new ElasticRun(drawn, common, folder);
  const wrong: string[] = [];
  try {
    wrong.push(...(await run.play()), ...run.check(calm));
  } catch (error) {
    wrong.push(`the driver failed: ${(error as Error).stack}`);
  }
  if (wrong.length === 0 && !keep) rmSync(folder, { recursive: true, force: true });
  const { happened, changes, ends } = run;
  return { drawn, happened, changes, ends, wrong, seconds: (performance.now() - started) / 1000 };
}

class ElasticRun {
  readonly #case: ElasticCase;
  readonly #common: Common;
  readonly #processes: Processes;
  readonly #output: string;
  readonly happened: Happened[] = [];
  readonly ends: string[] = [];
  #left: string[] = [];
  #done = false;

  constructor(drawn: ElasticCase, common: Common, folder: string) {
    this.#case = drawn;
    this.#common = common;
    this.#processes = new Processes(folder, randomUUID());
    this.#output = join(folder, "output");
    mkdirSync(this.#output);
  }

  get changes(): number[] {
    return this.#coordinators().flatMap(({ stdout }) =>
      [...stdout.matchAll(/the change took ([\d.]+) s/g)].map((match) => Number(match[1])),
    );
  }

  async play(): Promise<string[]> {
    const { kind, workers, grpc } = this.#case;
    const least = kind === "replicas" ? 2 : 1;
    const cast = await Cast.open(this.#processes, elasticPlan(workers, { minWorkers: least, grpc }), {});
    const flags = ["train", ...kindFlags(kind, this.#common.inputs), "--output-dir", this.#output];
    try {
      const first = await this.#leg(cast, flags, true);
      if (first === null) return [`no end within ${DEADLINE_MS / 1000} s: ${lastWords(cast.coordinator.stderr)}`];
      let end = first;
      if (end.code === TEMPORARY && cast.coordinator.stderr.includes("PL_WORKER_MISSING")) {
        this.ends.push(`75: ${lastWords(cast.coordinator.stderr).slice(0, 120)}`);
        const left = halfWritten(this.#output);
        if (left.length > 0) return left;
        cast.keepUp();
        const again = await this.#leg(cast, [...flags, "--resume-from-checkpoint", "auto"], false);
        if (again === null) return ["no end of the resumed run"];
        end = again;
      }
      if (end.code !== 0) return [`ended with ${end.how}: ${lastWords(cast.coordinator.stderr)}`];
      this.#done = true;
      return [];
    } finally {
      cast.end();
      if (!this.#done) this.#processes.killAll();
      this.#left = await processesLeft(this.#processes, (HELD_S + 5) * 1000);
      cast.close();
      this.#processes.close();
    }
  }

  check(calm: string): string[] {
    const programs = this.#processes.all;
    const wrong = [...this.#left, ...oddEnds(programs), ...bareStacks(programs), ...temporaryFiles(this.#processes)];
    if (this.#done) wrong.push(...compareRuns(this.#case.kind, this.#output, calm));
    return wrong;
  }

  async #leg(cast: Cast, flags: readonly string[], strikes: boolean): Promise<End | null> {
    const over = new AbortController();
    const coordinator = cast.begin(flags);
    if (strikes) cast.hold(this.#case.events.filter(({ event }) => event === "join").length);
    const deadline = sleep(DEADLINE_MS, null, { signal: over.signal }).catch(() => null);
    const failed = (strikes ? this.#strike(cast, over.signal) : Promise.resolve()).then(
      () => new Promise<never>(() => {}),
    );
    const end = await Promise.race([coordinator.ended, deadline, failed]);
    over.abort();
    return end;
  }

  async #strike(cast: Cast, signal: AbortSignal): Promise<void> {
    for (const drawn of this.#case.events) {
      const place = this.happened.length;
      this.happened.push({ drawn, done: null });
      await this.#moment(drawn, cast, signal);
      if (signal.aborted) return;
      const done = this.#inflict(drawn, cast);
      this.happened[place] = { drawn, done };
    }
  }

  async #moment({ moment, draw }: DrawnEvent, cast: Cast, signal: AbortSignal): Promise<void> {
    const plain = plainMoment(moment);
    if (plain !== null) {
      const { seed, number, kind } = this.#case;
      const like = { fault: "worker killed", moment: plain, place: "grpc", kind, seed, number, draw } as const;
      return momentOf(like, cast, this.#output, signal);
    }
    await cast.coordinator.says(
      (line) => line.includes("going on") || line.includes(" joins") || line.includes("go on"),
      signal,
    );
    await sleep(between(0, 400, draw("jitter")));
  }

  #inflict({ event, draw }: DrawnEvent, cast: Cast): string | null {
    const ranks = cast.ranks();
    const least = this.#case.kind === "replicas" ? 2 : 1;
    if (event === "join") {
      if (ranks.length >= MOST_WORKERS) return null;
      const name = cast.join();
      return name === null ? null : `${name} joins ${ranks.length} others`;
    }
    if (ranks.length === 0) return null;
    const victim = choose(ranks, draw("victim"));
    // Somebody comes to the aid of a run that is left by too many.
    if (ranks.length <= least && event !== "cut") setTimeout(() => cast.join(), RESCUE_MS);
    switch (event) {
      case "leave":
        return hit(this.#processes, victim, "SIGTERM");
      case "kill":
        return hit(this.#processes, victim, "SIGKILL");
      case "stop": {
        const ms = Math.round(between(...SILENT_MS, draw("length")));
        if (!this.#processes.signal(victim, "SIGSTOP")) return null;
        setTimeout(() => this.#processes.signal(victim, "SIGCONT"), ms);
        return `stopped for ${ms} ms`;
      }
      case "cut": {
        const tensors = draw("plane") < 0.5 ? cast.tensorLinks() : [];
        const links = tensors.length > 0 ? tensors : cast.controlLinks().slice(0, this.#case.workers);
        const forMs = draw("for") < 0.5 ? 0 : Math.round(between(100, 2_000, draw("length")));
        choose(links, draw("link")).cut(forMs);
        return `a link ${tensors.length > 0 ? "between workers" : "to the coordinator"} cut for ${forMs} ms`;
      }
    }
  }

  #coordinators(): Program[] {
    return this.#processes.all.filter(({ name }) => name === "coordinator");
  }
}
