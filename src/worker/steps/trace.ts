import type { TraceSpan } from "../../rpc/generated/pipelora/v1/TraceSpan.ts";

export type SpanKind = "update" | "forward" | "backward" | "wait" | "send" | "receive" | "reduce" | "norm";

/** What a span belongs to. */
interface Where {
  readonly segment: number;
  readonly microBatch: number;
  readonly peer?: number | undefined;
}

/** This process's clock in milliseconds. It never goes back, even if the machine's clock is set. */
export function clockMs(at = performance.now()): number {
  return performance.timeOrigin + at;
}

/** The spans that this rank has recorded in traced steps since the last take(). */
export class Trace {
  #spans: TraceSpan[] = [];

  step(step: number): StepTrace {
    return new StepTrace(step, this.#spans);
  }

  /** Returns the spans and removes them. */
  take(): TraceSpan[] {
    const spans = this.#spans;
    this.#spans = [];
    return spans;
  }
}

export class StepTrace {
  readonly #step: number;
  readonly #spans: TraceSpan[];

  constructor(step: number, spans: TraceSpan[]) {
    this.#step = step;
    this.#spans = spans;
  }

  /** Adds a span that ends now. `started`: by performance.now(). `bytes`: how many were sent. */
  add(kind: SpanKind, started: number, where: Where | null = null, bytes?: number): void {
    const { segment, microBatch, peer } = where ?? {};
    const place = where === null ? {} : { segment, microBatch, ...(peer === undefined ? {} : { peer }) };
    const size = bytes === undefined ? {} : { bytes };
    this.#spans.push({ kind, step: this.#step, startMs: clockMs(started), endMs: clockMs(), ...place, ...size });
  }
}
