import type { Reporter, SpanRow } from "../reporter.ts";
import type { RankTrace, StepSpan } from "./chrome-trace.ts";
import type { ToldSteps } from "./told-steps.ts";

/** The first steps of an attempt open connections and fill caches. */
const WARM_STEPS = 3;
/** Between two looks at a step: at least so long, and so many times what a look costs, so that nobody waits for it. */
const SELDOM = { ms: 60_000, timesCost: 1000 };
const OFTEN = { ms: 2_000, timesCost: 20 };

export interface WatchOptions {
  /** Whether somebody looks at the last step just now. */
  readonly looked: () => boolean;
  /** What the ranks have measured, as in the run's predictions. */
  readonly measured: (reports: ToldSteps["reports"]) => object;
  readonly reporter: Pick<Reporter, "lastStep">;
  /** Milliseconds; performance.now() if it is not given. */
  readonly now?: () => number;
}

/**
 * When a step is recorded for whoever looks at the run: the first warm one of an attempt, the very last one, and between them once
 * a minute, or every two seconds while somebody looks. A run that nobody looks at spends less than a thousandth of its time on it, and
 * no bit depends on it.
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

  /** Ranks ask and answer anew with an attempt. */
  begin(): void {
    this.#steps = 0;
    this.#lastAt = null;
    this.#waits = false;
  }

  /** Whether the step that begins now is to be recorded. */
  wants(isLast: boolean): boolean {
    this.#steps++;
    this.#waits = isLast || this.#isDue();
    return this.#waits;
  }

  /** The step that has just ended was recorded for this. */
  get waits(): boolean {
    return this.#waits;
  }

  /** `askedAt`: when the ranks were asked, since when the run stands still. */
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

/** To the microsecond, from the step's begin. */
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
