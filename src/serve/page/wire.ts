/** Messages between server and page: the one file that both import. Times are milliseconds since 1970, unless a name says otherwise. */

/** silent: the run has not ended, and has reported nothing for long. */
export type RunStatus = "waiting" | "running" | "done" | "stopped" | "failed" | "silent";

export interface RunSummary {
  /** Path below the folder that is shown; "" for that folder itself. */
  readonly id: string;
  readonly name: string;
  readonly status: RunStatus;
  readonly step: number;
  readonly maxSteps: number | null;
  readonly epoch: number | null;
  /** Of the last step. */
  readonly loss: number | null;
  readonly evalLoss: number | null;
  readonly bestEvalLoss: number | null;
  /** Over the last steps. */
  readonly tokensPerSecond: number | null;
  readonly secondsLeft: number | null;
  readonly startedAt: number | null;
  readonly heardAt: number | null;
  readonly error: RunError | null;
}

export interface RunError {
  readonly code: string;
  readonly message: string;
  readonly hint: string | null;
}

export interface RunList {
  /** The folder's last part. */
  readonly folder: string;
  readonly version: string;
  readonly runs: readonly RunSummary[];
  /** Number of runs that are left out because there are too many. */
  readonly leftOut: number;
  /** Settings that differ between runs: by name, the value of each run in the order of `runs`. */
  readonly differing: Readonly<Record<string, readonly string[]>>;
  /** Whether /v1 answers here. */
  readonly chat: boolean;
}

/** Everything of a run that is small. */
export interface RunView {
  readonly summary: RunSummary;
  readonly settings: readonly Setting[];
  readonly placement: Placement | null;
  readonly nodes: readonly NodeView[];
  readonly links: readonly LinkView[];
  readonly checkpoints: readonly CheckpointView[];
}

export interface Setting {
  readonly name: string;
  readonly value: string;
  /** Whether it differs from the default; null: unknown. */
  readonly changed: boolean | null;
}

export interface Placement {
  readonly strategy: string;
  readonly layers: readonly string[];
  readonly replicas: number;
  readonly devices: readonly PlacedDevice[];
  readonly predicted: {
    readonly stepMs: number;
    /** 0 to 1 */
    readonly bubble: number;
    readonly tokensPerSecond: number;
  } | null;
  readonly microBatches: number | null;
  readonly microBatchTokens: number | null;
  readonly measuredStepMs: number | null;
}

export interface PlacedDevice {
  readonly rank: number;
  readonly name: string;
  readonly node: string;
  readonly segments: readonly { readonly index: number; readonly first: number; readonly last: number }[];
  readonly budget: number;
  readonly predicted: readonly MemoryPart[];
  /** What of it was measured. */
  readonly measured: readonly MemoryPart[];
}

/** activations: with all workspaces, since they share an arena. */
export type MemoryName = "weights" | "lora" | "activations" | "cache" | "driver";

export interface MemoryPart {
  readonly name: MemoryName;
  readonly bytes: number;
}

export interface NodeView {
  readonly name: string;
  readonly devices: readonly {
    readonly rank: number;
    readonly device: string;
    readonly name: string;
    readonly memoryBytes: number;
  }[];
  readonly freeMemoryBytes: number | null;
  readonly freeDiskBytes: number | null;
  readonly clockSkewMs: number | null;
}

export interface LinkView {
  readonly from: number;
  readonly to: number;
  /** "shm", "grpc", "nccl" */
  readonly kind: string;
  /** Found before the run. */
  readonly probe: { readonly latencyMs: number; readonly bytesPerSecond: number } | null;
  /** In the step that the timeline shows; milliseconds are the sum over its messages. */
  readonly step: { readonly bytes: number; readonly ms: number; readonly messages: number } | null;
}

export interface CheckpointView {
  readonly name: string;
  readonly step: number;
  readonly savedAt: number | null;
  /** null: it is no longer there. */
  readonly bytes: number | null;
  readonly best: boolean;
}

/** Columns of points, each of which stands for one step or for several. */
export interface Points {
  /** The last step that a point stands for. */
  readonly step: readonly number[];
  /** Mean, least and most. */
  readonly loss: readonly (number | null)[];
  readonly lossLow: readonly (number | null)[];
  readonly lossHigh: readonly (number | null)[];
  readonly learningRate: readonly (number | null)[];
  /** Mean and greatest: one bad step stays visible among good ones. */
  readonly gradientNorm: readonly (number | null)[];
  readonly gradientNormHigh: readonly (number | null)[];
  readonly tokensPerSecond: readonly (number | null)[];
}

export interface Series {
  readonly points: Points;
  readonly evaluations: readonly Evaluation[];
  /** Number of steps known of the run, whatever part was requested. */
  readonly firstStep: number;
  readonly lastStep: number;
  readonly cursor: Cursor;
}

export interface Evaluation {
  readonly step: number;
  readonly loss: number;
  readonly seconds: number | null;
}

/** Up to where a client has a run's points; it is sent those after it. */
export interface Cursor {
  /** Changes whenever points that were sent are outdated. */
  readonly generation: number;
  readonly rows: number;
}

/** `seq` ascends without gaps. */
export interface LogLine {
  readonly seq: number;
  readonly at: number;
  readonly level: "debug" | "info" | "warn" | "error";
  readonly text: string;
}

export interface LogPage {
  readonly lines: readonly LogLine[];
  /** The oldest that can be asked for. */
  readonly first: number;
}

export interface Reply {
  readonly step: number;
  readonly prompt: string;
  readonly text: string;
}

export interface Replies {
  readonly replies: readonly Reply[];
  /** Older ones that are not told. */
  readonly leftOut: number;
}

export const SPAN_KINDS = ["update", "forward", "backward", "wait", "send", "receive", "reduce", "norm"] as const;
export type SpanKind = (typeof SPAN_KINDS)[number];

/** Index in SPAN_KINDS; begin and length in milliseconds from the step's begin; segment, micro-batch, peer, or -1. */
export type Span = readonly [kind: number, begin: number, length: number, segment: number, batch: number, peer: number];

/** One step as all ranks saw it, on the coordinator's clock. */
export interface Timeline {
  readonly step: number;
  readonly at: number;
  readonly ms: number;
  readonly ranks: readonly {
    readonly rank: number;
    readonly name: string;
    /** How wrong its times can be. */
    readonly clockErrorMs: number;
    readonly spans: readonly Span[];
  }[];
}

export interface TimelineAnswer {
  /** null: no step was recorded yet. */
  readonly timeline: Timeline | null;
  /** Whether steps are recorded every few seconds because a client looks. */
  readonly often: boolean;
}

/** A counter for each part of a run, which changes when that part does. */
export interface Revisions {
  readonly view: number;
  readonly log: number;
  readonly evaluations: number;
  readonly timeline: number;
  readonly replies: number;
}

/** An event of /page/live. */
export interface Change {
  readonly summary: RunSummary;
  readonly revisions: Revisions;
  /** What came since the event before; null: request the series anew. */
  readonly points: Points | null;
}
