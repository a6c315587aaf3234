import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import type { RankTrace, StepSpan } from "./chrome-trace.ts";
import type { StepWatch } from "./step-watch.ts";
import type { TraceFile } from "./trace-file.ts";

export interface Traced {
  readonly members: readonly WorkerConnection[];
  readonly pipeline: Pick<Pipeline, "report" | "clocks">;
}

/**
 * Decides which steps ranks record and when they are asked for their spans: for --trace, which gets its steps together, and for the page, which
 * shows the last step. A rank sends each span once, so the spans are passed to both here.
 */
export class StepTraces {
  readonly #file: TraceFile | null;
  readonly #watch: StepWatch;
  /** Traced steps whose spans have not been requested. */
  #untold: StepSpan[] = [];

  constructor(file: TraceFile | null, watch: StepWatch) {
    this.#file = file;
    this.#watch = watch;
  }

  /** Begins a new attempt, in which ranks record from the start. */
  begin(): void {
    this.#untold = [];
    this.#file?.begin();
    this.#watch.begin();
  }

  wants(step: number, isLast: boolean): boolean {
    const watched = this.#watch.wants(isLast);
    return watched || this.#file?.wants(step) === true;
  }

  /** A step has just ended. `began`: when it began, by performance.now(). `traced`: whether it was recorded. Errors: those of the pipeline. */
  async stepped(step: number, { began, traced }: { began: number; traced: boolean }, from: Traced): Promise<void> {
    const { timeOrigin } = performance;
    if (traced) this.#untold.push({ step, startMs: timeOrigin + began, endMs: timeOrigin + performance.now() });
    if (this.#untold.length === 0) return;
    if (this.#watch.waits || this.#file?.endsWith(step) === true) await this.#ask(from);
  }

  /** Asks for the remaining spans. Nothing more is traced. Errors: those of the pipeline. */
  async finish(from: Traced): Promise<void> {
    if (this.#untold.length > 0) await this.#ask(from);
    await this.#file?.finish();
  }

  /** Asks ranks for their spans, and compares clocks at the same time, before they drift apart. */
  async #ask({ members, pipeline }: Traced): Promise<void> {
    const steps = this.#untold;
    this.#untold = [];
    const asked = performance.now();
    const reports = await pipeline.report();
    const clocks = await pipeline.clocks();
    const ranks = reports.map(({ spans }, rank): RankTrace => {
      const { node, device, deviceName } = members[rank]!.hello;
      return { name: `${node}/${device} (${deviceName})`, spans, ...clocks[rank]! };
    });
    const told = { steps, ranks, reports };
    await this.#file?.told(told);
    this.#watch.told(told, asked);
  }
}
