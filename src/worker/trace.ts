import type { TraceSpan } from "../rpc/generated/pipelora/v1/TraceSpan.ts";

export type SpanKind = "update" | "forward" | "backward" | "wait" | "send" | "receive" | "reduce" | "norm";

/** What a span belongs to. */
interface Where {
  readonly segment: number;
  readonly microBatch: number;
  readonly peer?: number | undefined;
}

/** This process's clock, which no adjustment of the machine's sets back. */
export function clockMs(at = performance.now()): number {
  return performance.timeOrigin + at;
}

/** What this rank did in the steps that are traced. */
export class Trace {
  readonly spans: TraceSpan[] = [];
  readonly #steps: ReadonlySet<number>;

  constructor(steps: readonly number[]) {
    this.#steps = new Set(steps);
  }

  /** Null for a step that nobody asked about. */
  of(step: number): StepTrace | null {
    return this.#steps.has(step) ? new StepTrace(step, this.spans) : null;
  }
}

export class StepTrace {
  readonly #step: number;
  readonly #spans: TraceSpan[];

  constructor(step: number, spans: TraceSpan[]) {
    this.#step = step;
    this.#spans = spans;
  }

  /** Something that has ended just now. `started`: by performance.now(). */
  add(kind: SpanKind, started: number, where: Where | null = null): void {
    const { segment, microBatch, peer } = where ?? {};
    const place = where === null ? {} : { segment, microBatch, ...(peer === undefined ? {} : { peer }) };
    this.#spans.push({ kind, step: this.#step, startMs: clockMs(started), endMs: clockMs(), ...place });
  }
}
