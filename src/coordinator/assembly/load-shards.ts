import { arenaBytes } from "../../plan/arena.ts";
import { hostRoomBytes } from "../../plan/offload.ts";
import { assertRunnable } from "../../plan/plan.ts";
import type { Prepared__Output } from "../../rpc/generated/pipelora/v1/Prepared.ts";
import { Pipeline } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import type { PlannedMembers } from "./plan-members.ts";
import { type AdapterAssignment, type PrepareSettings, pipelineRoles, prepareRequests } from "./prepare-requests.ts";

export interface LoadedShards {
  readonly pipeline: Pipeline;
  /** By rank: its memory, and how long it took. */
  readonly prepared: readonly Prepared__Output[];
}

/**
 * Has every rank load its shard, all at once. `failure` rejects when a member is lost. Errors: PL_PLACEMENT_INFEASIBLE and the ranks' own.
 */
export async function loadShards(
  { members, devices, plan, computeDtype, linkDtype }: PlannedMembers,
  setup: ModelSetup,
  settings: PrepareSettings,
  { adapters, failure }: { readonly adapters: readonly AdapterAssignment[]; readonly failure: Promise<never> },
): Promise<LoadedShards> {
  assertRunnable(plan);
  const assignment = {
    segments: plan.segments,
    schedule: plan.schedule,
    replicas: plan.replicas,
    linked: true,
    adapters,
    computeDtype,
    linkDtype,
    hostBytes: plan.devices.map(({ memory }) => hostRoomBytes(memory)),
    arenaBytes: plan.devices.map(({ memory }, rank) => arenaBytes(memory, devices[rank]!.kind)),
  };
  const requests = await prepareRequests(members, setup, assignment, settings);
  const pipeline = new Pipeline(members, pipelineRoles(assignment), failure);
  return { pipeline, prepared: await pipeline.prepare(requests) };
}
