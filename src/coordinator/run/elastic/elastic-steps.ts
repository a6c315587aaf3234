import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import type { AdapterRun } from "../adapter-run.ts";
import type { Stepping } from "../attempt.ts";
import type { TrainerState } from "../checkpoints/trainer-state.ts";
import type { Run } from "../run.ts";
import type { Trained } from "../steps/rounds.ts";
import { workloadOf } from "../workload-of.ts";
import { BoundaryStates } from "./boundary-states.ts";
import type { Changes } from "./changes.ts";
import { worthJoining } from "./joining.ts";

/** The mean time of this many last steps is the expected time of the next ones. */
const RECENT = 8;

/** What an attempt of an elastic run does besides its steps: it keeps their state in memory, and notices who leaves and who joins. */
export class ElasticSteps {
  readonly #run: Run;
  readonly #changes: Changes;
  readonly #stepping: Stepping;
  readonly #live: readonly AdapterRun[];
  readonly #states: BoundaryStates;
  readonly #recentMs: number[] = [];
  /** The workers for whom a change was last found not worth its cost. */
  #declined: ReadonlySet<WorkerConnection> = new Set();
  #reason: string | null = null;

  constructor(run: Run, changes: Changes, stepping: Stepping, live: readonly AdapterRun[]) {
    this.#run = run;
    this.#changes = changes;
    this.#stepping = stepping;
    this.#live = live;
    this.#states = new BoundaryStates(
      live.map((adapter) => ({ adapter, matrices: adapter.setup.lora!.matrices.length })),
    );
    stepping.pipeline.onState = (told) => this.#states.take(told);
  }

  /** Why the workers must change; null: they need not. */
  get reason(): string | null {
    return this.#reason;
  }

  /** Whether ranks should send their trained values in the round that begins now. */
  tells(round: number, live: readonly Trained[]): boolean {
    if (!this.#states.wanted) return false;
    const states = live.map(({ number, trainer }): [number, TrainerState] => [number, trainer.state]);
    this.#states.begin(round, new Map(states));
    return true;
  }

  /** Notes that a round has ended. `began`: when it began, by performance.now(). */
  stepped(began: number): void {
    const stepMs = performance.now() - began;
    this.#recentMs.push(stepMs);
    if (this.#recentMs.length > RECENT) this.#recentMs.shift();
    const workers = this.#stepping.planned.members.length;
    for (const [number, { name }] of this.#live.entries()) {
      const { globalStep } = this.#stepping.progress[number]!;
      const note = this.#changes.made(name, globalStep, { workers, stepMs });
      if (note !== null) this.#run.reporter.note(note);
    }
  }

  /** Whether the attempt must end here: a worker leaves, or a change for new ones is worth its cost. */
  async regroups(): Promise<boolean> {
    const { cluster, config, log } = this.#run;
    if (cluster.leaving !== null) {
      this.#reason = `${cluster.leaving.name} leaves; the others go on`;
      return true;
    }
    const { members } = this.#stepping.planned;
    const candidates = cluster.candidates;
    const joining = candidates.filter((worker) => !members.includes(worker));
    if (joining.every((worker) => this.#declined.has(worker))) return false;
    const names = joining.map(({ name }) => name).join(", ");
    const { possible, gains, text } = await this.#verdict(candidates);
    const taken = config.elastic_join === "always" ? possible : gains;
    this.#reason = taken ? `${names} joins: ${text}` : null;
    this.#declined = new Set(joining);
    if (!taken) log.info(`${names} is not taken in: ${text}`);
    return taken;
  }

  #verdict(candidates: readonly WorkerConnection[]) {
    const { planned, progress } = this.#stepping;
    const left = this.#live.map(({ data }, number) => data.order.totalSteps - progress[number]!.globalStep);
    const now = {
      planned,
      stepMs: this.#recentMs.reduce((sum, ms) => sum + ms, 0) / this.#recentMs.length,
      stepsLeft: Math.max(...left),
      costMs: this.#changes.costMs,
    };
    const [first] = this.#live;
    return worthJoining(candidates, now, { setup: first!.setup, settings: first!.config, of: workloadOf(this.#run) });
  }
}
