import { formatBytes } from "../../../common/bytes.ts";
import type { Prepared__Output } from "../../../rpc/generated/pipelora/v1/Prepared.ts";
import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import { KnownRates } from "../../assembly/known-rates.ts";
import { processOf } from "../../cluster/returning.ts";

/** A change in progress: from the end of one attempt to the next new step. */
interface Change {
  readonly began: number;
  /** When its workers had joined. */
  gathered: number;
  layers: string;
}

function change(): Change {
  const began = performance.now();
  return { began, gathered: began, layers: "" };
}

/** The changes of an elastic run's workers: what they cost, and whether the run makes progress between them. */
export class Changes {
  /** The last step that each adapter has reached, by name. */
  readonly #furthest = new Map<string | null, number>();
  readonly #inspected = new Set<string>();
  readonly rates = new KnownRates();
  #change: Change | null = change();
  #costMs = 0;
  #gotOn = false;
  #fitted = false;
  #atLeast = 1;

  /** Milliseconds from the joining of the last change's workers to its end. Before the first change: the same of the run's beginning. */
  get costMs(): number {
    return this.#costMs;
  }

  /** Whether a new step was made since the last change. */
  get gotOn(): boolean {
    return this.#gotOn;
  }

  /** An attempt has ended and another will follow. */
  begin(): void {
    this.#gotOn = false;
    this.#change ??= change();
  }

  /** The workers for the next attempt have joined. */
  gathered(): void {
    if (this.#change !== null) this.#change.gathered = performance.now();
  }

  /** At least this many workers are needed, as far as is known. */
  get atLeast(): number {
    return this.#atLeast;
  }

  /** Whether some workers of this run could hold the model. */
  get fitted(): boolean {
    return this.#fitted;
  }

  /** This many workers can't hold the model. */
  tooFew(workers: number): void {
    this.#atLeast = Math.max(this.#atLeast, workers + 1);
  }

  /** Every rank has loaded its layers. */
  loaded(prepared: readonly Prepared__Output[]): void {
    this.#fitted = true;
    const sum = (of: (one: Prepared__Output) => number) => prepared.reduce((all, one) => all + of(one), 0);
    const [kept, read] = [sum(({ takenOver }) => takenOver), sum((one) => one.read)];
    const bytes = formatBytes(sum(({ readBytes }) => readBytes));
    if (this.#change !== null) this.#change.layers = `${kept} layers were taken over, ${read} read (${bytes})`;
  }

  /** An adapter has made a step, in `stepMs` milliseconds. If this ends a change, returns a sentence about it for the user. */
  made(adapter: string | null, step: number, { workers, stepMs }: { workers: number; stepMs: number }): string | null {
    if (step <= (this.#furthest.get(adapter) ?? 0)) return null;
    const first = this.#furthest.size === 0;
    this.#furthest.set(adapter, step);
    this.#gotOn = true;
    if (this.#change === null) return null;
    const { began, gathered, layers } = this.#change;
    this.#change = null;
    const since = (from: number) => Math.max(0, performance.now() - from - stepMs);
    this.#costMs = since(gathered);
    const took = `${(since(began) / 1000).toFixed(2)} s`;
    return first ? null : `the change took ${took}: ${workers} workers go on with step ${step}; ${layers}`;
  }

  /** Whether these workers and the links between them were inspected before. Notes that they are now. */
  known(members: readonly WorkerConnection[]): boolean {
    return members.every(({ hello }) => this.#inspected.has(processOf(hello)));
  }

  inspected(members: readonly WorkerConnection[]): void {
    for (const { hello } of members) this.#inspected.add(processOf(hello));
  }
}
