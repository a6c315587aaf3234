import { rename, writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { ensureWritable } from "../../common/output-dir.ts";
import { tracedSteps } from "../../common/traced-steps.ts";
import type { Config } from "../../config/options.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import type { Pipeline } from "../cluster/pipeline.ts";
import { chromeTrace, type RankTrace, type StepSpan } from "./chrome-trace.ts";

interface Traced {
  readonly members: readonly WorkerConnection[];
  readonly pipeline: Pipeline;
}

/** --trace: written once the last chosen step is done, or at the run's end; clocks are compared then, before they drift apart. */
export class TraceFile {
  readonly #path: string;
  readonly #chosen: ReadonlySet<number>;
  readonly #last: number;
  readonly #warn: (text: string) => void;
  #steps: StepSpan[] = [];
  #written = false;

  private constructor(path: string, chosen: readonly number[], warn: (text: string) => void) {
    this.#path = path;
    this.#chosen = new Set(chosen);
    this.#last = Math.max(...chosen);
    this.#warn = warn;
  }

  /** Null where none is asked for. Error: PL_OUTPUT_UNWRITABLE. */
  static async open(
    { trace, trace_steps }: Pick<Config, "trace" | "trace_steps">,
    warn: (text: string) => void,
  ): Promise<TraceFile | null> {
    if (trace === null) return null;
    await ensureWritable(dirname(resolve(trace)));
    return new TraceFile(resolve(trace), tracedSteps(trace_steps), warn);
  }

  /** Ranks begin anew with an attempt, and so does what they tell. */
  begin(): void {
    this.#steps = [];
    this.#written = false;
  }

  /** A step has ended just now. `started`: by performance.now(). */
  async stepped(step: number, started: number, traced: Traced): Promise<void> {
    if (this.#chosen.has(step)) {
      this.#steps.push({
        step,
        startMs: performance.timeOrigin + started,
        endMs: performance.timeOrigin + performance.now(),
      });
    }
    if (step >= this.#last) await this.finish(traced);
  }

  /** Nothing more is to be traced. */
  async finish({ members, pipeline }: Traced): Promise<void> {
    if (this.#written) return;
    this.#written = true;
    if (this.#steps.length === 0) {
      this.#warn(`no trace is written: none of its steps was run (--trace-steps)`);
      return;
    }
    const reports = await pipeline.report();
    const clocks = await pipeline.clocks();
    const ranks = reports.map(({ spans }, rank): RankTrace => {
      const { node, device, deviceName } = members[rank]!.hello;
      return { name: `${node}/${device} (${deviceName})`, spans, ...clocks[rank]! };
    });
    try {
      const temporary = `${this.#path}.tmp`;
      await writeFile(temporary, JSON.stringify(chromeTrace(this.#steps, ranks)));
      await rename(temporary, this.#path);
    } catch (error) {
      this.#warn(`the trace can't be written: ${(error as Error).message}`);
    }
  }
}
