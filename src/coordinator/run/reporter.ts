import type { PipeloraError } from "../../common/errors.ts";
import type { Saved } from "./checkpoints/run-files.ts";
import type { LogEntry } from "./checkpoints/trainer-state.ts";

export interface StepProgress {
  readonly step: number;
  readonly maxSteps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly learningRate: number;
  /** Before clipping; infinite where a loss scale was too large. */
  readonly gradNorm: number;
  readonly tokens: number;
  readonly stepMs: number;
}

/** What a run is, before anything of it is done. */
export interface RunBeginning {
  /** As they may be written to a file. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Names of those that are not the default. */
  readonly changed: readonly string[];
}

/** Kind, begin and length in milliseconds from the step's begin, segment, micro-batch, peer, bytes; -1 where there is none. */
export type SpanRow = readonly [string, number, number, number, number, number, number];

/** A step as every rank saw it, on the coordinator's clock, and what the ranks have measured until then. */
export interface LastStep {
  readonly step: number;
  /** Since 1970. */
  readonly began_ms: number;
  readonly ms: number;
  readonly ranks: readonly {
    readonly rank: number;
    readonly name: string;
    readonly clock_error_ms: number;
    readonly spans: readonly SpanRow[];
  }[];
  /** As in predictions. */
  readonly measured: object;
}

/** A reply to one of the prompts that are answered at every evaluation. */
export interface Sample {
  readonly prompt: string;
  readonly reply: string;
}

/** What of a run is shown as it goes; a terminal, plain lines, and JSON each have their own way. */
export interface Shown {
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

/** All that a run tells: what is shown, and what only those hear who keep it. */
export interface Reporter extends Shown {
  began(run: RunBeginning): void;
  /** Now and then, and more often while somebody looks. */
  lastStep(last: LastStep): void;
}
