import { PipeloraError } from "../../../common/errors.ts";
import { NO_OVERRIDES, type RateOverrides } from "../../../plan/request.ts";
import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import type { PlannedMembers } from "../../assembly/plan-members.ts";
import { joinedDevices } from "../../cluster/joined-devices.ts";
import { processOf } from "../../cluster/returning.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import { type PlanOf, type PlanSettings, planFor } from "../../planning/planning.ts";

/** The run's progress when new workers ask to take part. */
export interface Progress {
  readonly planned: PlannedMembers;
  /** Mean milliseconds of the last steps. */
  readonly stepMs: number;
  readonly stepsLeft: number;
  /** Milliseconds of a change. */
  readonly costMs: number;
}

export interface Verdict {
  /** Whether there is a plan for them. */
  readonly possible: boolean;
  readonly gains: boolean;
  /** For people. */
  readonly text: string;
}

/**
 * Whether these workers would save more time in the remaining steps than a change costs. The time of a step then is the present time, multiplied
 * by the ratio of the two plans' predictions. A worker without a measurement counts as fast as one of the same kind.
 */
export async function worthJoining(
  candidates: readonly WorkerConnection[],
  { planned, stepMs, stepsLeft, costMs }: Progress,
  { setup, settings, of }: { setup: ModelSetup; settings: PlanSettings; of: Omit<PlanOf, "rates"> },
): Promise<Verdict> {
  const measured = ratesOf(candidates, planned);
  const rates = measured ?? NO_OVERRIDES;
  const found = await planFor(settings, setup, joinedDevices(candidates), { ...of, rates }).catch((error: unknown) => {
    if (error instanceof PipeloraError) return error;
    throw error;
  });
  if (found instanceof PipeloraError) return { possible: false, gains: false, text: found.message };
  const { plan } = found;
  // Measured and assumed times can't be compared.
  const present = measured === null ? await planFor(settings, setup, planned.devices, { ...of, rates }) : planned;
  const [now, then] = [present.plan.predicted, plan.predicted];
  const workers = `${candidates.length} workers`;
  if (now === null || then === null) {
    return { possible: true, gains: true, text: `${workers} go on; no time can be predicted` };
  }
  const next = (stepMs * then.stepTimeMs) / now.stepTimeMs;
  const savedMs = (stepMs - next) * stepsLeft;
  const seconds = (ms: number) => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 0)} s`;
  const gains = savedMs > costMs;
  const saved = savedMs > 0 ? `saves ${seconds(savedMs)}` : `loses ${seconds(-savedMs)}`;
  return {
    possible: true,
    gains,
    text:
      `with ${workers} a step is predicted to take ${seconds(next)} instead of ${seconds(stepMs)}: over ${stepsLeft} steps that ${saved}, ` +
      `${gains ? "more" : "not more"} than the ${seconds(costMs)} of a change`,
  };
}

/** The present plan's rates for these workers; null if that plan uses measurements that one of them lacks. */
function ratesOf(
  candidates: readonly WorkerConnection[],
  { members, speeds: { rates } }: PlannedMembers,
): RateOverrides | null {
  if (rates.measured.size === 0) return NO_OVERRIDES;
  const kind = ({ hello: { device, deviceName, threads } }: WorkerConnection) =>
    JSON.stringify([device === "cpu", deviceName, threads]);
  const found = candidates.flatMap((candidate, id) => {
    const same = members.findIndex(({ hello }) => processOf(hello) === processOf(candidate.hello));
    const like = same >= 0 ? same : members.findIndex((member) => kind(member) === kind(candidate));
    const measured = rates.measured.get(like);
    return measured === undefined ? [] : [[id, measured] as const];
  });
  // Links between nodes are the same for these workers. Links between devices are not.
  const links = new Map([...rates.links].filter(([key]) => typeof (JSON.parse(key) as unknown[])[0] === "string"));
  if (found.length < candidates.length) return null;
  return { measured: new Map(found), links, crowded: rates.crowded };
}
