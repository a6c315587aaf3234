import { formatBytes } from "../../../common/bytes.ts";
import type { Prepared__Output } from "../../../rpc/generated/pipelora/v1/Prepared.ts";
import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import { KnownRates } from "../../assembly/known-rates.ts";
import { processOf } from "../../cluster/returning.ts";

/** A change under way: from the end of the attempt before to the first step that none had made. */
interface Change {
  readonly began: number;
  layers: string;
}

/** The changes of an elastic run's workers: what they cost, and whether the run gets on between them. */
export class Changes {
  /** The furthest step of each adapter, by name. */
  readonly #furthest = new Map<string | null, number>();
  readonly #inspected = new Set<string>();
  readonly rates = new KnownRates();
  #change: Change | null = { began: performance.now(), layers: "" };
  #costMs = 0;
  #gotOn = false;
  /** Workers that could hold the model; 0: none have yet. */
  #fitted = 0;
  #atLeast = 1;

  /** Milliseconds that the last change took; before the first, what the run's beginning took. */
  get costMs(): number {
    return this.#costMs;
  }

  /** Whether a step was made since the last change that none had made before. */
  get gotOn(): boolean {
    return this.#gotOn;
  }

  /** An attempt has ended that another is to follow. */
  begin(): void {
    this.#gotOn = false;
    this.#change ??= { began: performance.now(), layers: "" };
  }

  /** So many workers are known to be needed. */
  get atLeast(): number {
    return this.#atLeast;
  }

  get fitted(): boolean {
    return this.#fitted > 0;
  }

  /** So few can't hold the model. */
  tooFew(workers: number): void {
    this.#atLeast = Math.max(this.#atLeast, workers + 1);
  }

  loaded(prepared: readonly Prepared__Output[], workers: number): void {
    this.#fitted = workers;
    const sum = (of: (one: Prepared__Output) => number) => prepared.reduce((all, one) => all + of(one), 0);
    const [kept, read] = [sum(({ takenOver }) => takenOver), sum((one) => one.read)];
    const bytes = formatBytes(sum(({ readBytes }) => readBytes));
    if (this.#change !== null) this.#change.layers = `${kept} layers were taken over, ${read} read (${bytes})`;
  }

  /** A step of an adapter was made, in so many milliseconds. Returns what there is to say of a change that is through with it. */
  made(adapter: string | null, step: number, { workers, stepMs }: { workers: number; stepMs: number }): string | null {
    if (step <= (this.#furthest.get(adapter) ?? 0)) return null;
    const first = this.#furthest.size === 0;
    this.#furthest.set(adapter, step);
    this.#gotOn = true;
    if (this.#change === null) return null;
    const { began, layers } = this.#change;
    this.#change = null;
    this.#costMs = Math.max(0, performance.now() - began - stepMs);
    const took = `${(this.#costMs / 1000).toFixed(2)} s`;
    return first ? null : `the change took ${took}: ${workers} workers go on with step ${step}; ${layers}`;
  }

  /** Whether these workers and the links between them were looked at before, and: they were now. */
  known(members: readonly WorkerConnection[]): boolean {
    return members.every(({ hello }) => this.#inspected.has(processOf(hello)));
  }

  inspected(members: readonly WorkerConnection[]): void {
    for (const { hello } of members) this.#inspected.add(processOf(hello));
  }
}
