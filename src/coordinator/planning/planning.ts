import { readFile } from "node:fs/promises";
import type { FloatDtype, LinkDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import { freeMemory } from "../../common/machine.ts";
import type { Config } from "../../config/options.ts";
import type { Capabilities } from "../../engine/index.ts";
import { ncclFor } from "../../engine/nccl-ability.ts";
import type { ResolvedLora } from "../../models/lora-targets.ts";
import { fastestPlan } from "../../plan/choose.ts";
import { type Device, devicesFromMaxMemory } from "../../plan/devices.ts";
import { assertComputable } from "../../plan/engine-limits.ts";
import { parseMaxMemory } from "../../plan/max-memory.ts";
import type { Plan } from "../../plan/plan.ts";
import {
  type DeviceMapInput,
  type NamedStrategy,
  type PlanRequest,
  type RateOverrides,
  type Speeds,
  STRATEGIES,
} from "../../plan/request.ts";
import { localDevices } from "../cluster/local-devices.ts";
import { computeDtype } from "./compute-dtype.ts";
import { fp8Warning } from "./fp8.ts";
import { linkDtype, linkDtypeNote } from "./link-dtype.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { RoundCut, Workload } from "./workload.ts";

/** Devices for a plan without workers: those that --max-memory names, else those a run would start here. */
export function paperDevices(
  config: Pick<Config, "max_memory" | "workers" | "threads">,
  capabilities: Capabilities,
): Device[] {
  const gpus = capabilities.cuda?.devices ?? [];
  if (config.max_memory !== null) {
    const kind = gpus.length > 0 || config.workers === null ? "cuda" : "cpu";
    return devicesFromMaxMemory(parseMaxMemory(config.max_memory), kind, gpus[0]?.name ?? null);
  }
  const { devices } = localDevices(config, capabilities);
  return devices.map((device, id): Device => {
    const gpu = gpus.find(({ index }) => `cuda:${index}` === device);
    return {
      id,
      kind: gpu === undefined ? "cpu" : "cuda",
      name: gpu?.name ?? null,
      node: "local",
      ...(gpu === undefined ? {} : { pciBusId: gpu.pciBusId }),
      nccl: ncclFor(device, capabilities.nccl),
      ...(gpu === undefined ? {} : { capability: gpu.capability }),
      memoryBytes: gpu?.freeBytes ?? Math.floor(capabilities.cpu.memoryBytes / devices.length),
      hostMemoryBytes: gpu === undefined ? null : freeMemory(),
    };
  });
}

/** What a request to plan takes from the configuration. */
export type PlanRequestSettings = Pick<
  Config,
  | "planner"
  | "max_memory"
  | "weight_cache"
  | "activation_offload"
  | "compute_dtype"
  | "bnb_4bit_compute_dtype"
  | "fp8"
  | "link_dtype"
  | "elastic"
>;

export type PlanSettings = PlanRequestSettings & Pick<Config, "device_map" | "deterministic_batches">;

/** What is planned. */
export interface PlanOf {
  readonly workload: Workload;
  readonly rates: RateOverrides;
  /** Other adapters than the setup's over its base. */
  readonly beside?: readonly ResolvedLora[];
}

export interface ChosenPlan {
  readonly plan: Plan;
  /** How steps are cut under it. */
  readonly cut: RoundCut;
  readonly computeDtype: FloatDtype;
  readonly linkDtype: LinkDtype | null;
  readonly speeds: Speeds;
}

/**
 * Plans for these devices, with the micro-batches that are predicted fastest: see cutsOf. Where the devices' speeds are known, `auto` is
 * `fastest`, except for the number of replicas. A run keeps the micro-batches of its earlier attempts as long as they fit, so that a restart
 * gives the same bits. Errors: PL_DEVICE_UNAVAILABLE, and those of makePlan.
 */
export async function planFor(
  settings: PlanSettings,
  setup: ModelSetup,
  devices: readonly Device[],
  { workload, rates, beside = [] }: PlanOf,
): Promise<ChosenPlan> {
  const asked = await deviceMap(settings.device_map);
  const strategy = asked === "auto" && rates.measured.size > 0 ? "fastest" : asked;
  const { request, warnings: notes } = planRequest(settings, setup, devices, { strategy, rates, beside });
  const { previous } = workload;
  const { plan, choice: cut } =
    (previous === null ? null : await planIfFits(request, previous)) ??
    (await fastestCut(request, cutsOf(settings, asked, devices, workload), workload));
  const { computeDtype, linkDtype = null } = request;
  const carried = linkDtype === null ? [] : [linkDtypeNote(linkDtype, plan)];
  return {
    plan: { ...plan, warnings: [...notes, ...carried, ...plan.warnings] },
    cut,
    computeDtype,
    linkDtype,
    speeds: request,
  };
}

type Request = Omit<PlanRequest, "work">;

/** Two passes: first over numbers of micro-batches that differ by a third or a half, then over all numbers near the best. */
async function fastestCut(
  request: Request,
  cuts: readonly RoundCut[],
  workload: Workload,
): Promise<{ plan: Plan; choice: RoundCut }> {
  const found = await fastestPlan(request, cuts);
  const near = cuts.length > 1 ? await workload.near(found.choice) : [];
  return near.length === 0 ? found : fastestPlan(request, [found.choice, ...near]);
}

async function planIfFits(request: Request, cut: RoundCut): Promise<{ plan: Plan; choice: RoundCut } | null> {
  try {
    return await fastestPlan(request, [cut]);
  } catch (error) {
    if (error instanceof PipeloraError && error.code === "PL_PLACEMENT_INFEASIBLE") return null;
    throw error;
  }
}

/**
 * The ways to split a step into micro-batches that a plan with this device map may choose from. On GPUs: all of them, since larger ones make
 * faster products, and more of them a fuller pipeline; under `fastest` with replicas too. On CPU workers, whose products reach their full rate
 * at a hundred tokens, and with --deterministic-batches: the one that does not depend on the placement, so that any number of workers gives the
 * same bits.
 */
export function cutsOf(
  config: Pick<Config, "deterministic_batches">,
  strategy: NamedStrategy | DeviceMapInput,
  devices: readonly Device[],
  workload: Workload,
): readonly RoundCut[] {
  if (config.deterministic_batches) return [workload.fixed(devices)];
  if (strategy === "fastest") return workload.free(devices);
  return devices.every(({ kind }) => kind === "cuda") ? workload.cuts() : [workload.fixed(devices)];
}

/**
 * All of a plan's request but what a step does. Errors: PL_CONFIG_INVALID for a weight cache without quantised weights,
 * PL_MODEL_UNSUPPORTED for a model that these devices' engine does not compute.
 */
export function planRequest(
  config: PlanRequestSettings,
  setup: ModelSetup,
  devices: readonly Device[],
  { beside = [], ...choice }: Pick<PlanRequest, "strategy" | "rates"> & Pick<PlanOf, "beside">,
): { request: Omit<PlanRequest, "work">; warnings: readonly string[] } {
  assertComputable(setup.spec, devices);
  const { dtype, warning } = computeDtype(config, setup, devices);
  const notes = [warning, config.fp8 ? fp8Warning(devices, dtype, setup.spec) : null];
  const { quantization } = setup;
  if (quantization === null && config.weight_cache === "on") {
    throw new PipeloraError("PL_CONFIG_INVALID", "--weight-cache on: no weight of this run is quantised.", {
      hint: "Give --load-in-4bit or --load-in-8bit, or leave --weight-cache out.",
    });
  }
  const request: Omit<PlanRequest, "work"> = {
    ...choice,
    spec: setup.spec,
    devices,
    maxMemory: config.max_memory === null ? null : parseMaxMemory(config.max_memory),
    planner: config.planner,
    holding: {
      dtype: setup.holdDtype,
      quantization: quantization?.settings ?? { method: "none" },
      skipModules: [...(quantization?.skipped ?? [])],
      fp8: config.fp8,
    },
    computeDtype: dtype,
    linkDtype: linkDtype(config, dtype),
    weightCache: config.weight_cache,
    activationOffload: config.activation_offload,
    tellsState: config.elastic,
    lora: setup.lora?.targets ?? [],
    matrices: setup.lora?.matrices ?? [],
    ...(beside.length === 0 ? {} : { beside: beside.map(({ targets: lora, matrices }) => ({ lora, matrices })) }),
  };
  return { request, warnings: notes.filter((note) => note !== null) };
}

/** A strategy's name, a map from YAML, or {module: device} as JSON: in place, or the path of a file of it. */
export async function deviceMap(value: Config["device_map"]): Promise<NamedStrategy | DeviceMapInput> {
  if (typeof value !== "string") return value;
  if ((STRATEGIES as readonly string[]).includes(value)) return value as NamedStrategy;
  const inPlace = value.trimStart().startsWith("{");
  let parsed: unknown;
  try {
    parsed = JSON.parse(inPlace ? value : await readFile(value, "utf8"));
  } catch (cause) {
    throw new PipeloraError("PL_DEVICE_MAP_INVALID", `--device-map ${value}: ${(cause as Error).message}`, {
      cause,
      hint: `Name one of ${STRATEGIES.join(", ")}, or give {"module": device} as JSON, in place or as a file.`,
    });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new PipeloraError("PL_DEVICE_MAP_INVALID", `${value}: expected an object {"module": device}`);
  }
  const isDevice = (value: unknown) => typeof value === "number" || typeof value === "string";
  const bad = Object.entries(parsed).find(([, value]) => !(Array.isArray(value) ? value : [value]).every(isDevice));
  if (bad !== undefined) {
    throw new PipeloraError(
      "PL_DEVICE_MAP_INVALID",
      `${value}: "${bad[0]}" is on ${JSON.stringify(bad[1])}, expected a device`,
    );
  }
  return parsed as DeviceMapInput;
}
