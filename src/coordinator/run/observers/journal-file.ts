import { appendFile } from "node:fs/promises";
import { join } from "node:path";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { JOURNAL_FILE, LAST_STEP_FILE } from "../../../serve/page/folder-run.ts";
import type { Saved } from "../checkpoints/run-files.ts";
import type { LastStep, RunBeginning } from "../reporter.ts";
import { beganEvent, endedEvent, type Line, lastStepEvent, lineEvent, type RunEvent } from "./events.ts";
import { Background, type Observer } from "./observer.ts";

/** The last step is written at most this often. The very last one is always written. */
const LAST_STEP_MS = 60_000;

/**
 * Writes what metrics.jsonl does not contain. run.jsonl only grows and has one JSON object a line: "event" is began, plan, preflight, line or
 * ended, "time" is in Unix seconds. last-step.json has the last recorded step. Nothing is written for a run that did not begin.
 */
export class JournalFile implements Observer {
  readonly #dir: string;
  readonly #written: Background;
  #began = false;
  /** Lines from before the run began. */
  #early: string[] = [];
  #last: LastStep | null = null;
  #lastWritten = Number.NEGATIVE_INFINITY;

  constructor(outputDir: string, warn: (text: string) => void) {
    this.#dir = outputDir;
    this.#written = new Background((message) => warn(`${JOURNAL_FILE} can't be written: ${message}`));
  }

  began(run: RunBeginning): void {
    const said = this.#early;
    this.#early = [];
    this.#began = true;
    this.#add(beganEvent(run));
    if (said.length > 0) this.#append(said.join(""));
  }

  plan(_text: string, value: unknown): void {
    this.#add({ event: "plan", plan: value });
  }

  preflight(_text: string, value: unknown): void {
    this.#add({ event: "preflight", preflight: value });
  }

  note(text: string): void {
    this.line({ level: "info", text });
  }

  saved({ path }: Saved): void {
    this.line({ level: "info", text: `saved ${path}` });
  }

  predictions(text: string, value: object): void {
    this.#add({ event: "predictions", predictions: value });
    this.line({ level: "info", text });
  }

  /** A line of the log. */
  line(line: Line): void {
    this.#add(lineEvent(line));
  }

  lastStep(last: LastStep): void {
    this.#last = last;
    if (performance.now() - this.#lastWritten >= LAST_STEP_MS) this.#writeLastStep();
  }

  async close(error: unknown): Promise<void> {
    if (this.#last !== null) this.#writeLastStep();
    if (this.#began) this.#add(endedEvent(error));
    await this.#written.done();
  }

  #add(event: RunEvent): void {
    const line = `${JSON.stringify({ ...event, time: Date.now() / 1000 })}\n`;
    if (this.#began) this.#append(line);
    else this.#early.push(line);
  }

  #append(text: string): void {
    this.#written.add(() => appendFile(join(this.#dir, JOURNAL_FILE), text));
  }

  #writeLastStep(): void {
    const text = JSON.stringify({ ...lastStepEvent(this.#last!), time: Date.now() / 1000 });
    this.#last = null;
    this.#lastWritten = performance.now();
    this.#written.add(() => writeTextAtomically(join(this.#dir, LAST_STEP_FILE), text));
  }
}
