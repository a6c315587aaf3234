import type { FloatDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine } from "../../engine/index.ts";
import type { HeldParameter } from "../../models/parameters.ts";
import type { Device } from "../../plan/devices.ts";
import { type PlannedLink, plannedLinks } from "../../plan/link-kinds.ts";
import type { LinkSettings } from "../../plan/nccl.ts";
import type { Plan } from "../../plan/plan.ts";
import { NO_OVERRIDES } from "../../plan/request.ts";
import type { ProductsOutcome, StrategyOutcome } from "../../plan/shown/format-plan.ts";
import { type AdapterAlone, type AdaptersForecast, forecast } from "./adapters-forecast.ts";
import { heldParameters } from "./held-parameters.ts";
import { describeModels, type ModelSettings, type ModelSetup } from "./model-setup.ts";
import { adapterLabel } from "./named-adapters.ts";
import { type ChosenPlan, type PlanSettings, paperDevices, planFor } from "./planning.ts";
import { type RentalSet, type RentalSettings, readRental, rentalSets } from "./rental.ts";
import { type DataSettings, readAdaptersData, type TrainingData } from "./training-data.ts";
import { besideCache, fullRowsWorkload, roundWorkload, trainingWorkload, type WorkSettings } from "./workload.ts";

export type PaperSettings = ModelSettings &
  DataSettings &
  PlanSettings &
  WorkSettings &
  LinkSettings &
  RentalSettings &
  Pick<Config, "workers" | "threads" | "max_num_seqs" | "kv_cache_tokens">;

/** An adapter to plan for, with its complete settings. */
export interface PaperAdapter {
  /** Null: there is no other. */
  readonly name: string | null;
  readonly config: PaperSettings;
}

export interface PaperPlan {
  readonly plan: Plan;
  readonly links: readonly PlannedLink[];
  readonly layerNames: string[];
  readonly parameters: readonly HeldParameter[];
  /** The same request under every strategy. */
  readonly comparison: readonly StrategyOutcome[];
  /** On GPUs: the same request with and without --fp8. */
  readonly products: readonly ProductsOutcome[];
  /** Null: there is one. */
  readonly adapters: AdaptersForecast | null;
  readonly devices: readonly Device[];
  /** The devices that times are predicted for: those named, or this machine's. */
  readonly timesFor: string;
  /** With prices: every set of the named GPUs, sorted by cost; sets that meet the deadline first. */
  readonly rental: {
    readonly sets: readonly RentalSet[];
    readonly steps: number;
    readonly deadline: number | null;
  } | null;
}

/** The `plan` command. config.json is enough. With a dataset it plans for the real rows, else for rows of max_length. */
export async function planWithoutWorkers(
  config: PaperSettings,
  adapters: readonly PaperAdapter[],
  log: Logger,
): Promise<PaperPlan> {
  const rental = await readRental(config);
  const labelled = adapters.map((adapter) => ({ ...adapter, label: adapterLabel(adapter.name) }));
  const setups = await describeModels(labelled, log, { weights: false, lora: true });
  const [setup, ...others] = setups as readonly ModelSetup[] as readonly [ModelSetup, ...ModelSetup[]];
  const devices = rental?.devices ?? paperDevices(config, loadEngine().capabilities());
  // If any adapter has no dataset, rows of max_length are used for all.
  const all = adapters.every((adapter) => adapter.config.dataset !== null);
  const data = all ? await readAdaptersData(labelled, setup, log) : null;
  const waysOf = (index: number, { schedule }: PaperSettings) => {
    const own = { ...adapters[index]!.config, schedule };
    return data === null ? fullRowsWorkload(own) : trainingWorkload(own, data[index]!);
  };
  const { kv_cache_tokens: rows, max_num_seqs: sequences } = config;
  const rates = rental?.rates ?? NO_OVERRIDES;
  const planOn = (changed: PaperSettings, on: readonly Device[]) => {
    const workload = roundWorkload(adapters.map((_, index) => waysOf(index, changed)));
    return planFor(changed, setup, on, {
      beside: others.map(({ lora }) => lora!),
      workload: rows === null ? workload : besideCache(workload, { sequences, rows }),
      rates,
    });
  };
  const planUnder = (changed: PaperSettings) => planOn(changed, devices);
  const chosen = await planUnder(config);
  const { plan, computeDtype } = chosen;
  const counts = adapters.map(({ config: own }, index) => stepsOf(own, data?.[index] ?? null));
  const alone: AdapterAlone[] = [];
  for (const [index, { name, config: own }] of adapters.entries()) {
    if (name === null) continue;
    const workload = roundWorkload([waysOf(index, config)]);
    const ownPlan = await planFor(own, setups[index]!, devices, { workload, rates });
    alone.push({ name, setup: setups[index]!, chosen: ownPlan, steps: counts[index]! });
  }
  const steps = counts.some((count) => count === null) ? null : Math.max(...(counts as number[]));
  if (rental !== null && rental.prices.size > 0 && steps === null) {
    throw new PipeloraError("PL_CONFIG_INVALID", "how many steps the run has is not known: prices can't be reckoned.", {
      hint: "Give --dataset, or --max-steps.",
    });
  }
  return {
    plan,
    links: plannedLinks(config, devices, plan),
    layerNames: setup.spec.layers.map(({ name }) => name),
    parameters: heldParameters(setup).parameters,
    comparison: devices.length < 2 ? [] : await compareStrategies(config, planUnder),
    products: devices.every(({ kind }) => kind === "cuda")
      ? await compareProducts(config, planUnder, plan, computeDtype)
      : [],
    adapters: alone.length === 0 ? null : await forecast(chosen, alone),
    devices,
    timesFor: timesFor(devices, rental !== null),
    rental:
      rental === null || rental.prices.size === 0
        ? null
        : {
            sets: await rentalSets(rental, steps!, async (on) => {
              try {
                return (await planOn({ ...config, device_map: "fastest" }, on)).plan;
              } catch (error) {
                if (error instanceof PipeloraError && error.code === "PL_PLACEMENT_INFEASIBLE") return null;
                throw error;
              }
            }),
            steps: steps!,
            deadline: rental.deadlineSeconds,
          },
  };
}

function stepsOf({ max_steps: most }: Pick<Config, "max_steps">, data: TrainingData | null): number | null {
  return data?.order.totalSteps ?? (most > 0 ? most : null);
}

function timesFor(devices: readonly Device[], named: boolean): string {
  const counts = new Map<string, number>();
  for (const { kind, name } of devices) {
    const what = name ?? (kind === "cpu" ? "CPU worker" : "GPU of a kind that is not known");
    counts.set(what, (counts.get(what) ?? 0) + 1);
  }
  const all = [...counts].map(([what, count]) => `${count} × ${what}`).join(", ");
  return named ? all : `${all} of this machine; --devices names others`;
}

/** `plan` is the configuration's own. The other one is left out where these devices do not support it. */
async function compareProducts(
  config: PaperSettings,
  planUnder: (config: PaperSettings) => Promise<ChosenPlan>,
  plan: Plan,
  computeDtype: FloatDtype,
): Promise<ProductsOutcome[]> {
  const nameOf = (fp8: boolean) => (fp8 ? "e4m3 (--fp8)" : computeDtype);
  const own = { products: nameOf(config.fp8), plan };
  try {
    const other = { products: nameOf(!config.fp8), plan: (await planUnder({ ...config, fp8: !config.fp8 })).plan };
    return config.fp8 ? [other, own] : [own, other];
  } catch (error) {
    if (!(error instanceof PipeloraError)) throw error;
    return [];
  }
}

/** The planner's own strategies, whatever the request names, and the schedule of a naive device map for comparison. */
const COMPARED = [
  { device_map: "balanced", schedule: "sequential" },
  { device_map: "balanced", schedule: null },
  { device_map: "balanced_low_0", schedule: null },
  { device_map: "sequential", schedule: null },
  { device_map: "auto", schedule: null },
  { device_map: "fastest", schedule: null },
] as const;

async function compareStrategies(
  config: PaperSettings,
  planUnder: (config: PaperSettings) => Promise<ChosenPlan>,
): Promise<StrategyOutcome[]> {
  const outcomes: StrategyOutcome[] = [];
  for (const { device_map, schedule } of COMPARED) {
    const changed: PaperSettings = {
      ...config,
      planner: "pipelora",
      device_map,
      schedule: schedule ?? config.schedule,
    };
    const named = { strategy: device_map, schedule: changed.schedule };
    try {
      const { plan, cut } = await planUnder(changed);
      const { microBatches } = await cut.work(false);
      outcomes.push({ ...named, schedule: plan.schedule, plan, microBatches });
    } catch (error) {
      if (!(error instanceof PipeloraError) || error.code !== "PL_PLACEMENT_INFEASIBLE") throw error;
      outcomes.push({ ...named, plan: null, microBatches: 0 });
    }
  }
  return outcomes;
}
