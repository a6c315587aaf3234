import type { PipeloraError } from "../../../common/errors.ts";
import { FolderRun } from "../../../serve/page/folder-run.ts";
import { RunRecord } from "../../../serve/page/run-record.ts";
import type { RunSource } from "../../../serve/page/run-source.ts";
import type { Saved } from "../checkpoints/run-files.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import type { LastStep, RunBeginning, Sample, StepProgress } from "../reporter.ts";
import {
  beganEvent,
  endEvent,
  failedEvent,
  type Line,
  lastStepEvent,
  lineEvent,
  logEvent,
  type RunEvent,
  saveEvent,
  stepEvent,
} from "./events.ts";
import type { Observer } from "./observer.ts";

/** After a request for the last step, it is kept up to date for this long, because the page asks again. */
const LOOKING_MS = 10_000;

/** This process's own run as a source for the page, without reading files. */
export class LiveRun implements Observer, RunSource {
  readonly id: string;
  readonly dir: string;
  readonly live = true;
  readonly record: RunRecord;
  #lookedAt = Number.NEGATIVE_INFINITY;

  private constructor(id: string, dir: string, record: RunRecord) {
    this.id = id;
    this.dir = dir;
    this.record = record;
  }

  /** `id`: the adapter's name, "" for the only one. `resumes`: the folder's records of earlier steps belong to this run. */
  static async open(id: string, dir: string, resumes: boolean): Promise<LiveRun> {
    if (!resumes) return new LiveRun(id, dir, new RunRecord());
    const before = new FolderRun(id, dir);
    await before.refresh();
    return new LiveRun(id, dir, before.record);
  }

  async refresh(): Promise<void> {}

  looked(): boolean {
    this.#lookedAt = performance.now();
    return this.record.ending === null;
  }

  /** Whether the last step was requested lately. */
  get isLookedAt(): boolean {
    return performance.now() - this.#lookedAt < LOOKING_MS;
  }

  began(run: RunBeginning): void {
    this.#tell(beganEvent(run));
  }

  plan(_text: string, value: unknown): void {
    this.#tell({ event: "plan", plan: value });
  }

  preflight(_text: string, value: unknown): void {
    this.#tell({ event: "preflight", preflight: value });
  }

  note(text: string): void {
    this.line({ level: "info", text });
  }

  line(line: Line): void {
    this.#tell(lineEvent(line));
  }

  step(progress: StepProgress): void {
    this.#tell(stepEvent(progress));
  }

  log(entry: LogEntry): void {
    this.#tell(logEvent(entry));
  }

  lastStep(last: LastStep): void {
    this.#tell(lastStepEvent(last));
  }

  predictions(text: string, value: object): void {
    this.#tell({ event: "predictions", predictions: value });
    this.line({ level: "info", text });
  }

  samples(samples: readonly Sample[], step: number): void {
    for (const { prompt, reply } of samples) this.record.addReply({ step, prompt, text: reply });
  }

  saved(saved: Saved, step: number): void {
    this.#tell(saveEvent(saved, step));
    this.line({ level: "info", text: `saved ${saved.path}` });
  }

  end(summary: Readonly<Record<string, unknown>>): void {
    this.#tell(endEvent(summary));
  }

  failed(error: PipeloraError): void {
    this.#tell(failedEvent(error));
  }

  async close(): Promise<void> {}

  #tell(event: RunEvent): void {
    this.record.apply({ ...event, time: Date.now() / 1000 });
  }
}
