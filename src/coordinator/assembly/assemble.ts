import type { Config } from "../../config/options.ts";
import { arenaBytes } from "../../plan/arena.ts";
import { type PlannedLink, plannedLinks } from "../../plan/link-kinds.ts";
import { hostRoomBytes } from "../../plan/offload.ts";
import { assertRunnable, type Plan } from "../../plan/plan.ts";
import { NO_OVERRIDES } from "../../plan/request.ts";
import type { Prepared__Output } from "../../rpc/generated/pipelora/v1/Prepared.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { joinedDevices } from "../cluster/joined-devices.ts";
import { Pipeline } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { type ChosenPlan, planFor } from "../planning/planning.ts";
import type { Workload } from "../planning/workload.ts";
import { calibrate, worthMeasuring } from "./calibration.ts";
import { pipelineRoles, prepareRequests } from "./prepare-requests.ts";

export interface Assembled extends ChosenPlan {
  readonly pipeline: Pipeline;
  readonly prepared: readonly Prepared__Output[];
}

/**
 * Gathers the workers, plans, and has every rank load its shard. `initialise`: ranks draw first LoRA values.
 * `workload`: what a step, or a reply, does. `onJoined` and `onPlan` are called before a weight is
 * read, the first as soon as all are there.
 */
export async function assemble(
  cluster: Cluster,
  config: Config,
  setup: ModelSetup,
  workload: Workload,
  initialise: boolean,
  onPlan: (plan: Plan, links: readonly PlannedLink[]) => void,
  onJoined: (members: readonly WorkerConnection[]) => Promise<void> = async () => {},
): Promise<Assembled> {
  const members = await cluster.form();
  await onJoined(members);
  const devices = joinedDevices(members);
  const chosen = await planFor(
    config,
    setup,
    devices,
    workload,
    worthMeasuring(config, devices, workload)
      ? await calibrate(members, config, setup, devices, workload)
      : NO_OVERRIDES,
  );
  const { plan, computeDtype } = chosen;
  onPlan(plan, plannedLinks(config, devices, plan));
  assertRunnable(plan);
  const requests = await prepareRequests(
    config,
    setup,
    {
      segments: plan.segments,
      replicas: plan.replicas,
      linked: true,
      computeDtype,
      hostBytes: plan.devices.map(({ memory }) => hostRoomBytes(memory)),
      arenaBytes: plan.devices.map(({ memory }, rank) => arenaBytes(memory, devices[rank]!.kind)),
    },
    members,
    initialise,
  );
  const pipeline = new Pipeline(members, pipelineRoles(setup, plan), cluster.failure);
  return { ...chosen, pipeline, prepared: await pipeline.prepare(requests) };
}
