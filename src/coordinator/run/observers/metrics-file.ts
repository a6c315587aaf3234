import { createReadStream } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { PipeloraError } from "../../../common/errors.ts";
import { isFile } from "../../../common/files.ts";
import { METRICS_FILE } from "../../../serve/page/folder-run.ts";
import type { Saved } from "../checkpoints/run-files.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import type { StepProgress } from "../reporter.ts";
import { endEvent, failedEvent, logEvent, type RunEvent, saveEvent, stepEvent } from "./events.ts";
import { Background, type Observer } from "./observer.ts";

/**
 * Writes metrics.jsonl in the output folder: a JSON object a line, with "event" (step, log, save, end or failed) and "time" (Unix seconds). Steps
 * ascend, because a run that resumes first removes the lines of the steps that it repeats.
 */
export class MetricsFile implements Observer {
  readonly #path: string;
  readonly #written: Background;
  #file: FileHandle | null = null;
  /** The offset of the first line about each step, ascending. */
  #begins: { readonly step: number; readonly at: number }[] = [];
  #end = 0;

  constructor(outputDir: string, warn: (text: string) => void) {
    this.#path = join(outputDir, METRICS_FILE);
    this.#written = new Background((message) => warn(`${METRICS_FILE} can't be written: ${message}`));
  }

  step(progress: StepProgress): void {
    this.#add(progress.step, stepEvent(progress));
  }

  log(entry: LogEntry): void {
    this.#add(entry.step, logEvent(entry));
  }

  saved(saved: Saved, step: number): void {
    this.#add(step, saveEvent(saved, step));
  }

  end(summary: Readonly<Record<string, unknown>>): void {
    this.#add(null, endEvent(summary));
  }

  failed({ code, message }: PipeloraError): void {
    this.#add(null, failedEvent({ code, message }));
  }

  async close(): Promise<void> {
    this.#written.add(async () => this.#file?.close());
    await this.#written.done();
  }

  #add(step: number | null, value: RunEvent): void {
    const time = Date.now() / 1000;
    this.#written.add(async () => {
      this.#file ??= await this.#open();
      if (value.event === "step") await this.#backTo(step!);
      const known = this.#begins.at(-1)?.step ?? 0;
      if (step !== null && step > known) this.#begins.push({ step, at: this.#end });
      const line = Buffer.from(`${JSON.stringify({ ...value, time })}\n`);
      await this.#file.write(line, 0, line.length, this.#end);
      this.#end += line.length;
    });
  }

  /** Removes the lines of this step and later ones. */
  async #backTo(step: number): Promise<void> {
    const first = this.#begins.findIndex((begin) => begin.step >= step);
    if (first < 0) return;
    this.#end = this.#begins[first]!.at;
    this.#begins = this.#begins.slice(0, first);
    await this.#file!.truncate(this.#end);
  }

  /** Reads what an earlier process wrote, and removes an unfinished last line. */
  async #open(): Promise<FileHandle> {
    if (await isFile(this.#path)) {
      const lines = createInterface({ input: createReadStream(this.#path), crlfDelay: Number.POSITIVE_INFINITY });
      for await (const line of lines) {
        const step = stepOf(line);
        if (step === undefined) break;
        if (step !== null && step > (this.#begins.at(-1)?.step ?? 0)) this.#begins.push({ step, at: this.#end });
        this.#end += Buffer.byteLength(line) + 1;
      }
    }
    const file = await open(this.#path, (await isFile(this.#path)) ? "r+" : "w+");
    const { size } = await file.stat();
    this.#end = Math.min(this.#end, size);
    await file.truncate(this.#end);
    return file;
  }
}

/** The step of a line. Null: the line is about no step. Undefined: it is no complete line of such a file. */
function stepOf(line: string): number | null | undefined {
  try {
    const { event, step } = JSON.parse(line) as { event?: unknown; step?: unknown };
    if (typeof event !== "string") return undefined;
    return typeof step === "number" ? step : null;
  } catch {
    return undefined;
  }
}
