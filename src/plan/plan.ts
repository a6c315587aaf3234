import { formatBytes } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { SchedulePolicy } from "../common/schedule-policies.ts";
import { MissingDeviceError } from "./accelerate/balanced-memory.ts";
import { type AccelerateStrategy, accelerateDeviceMap, accelerateSizes } from "./accelerate/index.ts";
import { expandDeviceMap, hfDeviceMap } from "./device-map.ts";
import { budgetsOf, type Device, type DeviceKey, type DeviceMap } from "./devices.ts";
import { lowestTrainable } from "./memory/kind-memory.ts";
import { type DeviceMemory, NO_MEMORY, predictMemory } from "./memory.ts";
import { offloadsActivations } from "./offload.ts";
import { infeasible } from "./placement/infeasible.ts";
import { place } from "./placement/planner.ts";
import { rangeCosts } from "./placement/range-costs.ts";
import { costsByDevice, layerDevicesOf, placementProblem, sortedIds, unitDevicesOf } from "./placement-problem.ts";
import { type NamedStrategy, type PlanRequest, policyOf } from "./request.ts";
import { bestWay, headIsTrained } from "./search.ts";
import { chooseCheckpointing } from "./segment-checkpointing.ts";
import { type LayerDevices, type Segment, segmentsOf } from "./segments.ts";
import { mean } from "./time/step-time.ts";
import { predictTime } from "./time.ts";
import { chooseCachedBlocks } from "./weight-cache.ts";

export interface PlannedSegment extends Segment {
  /** How many of its blocks offload their activations to the host, evenly spread. */
  readonly offloadedBlocks: number;
  /** How many of the others, from the first on, keep only their input. */
  readonly checkpointedBlocks: number;
  /** How many of its blocks, from the first on, keep their quantised weights in the compute dtype too. */
  readonly cachedBlocks: number;
  /** Whether anything in it or before it is trained. */
  readonly needsBackward: boolean;
  /** Whether anything before it is trained. */
  readonly needsInputGrad: boolean;
  /** Predicted seconds of a micro-batch's forward pass, the mean over its devices. The ranks' instruction lists follow from it. */
  readonly forwardSeconds: number;
  readonly backwardSeconds: number;
}

export interface PlannedDevice {
  readonly device: number;
  readonly rank: number;
  readonly segments: readonly number[];
  readonly memory: DeviceMemory & { readonly budget: number };
}

export interface Plan {
  readonly strategy: string;
  readonly planner: "pipelora" | "accelerate";
  /** As transformers takes it, so with one device for each layer. `segments` has all devices of a shared head. */
  readonly hfDeviceMap: DeviceMap;
  /** The order of the micro-batches. */
  readonly schedule: SchedulePolicy;
  /** Ranks of each replica of the pipeline; `segments` and `hfDeviceMap` are the first's. */
  readonly replicas: readonly (readonly number[])[];
  /** In model order. Empty when the map leaves layers on cpu or disk. */
  readonly segments: readonly PlannedSegment[];
  /** Every device of the request, ids ascending. */
  readonly devices: readonly PlannedDevice[];
  /** Null if the map leaves layers on cpu or disk. */
  readonly predicted: PlanPrediction | null;
  readonly warnings: readonly string[];
  /** Why the plan can't run; null: it can. Only a user's own map or accelerate's may have a problem. */
  readonly problem: string | null;
}

export interface PlanPrediction {
  /** Micro-batches of a step in each replica, and the most tokens of one. */
  readonly microBatches: number;
  readonly microBatchTokens: number;
  readonly stepTimeMs: number;
  /** Parts of the step's time after its last micro-batch: adding up gradients over replicas, and the update. */
  readonly sumMs: number;
  readonly updateMs: number;
  readonly bubble: number;
  readonly tokensPerSecond: number;
  /** Time of one pass over the held-out rows; null if there are none. */
  readonly evaluationMs: number | null;
  /** Times of one micro-batch, on each of the segment's devices. */
  readonly segments: readonly {
    readonly forwardMs: readonly number[];
    readonly backwardMs: readonly number[];
    readonly transferMs: number;
  }[];
  /** Bytes of one activation, or of its gradient. */
  readonly messageBytes: number;
}

/**
 * Decides which device takes which layers, and predicts what each device will hold and how long a step will take. The same request gives the
 * same plan.
 * Errors: PL_PLACEMENT_INFEASIBLE, with a table of what is needed and what would make it fit; PL_DEVICE_MAP_INVALID; PL_CONFIG_INVALID.
 */
export function makePlan(request: PlanRequest): Plan {
  const plan = attemptPlan(request);
  if (plan instanceof Infeasible) throw plan.explain();
  return plan;
}

/** A request that fits nowhere. The reason is worked out only when asked for, because that tries many remedies. */
export class Infeasible {
  readonly explain: () => PipeloraError;

  constructor(explain: () => PipeloraError) {
    this.explain = explain;
  }
}

/** makePlan for a caller that can try something else: returns Infeasible where makePlan throws PL_PLACEMENT_INFEASIBLE. */
export function attemptPlan(request: PlanRequest): Plan | Infeasible {
  const budgets = budgetsOf(request.devices, request.maxMemory);
  const warnings = [...budgets.warnings];
  if (typeof request.strategy !== "string") {
    const expanded = expandDeviceMap(request.spec, request.strategy, request.devices);
    warnings.push(...expanded.warnings);
    expectHeadOnOne(request, expanded.layerDevices);
    return finishPlan(request, expanded.layerDevices, budgets.bytes, warnings, "device map");
  }
  if (request.planner === "accelerate") {
    const strategy = accelerateStrategy(request.strategy);
    const map = mapOfAccelerate(request, strategy, budgets.bytes, warnings);
    if (map !== null) return planOfMap(request, map, budgets.bytes, warnings);
    return finishPlan(request, weightsOnly(request, strategy, budgets.bytes), budgets.bytes, warnings, strategy);
  }
  const useless = budgets.offload.filter((key) => key !== "cpu" || !offloadsActivations(request));
  if (useless.length > 0) {
    warnings.push(`max_memory's ${useless.join(" and ")} budgets are not used: layers are never offloaded`);
  }
  const { strategy } = request;
  const problem = placementProblem(request, budgets.bytes, costsByDevice(request, false));
  const finish: Finish = (scheduled, unitDevices) =>
    finishPlan(scheduled, layerDevicesOf(request, unitDevices), budgets.bytes, warnings, strategy);
  return (
    bestWay(request, problem, finish) ??
    offloadingPlan(request, budgets.bytes, finish) ??
    new Infeasible(() => infeasible(request, problem, budgets.bytes, fits))
  );
}

/** Completes a plan from the devices of each unit, for a request whose schedule is chosen. */
export type Finish = (request: PlanRequest, unitDevices: LayerDevices) => Plan;

function expectHeadOnOne(request: PlanRequest, layerDevices: LayerDevices): void {
  const several = layerDevices.findIndex((devices) => devices.length > 1);
  if (several < 0 || !headIsTrained(request)) return;
  const { name } = request.spec.layers[several]!;
  throw new PipeloraError(
    "PL_DEVICE_MAP_INVALID",
    `The device map puts ${name} on devices ${layerDevices[several]!.join(", ")}, and the head is trained: each would learn for itself.`,
    { hint: "Give it one device, or train the head no more." },
  );
}

/** The plan for a request that fits only if activations are offloaded; null if it does not fit even then. */
function offloadingPlan(request: PlanRequest, budgets: ReadonlyMap<number, number>, finish: Finish): Plan | null {
  if (!offloadsActivations(request)) return null;
  const plan = bestWay(request, placementProblem(request, budgets, costsByDevice(request, true)), finish);
  return plan?.devices.every(({ memory }) => memory.total <= memory.budget) ? plan : null;
}

/** Throws PL_PLACEMENT_INFEASIBLE if the plan can't be run as it is. */
export function assertRunnable(plan: Plan): void {
  if (plan.problem === null) return;
  throw new PipeloraError("PL_PLACEMENT_INFEASIBLE", plan.problem, {
    hint: "Use --planner pipelora, larger budgets, more devices, or --load-in-4bit.",
  });
}

function fits(request: PlanRequest): boolean {
  const { bytes } = budgetsOf(request.devices, request.maxMemory);
  return place(placementProblem(request, bytes, costsByDevice(request, false)), "sequential") !== null;
}

function accelerateStrategy(strategy: NamedStrategy): AccelerateStrategy {
  if (strategy !== "fastest") return strategy;
  throw new PipeloraError("PL_CONFIG_INVALID", "accelerate has no strategy `fastest`.", {
    hint: "Use --planner pipelora, or auto, balanced, balanced_low_0 or sequential.",
  });
}

/** accelerate's own map; null where it raises. */
function mapOfAccelerate(
  request: PlanRequest,
  strategy: AccelerateStrategy,
  budgets: ReadonlyMap<number, number>,
  warnings: string[],
): DeviceMap | null {
  try {
    return accelerateDeviceMap(request.spec, {
      strategy,
      maxMemory: request.maxMemory ?? new Map<DeviceKey, number>(budgets),
      userGiven: request.maxMemory !== null,
      quantization: sizingQuantization(request),
      loadDtype: request.holding.dtype,
    }).deviceMap;
  } catch (error) {
    if (!(error instanceof MissingDeviceError)) throw error;
    warnings.push(
      `accelerate fails here (${error.message}): balanced_low_0 expects devices numbered from 0; placed by its sizes instead`,
    );
    return null;
  }
}

function sizingQuantization({ holding }: PlanRequest): "none" | "int8" | "int4" {
  return ({ none: "none", "8bit": "int8", "4bit": "int4" } as const)[holding.quantization.method];
}

/** Our planner with accelerate's accounting: weights alone, at its sizes; a tied head counts as nothing and lies with the embedding. */
function weightsOnly(
  request: PlanRequest,
  strategy: AccelerateStrategy,
  budgets: ReadonlyMap<number, number>,
): LayerDevices {
  const { layers } = request.spec;
  const sizes = accelerateSizes(request.spec, {
    quantization: sizingQuantization(request),
    loadDtype: request.holding.dtype,
  });
  const cut = layers.filter((layer) => layer.kind !== "head" || !layer.tied);
  const units = cut.map((layer) => {
    const weights = sizes.get(layer.name) ?? 0;
    return { weights, held: 0, saved: 0, workspace: 0, expansion: 0, time: weights };
  });
  const costs = rangeCosts(units, 0);
  const problem = placementProblem(
    request,
    budgets,
    () => costs,
    () => 0,
  );
  const stages = place(problem, strategy === "auto" ? "balanced" : strategy);
  if (stages === null) throw infeasible(request, problem, budgets, fits);
  const placed = unitDevicesOf(stages);
  return layers.map((_, index) => placed[index] ?? placed[0]!);
}

function planOfMap(
  request: PlanRequest,
  map: DeviceMap,
  budgets: ReadonlyMap<number, number>,
  warnings: string[],
): Plan {
  const spilled = [...map].filter(([, device]) => typeof device !== "number");
  if (spilled.length === 0) {
    const { layerDevices } = expandDeviceMap(
      request.spec,
      Object.fromEntries(map) as Record<string, number>,
      request.devices,
    );
    return { ...finishPlan(request, layerDevices, budgets, warnings, String(request.strategy)), hfDeviceMap: map };
  }
  const named = spilled.slice(0, 5).map(([name, device]) => `${name === "" ? "the whole model" : name} on ${device}`);
  const more = spilled.length > 5 ? ` and ${spilled.length - 5} more` : "";
  return {
    strategy: String(request.strategy),
    planner: request.planner,
    hfDeviceMap: map,
    schedule: policyOf(request.work),
    replicas: [],
    segments: [],
    devices: plannedDevices(request, [], new Map(), budgets),
    predicted: null,
    warnings,
    problem: `accelerate's map leaves ${named.join(", ")}${more}: those layers could not be trained there.`,
  };
}

function finishPlan(
  request: PlanRequest,
  layerDevices: LayerDevices,
  budgets: ReadonlyMap<number, number>,
  warnings: readonly string[],
  strategy: string,
): Plan {
  const segments = segmentsOf(layerDevices, sortedIds(request));
  const keeping = chooseCachedBlocks(request, segments, chooseCheckpointing(request, segments, budgets), budgets);
  const memory = predictMemory(request, segments, keeping);
  const time = predictTime(request, segments, keeping);
  const lowest = lowestTrainable(request);
  const overBudget = overfull(request, memory, (device) => request.maxMemory?.get(device.id));
  const overDevice = overfull(request, memory, (device) => device.memoryBytes);
  return {
    strategy,
    planner: request.planner,
    hfDeviceMap: hfDeviceMap(request.spec, layerDevices),
    schedule: policyOf(request.work),
    replicas: [request.devices.map((_, rank) => rank)],
    segments: segments.map((segment, index) => ({
      ...segment,
      offloadedBlocks: keeping[index]!.offloaded,
      checkpointedBlocks: keeping[index]!.checkpointed,
      cachedBlocks: keeping[index]!.cached,
      needsBackward: lowest <= segment.lastLayer,
      needsInputGrad: lowest < segment.firstLayer,
      forwardSeconds: mean(time.segments[index]!.forward),
      backwardSeconds: mean(time.segments[index]!.backward),
    })),
    devices: plannedDevices(request, segments, memory, budgets),
    predicted: {
      microBatches: request.work.microBatches,
      microBatchTokens: request.work.tokens,
      stepTimeMs: time.step * 1e3,
      sumMs: 0,
      updateMs: time.update * 1e3,
      bubble: time.bubble,
      tokensPerSecond: time.tokensPerSecond,
      evaluationMs: time.evaluation === null ? null : time.evaluation * 1e3,
      segments: time.segments.map(({ forward, backward, transfer }) => ({
        forwardMs: forward.map((seconds) => seconds * 1e3),
        backwardMs: backward.map((seconds) => seconds * 1e3),
        transferMs: transfer * 1e3,
      })),
      messageBytes: time.messageBytes,
    },
    warnings:
      overBudget === null ? warnings : [...warnings, `the map needs more than max_memory allows: ${overBudget}`],
    problem: overDevice === null ? null : `The map needs more memory than there is: ${overDevice}.`,
  };
}

function plannedDevices(
  request: PlanRequest,
  segments: readonly Segment[],
  memory: ReadonlyMap<number, DeviceMemory>,
  budgets: ReadonlyMap<number, number>,
): PlannedDevice[] {
  return sortedIds(request).map((id, rank) => ({
    device: id,
    rank,
    segments: segments.filter((segment) => segment.devices.includes(id)).map((segment) => segment.index),
    memory: { ...(memory.get(id) ?? NO_MEMORY), budget: budgets.get(id) ?? 0 },
  }));
}

/** Memory of a device that the plan does not use. */
export const IDLE: PlannedDevice["memory"] = { ...NO_MEMORY, budget: 0 };

/**
 * Devices that a map loads beyond their budget, which our planner's own never does. A user's map, and accelerate, do not count everything that
 * is held: going beyond max_memory gives a warning. Going beyond what the device has is an error.
 */
function overfull(
  request: PlanRequest,
  memory: ReadonlyMap<number, DeviceMemory>,
  limitOf: (device: Device) => number | null | undefined,
): string | null {
  const over = request.devices.flatMap((device) => {
    const needed = memory.get(device.id)!.total;
    const limit = limitOf(device) ?? Number.POSITIVE_INFINITY;
    return needed > limit ? [`device ${device.id} ${formatBytes(needed)} of ${formatBytes(limit)}`] : [];
  });
  return over.length === 0 ? null : over.join(", ");
}
