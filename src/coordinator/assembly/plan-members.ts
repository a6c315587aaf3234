import type { Device } from "../../plan/devices.ts";
import { type PlannedLink, plannedLinks } from "../../plan/link-kinds.ts";
import type { LinkSettings } from "../../plan/nccl.ts";
import { NO_OVERRIDES } from "../../plan/request.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { joinedDevices } from "../cluster/joined-devices.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { type ChosenPlan, type PlanOf, type PlanSettings, planFor } from "../planning/planning.ts";
import { type CalibrationSettings, calibrate, worthMeasuring } from "./calibration.ts";
import type { KnownRates } from "./known-rates.ts";

/** Workers, by rank, with what each is to do. */
export interface PlannedMembers extends ChosenPlan {
  readonly members: readonly WorkerConnection[];
  readonly devices: readonly Device[];
  readonly links: readonly PlannedLink[];
}

/** What is planned. `known`: what was measured of workers before; measurements are added to it. */
type Wanted = Pick<PlanOf, "workload" | "beside"> & { readonly known?: KnownRates | null };

/**
 * Plans for the workers that have joined. Measures their speed first if the plan needs it and `known` does not tell it, which is the only
 * time that weights are read here.
 */
export async function planMembers(
  members: readonly WorkerConnection[],
  setup: ModelSetup,
  { workload, beside = [], known = null }: Wanted,
  settings: PlanSettings & CalibrationSettings & LinkSettings,
): Promise<PlannedMembers> {
  const devices = joinedDevices(members);
  let rates = NO_OVERRIDES;
  if (worthMeasuring(settings, devices, workload)) {
    rates = known?.of(members) ?? (await calibrate(members, setup, workload, settings));
    known?.add(members, rates);
  }
  const chosen = await planFor(settings, setup, devices, { workload, rates, beside });
  return { ...chosen, members, devices, links: plannedLinks(settings, devices, chosen.plan) };
}
