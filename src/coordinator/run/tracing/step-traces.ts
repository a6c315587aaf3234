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
 * Which steps ranks keep a record of, and when they are asked for it: for --trace, whose steps are told together, and for whoever looks
 * at the last step. A rank tells each span once, so what it told is shared out here.
 */
export class StepTraces {
  readonly #file: TraceFile | null;
  readonly #watch: StepWatch;
  /** Traced, and not asked for yet. */
  #untold: StepSpan[] = [];

  constructor(file: TraceFile | null, watch: StepWatch) {
    this.#file = file;
    this.#watch = watch;
  }

  /** Ranks begin anew with an attempt, and so does what they tell. */
  begin(): void {
    this.#untold = [];
    this.#file?.begin();
    this.#watch.begin();
  }

  wants(step: number, isLast: boolean): boolean {
    const watched = this.#watch.wants(isLast);
    return watched || this.#file?.wants(step) === true;
  }

  /** A step has ended just now. `began`: by performance.now(); `traced`: it was wanted. Errors: the pipeline's. */
  async stepped(step: number, { began, traced }: { began: number; traced: boolean }, from: Traced): Promise<void> {
    const { timeOrigin } = performance;
    if (traced) this.#untold.push({ step, startMs: timeOrigin + began, endMs: timeOrigin + performance.now() });
    if (this.#untold.length === 0) return;
    if (this.#watch.waits || this.#file?.endsWith(step) === true) await this.#ask(from);
  }

  /** Nothing more is to be traced. Errors: the pipeline's. */
  async finish(from: Traced): Promise<void> {
    if (this.#untold.length > 0) await this.#ask(from);
    await this.#file?.finish();
  }

  /** Clocks are compared now, before they drift apart. */
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
