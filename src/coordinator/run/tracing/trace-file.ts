import { dirname, resolve } from "node:path";
import { ensureWritable } from "../../../common/output-dir.ts";
import { tracedSteps } from "../../../common/traced-steps.ts";
import type { Config } from "../../../config/options.ts";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { chromeTrace, type RankTrace, type StepSpan } from "./chrome-trace.ts";
import type { ToldSteps } from "./told-steps.ts";

/** The file of --trace. It is written after the last chosen step, or at the run's end. */
export class TraceFile {
  readonly #path: string;
  readonly #chosen: ReadonlySet<number>;
  readonly #last: number;
  readonly #warn: (text: string) => void;
  #steps: StepSpan[] = [];
  #ranks: RankTrace[] = [];
  #written = false;

  private constructor(path: string, chosen: readonly number[], warn: (text: string) => void) {
    this.#path = path;
    this.#chosen = new Set(chosen);
    this.#last = Math.max(...chosen);
    this.#warn = warn;
  }

  /** Opens the file; null if no trace is asked for. Errors: PL_OUTPUT_UNWRITABLE. */
  static async open(
    { trace, trace_steps }: Pick<Config, "trace" | "trace_steps">,
    warn: (text: string) => void,
  ): Promise<TraceFile | null> {
    if (trace === null) return null;
    await ensureWritable(dirname(resolve(trace)));
    return new TraceFile(resolve(trace), tracedSteps(trace_steps), warn);
  }

  /** Begins a new attempt, in which ranks record from the start. */
  begin(): void {
    this.#steps = [];
    this.#ranks = [];
    this.#written = false;
  }

  wants(step: number): boolean {
    return this.#chosen.has(step);
  }

  /** Whether this is the last chosen step. */
  endsWith(step: number): boolean {
    return !this.#written && step >= this.#last;
  }

  /** Keeps the chosen ones of these steps. */
  async told({ steps, ranks }: ToldSteps): Promise<void> {
    this.#steps.push(...steps.filter(({ step }) => this.#chosen.has(step)));
    const chosen = ranks.map((rank) => ({ ...rank, spans: rank.spans.filter(({ step }) => this.#chosen.has(step)) }));
    // With the latest comparison of clocks.
    this.#ranks = chosen.map((rank, index) => ({
      ...rank,
      spans: [...(this.#ranks[index]?.spans ?? []), ...rank.spans],
    }));
    if (steps.some(({ step }) => this.endsWith(step))) await this.finish();
  }

  /** Writes the file if it has not been written. */
  async finish(): Promise<void> {
    if (this.#written) return;
    this.#written = true;
    if (this.#steps.length === 0) {
      this.#warn(`no trace is written: none of its steps was run (--trace-steps)`);
      return;
    }
    try {
      await writeTextAtomically(this.#path, JSON.stringify(chromeTrace(this.#steps, this.#ranks)));
    } catch (error) {
      this.#warn(`there is no trace: ${(error as Error).message}`);
    }
  }
}
