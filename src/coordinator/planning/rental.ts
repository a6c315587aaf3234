import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import { readYaml } from "../../config/yaml-file.ts";
import type { Device } from "../../plan/devices.ts";
import type { CatalogueGpu } from "../../plan/paper/catalogue.ts";
import {
  devicesOf,
  ownGpus,
  type PaperGroup,
  paperRates,
  parseDevices,
  parseLinkRates,
} from "../../plan/paper/paper-devices.ts";
import type { Plan } from "../../plan/plan.ts";
import type { RateOverrides } from "../../plan/request.ts";

export type RentalSettings = Pick<Config, "devices" | "link_rates" | "gpus" | "prices" | "deadline">;

/** GPUs that could be rented, and their prices. */
export interface Rental {
  readonly groups: readonly PaperGroup[];
  readonly devices: readonly Device[];
  readonly rates: RateOverrides;
  /** An hour, by the GPU's name; empty: no prices. */
  readonly prices: ReadonlyMap<string, number>;
  readonly deadlineSeconds: number | null;
}

/** Null without --devices. Errors: PL_CONFIG_INVALID. */
export async function readRental(config: RentalSettings): Promise<Rental | null> {
  if (config.devices === null) return null;
  const own = config.gpus === null ? null : ownGpus(config.gpus, await readYaml(config.gpus));
  const groups = parseDevices(config.devices, own?.gpus ?? new Map<string, CatalogueGpu>());
  const prices = new Map([...(own?.prices ?? []), ...Object.entries(config.prices ?? {})]);
  const used = new Set(groups.map(({ gpu }) => gpu.id));
  const foreign = Object.keys(config.prices ?? {}).find((id) => !used.has(id));
  if (foreign !== undefined) {
    throw new PipeloraError("PL_CONFIG_INVALID", `--prices names ${foreign}; --devices has ${[...used].join(", ")}.`, {
      hint: "Name GPUs as --devices does.",
    });
  }
  const unpriced = [...used].find((id) => !prices.has(id));
  if (prices.size > 0 && unpriced !== undefined) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `--prices has no price for ${unpriced}; expected one for every kind of GPU in --devices.`,
      {
        hint: `Add it to --prices, or as price to its entry in --gpus.`,
      },
    );
  }
  if (config.deadline !== null && prices.size === 0) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      "--deadline needs prices: the cheapest set that meets it is looked for.",
      {
        hint: "Give --prices, or price in the entries of --gpus.",
      },
    );
  }
  return {
    groups,
    devices: devicesOf(groups),
    rates: paperRates(parseLinkRates(config.link_rates, groups)),
    prices,
    deadlineSeconds: config.deadline === null ? null : seconds(config.deadline),
  };
}

const UNITS: Readonly<Record<string, number>> = { s: 1, m: 60, min: 60, h: 3600, d: 86400 };

/** "6h", "90m", "2d". Error: PL_CONFIG_INVALID. */
function seconds(text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d)\s*$/.exec(text);
  if (match !== null && Number(match[1]) > 0) return Number(match[1]) * UNITS[match[2]!]!;
  throw new PipeloraError("PL_CONFIG_INVALID", `--deadline: "${text}" is no time.`, { hint: "Write 6h, 90m or 2d." });
}

/** A set of the named GPUs, with the time and cost of a run on it. */
export interface RentalSet {
  /** Of each group, how many. */
  readonly counts: readonly number[];
  readonly name: string;
  /** Null: the model does not fit. */
  readonly plan: Plan | null;
  readonly seconds: number | null;
  readonly cost: number | null;
  /** Whether the run ends before the deadline; without a deadline, whether it fits. */
  readonly meets: boolean;
}

/** Planning for more sets than this takes too long. */
const MOST_SETS = 400;

/**
 * Every set of the GPUs that were named, the cheapest that is done in time first. `steps`: of the run. `planFor`: the fastest plan of some
 * devices, null where none fits. Errors: PL_CONFIG_INVALID for too many sets.
 */
export async function rentalSets(
  { groups, prices, deadlineSeconds }: Rental,
  steps: number,
  planFor: (devices: readonly Device[]) => Promise<Plan | null>,
): Promise<RentalSet[]> {
  const all = countsOf(groups);
  if (all.length > MOST_SETS) {
    throw new PipeloraError("PL_CONFIG_INVALID", `--devices has ${all.length} sets of GPUs, more than ${MOST_SETS}.`, {
      hint: "Name fewer GPUs, or leave --prices out.",
    });
  }
  const sets: RentalSet[] = [];
  for (const counts of all) {
    const chosen = groups.map((group, i) => ({ ...group, count: counts[i]! })).filter(({ count }) => count > 0);
    const plan = await planFor(devicesOf(chosen));
    const predicted = plan?.predicted ?? null;
    const taken = predicted === null ? null : (steps * predicted.stepTimeMs) / 1000;
    const hourly = chosen.reduce((sum, { count, gpu }) => sum + count * prices.get(gpu.id)!, 0);
    sets.push({
      counts,
      name: chosen.map(({ count, gpu, node }) => `${count}x ${gpu.id} @ ${node}`).join(", "),
      plan: predicted === null ? null : plan,
      seconds: taken,
      cost: taken === null ? null : (hourly * taken) / 3600,
      meets: taken !== null && (deadlineSeconds === null || taken <= deadlineSeconds),
    });
  }
  const cost = ({ cost: own }: RentalSet) => own ?? Number.POSITIVE_INFINITY;
  const time = ({ seconds: own }: RentalSet) => own ?? Number.POSITIVE_INFINITY;
  return sets.sort((a, b) => Number(b.meets) - Number(a.meets) || cost(a) - cost(b) || time(a) - time(b));
}

/** All numbers of each group but none of all. */
function countsOf(groups: readonly PaperGroup[]): number[][] {
  const most = groups.reduce((product, { count }) => product * (count + 1), 1) - 1;
  // Listing stops far above the number of sets that are planned for.
  if (most > 1e6) return Array.from({ length: MOST_SETS + 1 }, () => []);
  return groups
    .reduce<number[][]>(
      (sets, { count }) => sets.flatMap((set) => Array.from({ length: count + 1 }, (_, taken) => [...set, taken])),
      [[]],
    )
    .filter((set) => set.some((taken) => taken > 0));
}
