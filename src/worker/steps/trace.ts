import type { TraceSpan } from "../../rpc/generated/pipelora/v1/TraceSpan.ts";

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

/** What this rank did in the steps that were traced since it last told. */
export class Trace {
  #spans: TraceSpan[] = [];

  step(step: number): StepTrace {
    return new StepTrace(step, this.#spans);
  }

  /** Tells, and forgets. */
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

  /** Something that has ended just now. `started`: by performance.now(); `bytes`: what was sent. */
  add(kind: SpanKind, started: number, where: Where | null = null, bytes?: number): void {
    const { segment, microBatch, peer } = where ?? {};
    const place = where === null ? {} : { segment, microBatch, ...(peer === undefined ? {} : { peer }) };
    const size = bytes === undefined ? {} : { bytes };
    this.#spans.push({ kind, step: this.#step, startMs: clockMs(started), endMs: clockMs(), ...place, ...size });
  }
}
