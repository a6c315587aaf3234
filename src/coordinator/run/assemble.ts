import { randomBytes } from "node:crypto";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { loadEngine } from "../../engine/index.ts";
import { arenaBytes } from "../../plan/arena.ts";
import { type PlannedLink, plannedLinks } from "../../plan/link-kinds.ts";
import { hostRoomBytes } from "../../plan/offload.ts";
import { assertRunnable, type Plan } from "../../plan/plan.ts";
import { NO_OVERRIDES } from "../../plan/request.ts";
import type { Prepared__Output } from "../../rpc/generated/pipelora/v1/Prepared.ts";
import { openTrust } from "../../rpc/trust.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { calibrate, worthMeasuring } from "../cluster/calibration.ts";
import { Cluster } from "../cluster/cluster.ts";
import { localDevices } from "../cluster/local-devices.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { type ChosenPlan, joinedDevices, planFor } from "../planning/planning.ts";
import { pipelineRoles, prepareRequests } from "../planning/prepare-requests.ts";
import type { Workload } from "../planning/workload.ts";
import { Pipeline } from "./pipeline.ts";

export interface Assembled extends ChosenPlan {
  readonly pipeline: Pipeline;
  readonly prepared: readonly Prepared__Output[];
}

/** Opens the cluster of a run: local workers, or those that will join over the network. */
export function openCluster(config: Config, log: Logger): Promise<Cluster> {
  const capabilities = loadEngine().capabilities();
  const { devices, threads, pin } = localDevices(config, capabilities);
  const { cuda } = capabilities;
  if (config.listen === null && config.workers === null && cuda !== null && cuda.driver > 0 && cuda.reason !== null) {
    log.warn(`This machine has an NVIDIA driver, but no GPU is used: ${cuda.reason}.`);
  }
  const trust = openTrust(config, (problem) => log.warn(problem));
  // Workers started here know a secret of this run, so that no other user of the machine joins it.
  const secret = trust.token() ?? randomBytes(24).toString("base64url");
  return Cluster.open({
    listen: config.listen,
    nodes: config.nodes,
    trust: config.listen === null ? { ...trust, token: () => secret } : trust,
    tlsFlags: trust.tls === null ? [] : tlsFlags(config),
    nnodes: config.nodes?.length ?? config.nnodes,
    healthListen: config.health_listen,
    joinTimeoutS: config.join_timeout,
    localDevices: devices,
    localThreads: threads,
    localPin: pin,
    build: capabilities.build,
    logFormat: config.log_format,
    logLevel: config.log_level,
    log,
  });
}

function tlsFlags({ tls_ca, tls_cert, tls_key, tls_name }: Config): string[] {
  return ["--tls-ca", tls_ca!, "--tls-cert", tls_cert!, "--tls-key", tls_key!, "--tls-name", tls_name];
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
