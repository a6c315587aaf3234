import type { PipeloraError } from "../../common/errors.ts";
import type { Saved } from "./checkpoints/run-files.ts";
import type { LogEntry } from "./checkpoints/trainer-state.ts";

export interface StepProgress {
  readonly step: number;
  readonly maxSteps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly learningRate: number;
  /** The gradients' norm before clipping; infinite if a loss scale was too large. */
  readonly gradNorm: number;
  readonly tokens: number;
  readonly stepMs: number;
}

/** Facts of a run that are known when it begins. */
export interface RunBeginning {
  /** Settings without secrets, so that they may be written to a file. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** Names of settings that differ from the default. */
  readonly changed: readonly string[];
}

/** Kind, start (milliseconds from the start of the step), length (milliseconds), segment, micro-batch, peer, bytes. -1: does not apply. */
export type SpanRow = readonly [string, number, number, number, number, number, number];

/** A step as every rank recorded it, on the coordinator's clock, and the ranks' measurements so far. */
export interface LastStep {
  readonly step: number;
  /** Milliseconds since 1970. */
  readonly began_ms: number;
  readonly ms: number;
  readonly ranks: readonly {
    readonly rank: number;
    readonly name: string;
    readonly clock_error_ms: number;
    readonly spans: readonly SpanRow[];
  }[];
  /** In the same form as predictions. */
  readonly measured: object;
}

/** A prompt of --sample-prompts and the reply to it. */
export interface Sample {
  readonly prompt: string;
  readonly reply: string;
}

/** The events of a run that are shown: in a terminal, as plain lines or as JSON. */
export interface Shown {
  plan(text: string, value: unknown): void;
  /** The preflight's findings about nodes and links. */
  preflight(text: string, value: unknown): void;
  /** A sentence about what is being done, e.g. "loading 4 shards". */
  note(text: string): void;
  step(progress: StepProgress): void;
  log(entry: LogEntry): void;
  /** At a run's end: predictions and measurements. */
  predictions(text: string, value: object): void;
  samples(samples: readonly Sample[], step: number): void;
  saved(saved: Saved, step: number): void;
  end(summary: Readonly<Record<string, unknown>>): void;
  /** An adapter has ended with an error while the others go on. */
  failed(error: PipeloraError): void;
}

/** All events of a run: those that are shown, and those that are only kept. */
export interface Reporter extends Shown {
  began(run: RunBeginning): void;
  /** Called now and then, and more often while the page shows the last step. */
  lastStep(last: LastStep): void;
}
