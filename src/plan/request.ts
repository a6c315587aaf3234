import type { LoraTarget } from "../models/lora-targets.ts";
import type { ModelSpec } from "../models/spec.ts";
import type { Device, MaxMemory } from "./devices.ts";
import type { FloatDtype, Holding } from "./held-sizes.ts";

/**
 * auto is balanced. balanced: the largest load as small as can be. balanced_low_0: device 0 takes as little as the others
 * allow. sequential: fills the devices in order, uses the fewest. fastest: like balanced over as many devices as make
 * the predicted step shortest.
 */
export type NamedStrategy = "auto" | "balanced" | "balanced_low_0" | "sequential" | "fastest";

export const STRATEGIES: readonly NamedStrategy[] = ["auto", "balanced", "balanced_low_0", "sequential", "fastest"];

/** {module: device}: a number, "0", "cuda:0", or "cpu" where there is exactly one CPU device. "" is the whole model. */
export type DeviceMapInput = Readonly<Record<string, number | string>>;

/** Names as in src/schedule. */
export type PipelinePolicy = "sequential" | "gpipe" | "1f1b" | "interleaved";

/** all: every block keeps only its input. none: everything is kept. auto: as few blocks recompute as the budgets allow. */
export type Checkpointing = "all" | "none" | "auto";

/** What one optimizer step does, as far as memory and time depend on it. */
export interface Work {
  readonly microBatches: number;
  /** Most tokens of a micro-batch. */
  readonly tokens: number;
  /** Most label tokens of a micro-batch; at most `tokens`. */
  readonly labelTokens: number;
  /** Tokens of a typical row: attention's cost grows with it. */
  readonly rowTokens: number;
  readonly schedule: PipelinePolicy;
  readonly checkpointing: Checkpointing;
  /** Tokens of all sequences in a key/value cache (generation); 0: none. */
  readonly cacheTokens: number;
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
  /** Empty: nothing learns (generation, evaluation). */
  readonly lora: readonly LoraTarget[];
  readonly work: Work;
  readonly rates: RateOverrides;
}

/** Measured or assumed speeds in place of the built-in ones. */
export interface RateOverrides {
  /** FLOP/s of a device in large products, by id. */
  readonly flops: ReadonlyMap<number, number>;
  /** Between two devices, whatever their nodes; null: by node. */
  readonly link: LinkRate | null;
}

export interface LinkRate {
  readonly bytesPerSecond: number;
  /** Seconds a message. */
  readonly latency: number;
}

export const NO_OVERRIDES: RateOverrides = { flops: new Map(), link: null };
