import type { PipeloraError } from "../../common/errors.ts";
import type { Saved } from "./run-files.ts";
import type { LogEntry } from "./trainer-state.ts";

export interface StepProgress {
  readonly step: number;
  readonly maxSteps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly learningRate: number;
  readonly tokens: number;
  readonly stepMs: number;
}

/** A reply to one of the prompts that are answered at every evaluation. */
export interface Sample {
  readonly prompt: string;
  readonly reply: string;
}

/** What a run tells as it goes; a terminal, plain lines, and JSON each have their own way to show it. */
export interface Reporter {
  plan(text: string, value: unknown): void;
  /** What was found of nodes and links before anything is loaded. */
  preflight(text: string, value: unknown): void;
  /** One sentence on what is being done, e.g. "loading 4 shards". */
  note(text: string): void;
  step(progress: StepProgress): void;
  log(entry: LogEntry): void;
  /** At a run's end: what was predicted beside what was measured. */
  predictions(text: string, value: object): void;
  samples(samples: readonly Sample[], step: number): void;
  saved(saved: Saved, step: number): void;
  end(summary: Readonly<Record<string, unknown>>): void;
  /** Of an adapter that ends before the others do, by a fault of its own. */
  failed(error: PipeloraError): void;
}
