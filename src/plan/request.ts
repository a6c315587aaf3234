import type { FloatDtype, LinkDtype } from "../common/dtype.ts";
import type { Schedule, SchedulePolicy } from "../common/schedule-policies.ts";
import { pairMatrices } from "../models/kinds/lora.ts";
import type { NamedMatrix } from "../models/kinds/named-matrix.ts";
import type { LoraTarget } from "../models/lora-targets.ts";
import type { ModelSpec } from "../models/spec.ts";
import type { Device, MaxMemory } from "./devices.ts";
import type { Holding } from "./memory/held-sizes.ts";

/**
 * balanced: the largest load as small as can be, each layer on one device. auto: the same over all devices, but that they may share the head
 * and take several segments each where that makes the predicted step shorter. balanced_low_0: device 0 takes as little as the others
 * allow. sequential: fills the devices in order, uses the fewest. fastest: like auto over as many devices as make the predicted step shortest.
 */
export type NamedStrategy = "auto" | "balanced" | "balanced_low_0" | "sequential" | "fastest";

export const STRATEGIES: readonly NamedStrategy[] = ["auto", "balanced", "balanced_low_0", "sequential", "fastest"];

/**
 * {module: device}: a number, "0", "cuda:0", or "cpu" where there is exactly one CPU device. "" is the whole model. The head may have a list:
 * devices that take its micro-batches in turn.
 */
export type DeviceMapInput = Readonly<Record<string, MapDevice | readonly MapDevice[]>>;

export type MapDevice = number | string;

/** all: every block keeps only its input, or waits on the host whole. none: everything is kept. auto: as few blocks recompute as the budgets allow. */
export type Checkpointing = "all" | "none" | "auto";

/**
 * Which blocks keep quantised weights in the compute dtype too. on: all. auto: on GPUs, as many as the budgets hold once
 * everything else is placed.
 */
export type WeightCache = "off" | "auto" | "on";

/** Whether activations may wait in the host's memory; auto: where copying them there costs no time, rather than computing them again. */
export type ActivationOffload = "off" | "auto";

/** What one optimizer step does, as far as memory and time depend on it. */
export interface Work {
  readonly microBatches: number;
  /** Most tokens of a micro-batch. */
  readonly tokens: number;
  /** Most label tokens of a micro-batch; at most `tokens`. */
  readonly labelTokens: number;
  /** Of a micro-batch on average: what time depends on. */
  readonly meanTokens: number;
  readonly meanLabelTokens: number;
  /** Tokens of the row that a token is in, on average: attention's cost grows with it. */
  readonly rowTokens: number;
  readonly schedule: Schedule;
  readonly checkpointing: Checkpointing;
  /** Tokens of all sequences in a key/value cache; 0: none. */
  readonly cacheTokens: number;
  /** Sequences that have a state in it at a time; left out: 1. */
  readonly cacheSequences?: number;
  /** Sequences are continued, and nothing is trained: no pass goes back. */
  readonly forwardOnly?: boolean;
  /** One pass over the held-out rows; left out: there are none. */
  readonly evaluation?: EvaluationWork;
}

/** What one evaluation does in the replica that does most, as far as time depends on it. */
export interface EvaluationWork extends Pick<Work, "microBatches" | "meanTokens" | "meanLabelTokens" | "rowTokens"> {
  readonly rows: number;
  /** Requests that its micro-batches come in: the pipeline fills and drains in each. */
  readonly requests: number;
}

/** What a request is counted with whose schedule is yet to be chosen. */
export function policyOf({ schedule }: Pick<Work, "schedule">): SchedulePolicy {
  return schedule === "auto" ? "1f1b" : schedule;
}

export interface PlanRequest {
  readonly spec: ModelSpec;
  /** Ranks are positions in this list by ascending id. */
  readonly devices: readonly Device[];
  readonly maxMemory: MaxMemory | null;
  readonly strategy: NamedStrategy | DeviceMapInput;
  readonly planner: "pipelora" | "accelerate";
  readonly holding: Holding;
  readonly computeDtype: FloatDtype;
  /** What activations and gradients are rounded to between ranks; null, or left out: they go as they are. */
  readonly linkDtype?: LinkDtype | null;
  readonly weightCache: WeightCache;
  readonly activationOffload: ActivationOffload;
  /** Ranks tell their trained values once a step (an elastic run); left out: they don't. */
  readonly tellsState?: boolean;
  /** Empty: nothing learns (generation, evaluation). */
  readonly lora: readonly LoraTarget[];
  /** Everything that is trained; left out: the pairs' own. */
  readonly matrices?: readonly NamedMatrix[];
  /** Other adapters that are trained over the same base; left out: none. */
  readonly beside?: readonly Learning[];
  readonly work: Work;
  readonly rates: RateOverrides;
}

/** What one adapter trains. */
export type Learning = Pick<PlanRequest, "lora" | "matrices">;

/** The request with each of its adapters alone. */
export function eachAdapter(request: PlanRequest): PlanRequest[] {
  const { beside = [], ...first } = request;
  return [first, ...beside.map(({ lora, matrices = lora.flatMap(pairMatrices) }) => ({ ...first, lora, matrices }))];
}

/** Measured speeds in place of the assumed ones. */
export interface RateOverrides {
  /** By device id; devices that are not named go by their kind and name. */
  readonly measured: ReadonlyMap<number, MeasuredDevice>;
  /** Between two devices, or two nodes, by `linkKey` of their ids or names, either way. */
  readonly links: ReadonlyMap<string, LinkRate>;
  /** Nodes with more CPU workers than their cores carry at full speed, and how many that are. */
  readonly crowded: ReadonlyMap<string, number>;
}

export function linkKey(a: number | string, b: number | string): string {
  return JSON.stringify(a < b ? [a, b] : [b, a]);
}

/** Seconds that a device took for layers of the model. */
export interface MeasuredDevice {
  /** The layer whose times are `block`. */
  readonly blockLayer: number;
  /** Ascending by tokens. */
  readonly block: readonly TimePoint[];
  /** The final norm and the head, by label tokens. */
  readonly head: readonly TimePoint[];
  /** The gradient norm and the update of one block's LoRA pairs, once a step. */
  readonly update: number;
}

export interface TimePoint {
  readonly tokens: number;
  readonly forward: number;
  /** Without recompute. */
  readonly backward: number;
}

export interface LinkRate {
  readonly bytesPerSecond: number;
  /** Seconds a message. */
  readonly latency: number;
  /** Seconds a byte takes of each end's own compute (a CPU worker shares its cores with its links). */
  readonly compute: number;
}

/** What tells how fast a plan runs: its devices, and what was measured of them. */
export type Speeds = Pick<PlanRequest, "devices" | "rates">;

export const NO_OVERRIDES: RateOverrides = { measured: new Map(), links: new Map(), crowded: new Map() };
