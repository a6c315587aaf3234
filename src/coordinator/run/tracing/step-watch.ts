import type { Reporter, SpanRow } from "../reporter.ts";
import type { RankTrace, StepSpan } from "./chrome-trace.ts";
import type { ToldSteps } from "./told-steps.ts";

/** The first steps of an attempt are not typical: they open connections and fill caches. */
const WARM_STEPS = 3;
/** The least time between two recorded steps: `ms`, and `timesCost` times what recording one takes. */
const SELDOM = { ms: 60_000, timesCost: 1000 };
const OFTEN = { ms: 2_000, timesCost: 20 };

export interface WatchOptions {
  /** Whether the page is showing the last step. */
  readonly looked: () => boolean;
  /** The ranks' measurements, in the form of the run's predictions. */
  readonly measured: (reports: ToldSteps["reports"]) => object;
  readonly reporter: Pick<Reporter, "lastStep">;
  /** A clock in milliseconds. Absent: performance.now(). */
  readonly now?: () => number;
}

/**
 * Decides which steps are recorded for the page: the first typical one of an attempt, the very last one, and between them one a minute, or one
 * every two seconds while the page is open. Without an open page this takes less than a thousandth of a run's time. No number depends on it.
 */
export class StepWatch {
  readonly #options: WatchOptions;
  readonly #now: () => number;
  #steps = 0;
  #lastAt: number | null = null;
  #costMs = 0;
  #waits = false;

  constructor(options: WatchOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Begins a new attempt. */
  begin(): void {
    this.#steps = 0;
    this.#lastAt = null;
    this.#waits = false;
  }

  /** Whether to record the step that begins now. */
  wants(isLast: boolean): boolean {
    this.#steps++;
    this.#waits = isLast || this.#isDue();
    return this.#waits;
  }

  /** Whether the step that has just ended was recorded for the page. */
  get waits(): boolean {
    return this.#waits;
  }

  /** Takes the ranks' answers. `askedAt`: when they were asked; the run has waited since then. */
  told({ steps, ranks, reports }: ToldSteps, askedAt: number): void {
    if (!this.#waits) return;
    this.#waits = false;
    const last = steps.at(-1)!;
    this.#options.reporter.lastStep({
      step: last.step,
      began_ms: last.startMs,
      ms: last.endMs - last.startMs,
      ranks: ranks.map((rank, index) => ({
        rank: index,
        name: rank.name,
        clock_error_ms: rank.errorMs,
        spans: spanRows(rank, last),
      })),
      measured: this.#options.measured(reports),
    });
    this.#lastAt = this.#now();
    this.#costMs = this.#lastAt - askedAt;
  }

  #isDue(): boolean {
    if (this.#steps < WARM_STEPS) return false;
    if (this.#lastAt === null) return true;
    const { ms, timesCost } = this.#options.looked() ? OFTEN : SELDOM;
    return this.#now() - this.#lastAt >= Math.max(ms, timesCost * this.#costMs);
  }
}

/** Spans with times from the start of the step, to the microsecond. */
function spanRows({ spans, offsetMs }: RankTrace, { step, startMs }: StepSpan): SpanRow[] {
  const rounded = (ms: number) => Math.round(ms * 1000) / 1000;
  return spans
    .filter((span) => span.step === step)
    .map(({ kind, startMs: begin, endMs, segment = -1, microBatch = -1, peer = -1, bytes = -1 }) => [
      kind,
      ...([rounded(begin - offsetMs - startMs), rounded(endMs - begin)] as const),
      ...([segment, microBatch, peer, bytes] as const),
    ]);
}
