import type { FloatDtype, LinkDtype } from "../common/dtype.ts";
import type { Schedule, SchedulePolicy } from "../common/schedule-policies.ts";
import { pairMatrices } from "../models/kinds/lora.ts";
import type { NamedMatrix } from "../models/kinds/named-matrix.ts";
import type { LoraTarget } from "../models/lora-targets.ts";
import type { ModelSpec } from "../models/spec.ts";
import type { Device, MaxMemory } from "./devices.ts";
import type { Holding } from "./memory/held-sizes.ts";

/**
 * - balanced: each layer on one device, the largest load as small as possible.
 * - auto: like balanced over all devices. Devices may also share the head or take several segments if that makes the predicted step shorter.
 * - balanced_low_0: device 0 takes as little as the others allow.
 * - sequential: fills the devices in order, and so uses the fewest.
 * - fastest: like auto, over as many devices as make the predicted step shortest.
 */
export type NamedStrategy = "auto" | "balanced" | "balanced_low_0" | "sequential" | "fastest";

export const STRATEGIES: readonly NamedStrategy[] = ["auto", "balanced", "balanced_low_0", "sequential", "fastest"];

/**
 * {module: device}. A device is a number, "0", "cuda:0", or "cpu" if there is exactly one CPU device. The module "" is the whole model. The
 * head may have a list of devices, which take its micro-batches in turn.
 */
export type DeviceMapInput = Readonly<Record<string, MapDevice | readonly MapDevice[]>>;

export type MapDevice = number | string;

/**
 * Which blocks keep only their input and recompute. all: every block that is not offloaded. none: no block. auto: as few as the budgets allow.
 */
export type Checkpointing = "all" | "none" | "auto";

/**
 * Which blocks keep their quantised weights in the compute dtype too. on: all. auto: on GPUs, as many as the budgets hold after everything
 * else is placed.
 */
export type WeightCache = "off" | "auto" | "on";

/** Whether activations may be offloaded to the host. auto: instead of recomputing, where copying them takes no extra time. */
export type ActivationOffload = "off" | "auto";

/** The facts of one optimizer step on which memory and time depend. */
export interface Work {
  readonly microBatches: number;
  /** Most tokens of a micro-batch. */
  readonly tokens: number;
  /** Most label tokens of a micro-batch; at most `tokens`. */
  readonly labelTokens: number;
  /** Mean tokens, and label tokens, of a micro-batch: time depends on these. */
  readonly meanTokens: number;
  readonly meanLabelTokens: number;
  /** Mean length of a token's row, over tokens: attention's cost grows with it. */
  readonly rowTokens: number;
  readonly schedule: Schedule;
  readonly checkpointing: Checkpointing;
  /** Tokens of all sequences in a key/value cache; 0: none. */
  readonly cacheTokens: number;
  /** Sequences in the cache at a time. Absent: 1. */
  readonly cacheSequences?: number;
  /** Whether there are forward passes only: generation. */
  readonly forwardOnly?: boolean;
  /** One pass over the held-out rows. Absent: there are none. */
  readonly evaluation?: EvaluationWork;
}

/** The facts of one evaluation on which its time depends, in the replica with the most work. */
export interface EvaluationWork extends Pick<Work, "microBatches" | "meanTokens" | "meanLabelTokens" | "rowTokens"> {
  readonly rows: number;
  /** How many requests its micro-batches are sent in. The pipeline fills and drains in each. */
  readonly requests: number;
}

/** The schedule that a request is counted with: 1F1B until one is chosen. */
export function policyOf({ schedule }: Pick<Work, "schedule">): SchedulePolicy {
  return schedule === "auto" ? "1f1b" : schedule;
}

export interface PlanRequest {
  readonly spec: ModelSpec;
  /** A device's rank is its position by ascending id. */
  readonly devices: readonly Device[];
  readonly maxMemory: MaxMemory | null;
  readonly strategy: NamedStrategy | DeviceMapInput;
  readonly planner: "pipelora" | "accelerate";
  readonly holding: Holding;
  readonly computeDtype: FloatDtype;
  /** The dtype to which links round activations and gradients. Null or absent: they are sent unrounded. */
  readonly linkDtype?: LinkDtype | null;
  readonly weightCache: WeightCache;
  readonly activationOffload: ActivationOffload;
  /** Whether ranks send their trained values to the coordinator once a step (an elastic run). Absent: no. */
  readonly tellsState?: boolean;
  /** Empty: nothing is trained (generation, evaluation). */
  readonly lora: readonly LoraTarget[];
  /** All trained matrices. Absent: those of `lora`. */
  readonly matrices?: readonly NamedMatrix[];
  /** Other adapters that are trained over the same base. Absent: none. */
  readonly beside?: readonly Learning[];
  readonly work: Work;
  readonly rates: RateOverrides;
}

/** The trained matrices of one adapter. */
export type Learning = Pick<PlanRequest, "lora" | "matrices">;

/** One request for each adapter, with that adapter alone. */
export function eachAdapter(request: PlanRequest): PlanRequest[] {
  const { beside = [], ...first } = request;
  return [first, ...beside.map(({ lora, matrices = lora.flatMap(pairMatrices) }) => ({ ...first, lora, matrices }))];
}

/** Measured speeds in place of the assumed ones. */
export interface RateOverrides {
  /** By device id. The speed of any other device is assumed from its kind and name. */
  readonly measured: ReadonlyMap<number, MeasuredDevice>;
  /** Between two devices or two nodes, in both directions, by `linkKey` of their ids or names. */
  readonly links: ReadonlyMap<string, LinkRate>;
  /** Nodes with more CPU workers than their cores can run at full speed, and how many they can. */
  readonly crowded: ReadonlyMap<string, number>;
}

export function linkKey(a: number | string, b: number | string): string {
  return JSON.stringify(a < b ? [a, b] : [b, a]);
}

/** Measured seconds of the model's layers on a device. */
export interface MeasuredDevice {
  /** The layer that `block` was measured on. */
  readonly blockLayer: number;
  /** Ascending by tokens. */
  readonly block: readonly TimePoint[];
  /** The final norm and the head, by label tokens. */
  readonly head: readonly TimePoint[];
  /** Gradient norm and update of one block's LoRA pairs, once a step. */
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
  /** Seconds of compute that each end loses for a byte: a CPU worker's links use its cores. */
  readonly compute: number;
}

/** The devices of a plan, and their measured speeds. */
export type Speeds = Pick<PlanRequest, "devices" | "rates">;

export const NO_OVERRIDES: RateOverrides = { measured: new Map(), links: new Map(), crowded: new Map() };
