import { bytesOf } from "../../common/bytes.ts";
import type { LinkDtype } from "../../common/dtype.ts";
import type { SchedulePolicy } from "../../common/schedule-policies.ts";
import type { Config } from "../../config/options.ts";
import { checkpointFingerprint } from "../../formats/fingerprint.ts";
import { biasMatrices } from "../../models/kinds/biases.ts";
import type { NamedMatrix } from "../../models/kinds/named-matrix.ts";
import { savedMatrices } from "../../models/kinds/saved-modules.ts";
import { tokenMatrices } from "../../models/kinds/token-rows.ts";
import type { ResolvedLora } from "../../models/lora-targets.ts";
import type { LinkSettings } from "../../plan/nccl.ts";
import type { PlannedSegment } from "../../plan/plan.ts";
import type { Adapter } from "../../rpc/generated/pipelora/v1/Adapter.ts";
import type { HubModel } from "../../rpc/generated/pipelora/v1/HubModel.ts";
import type { Prepare } from "../../rpc/generated/pipelora/v1/Prepare.ts";
import type { Quantization } from "../../rpc/generated/pipelora/v1/Quantization.ts";
import type { Segment } from "../../rpc/generated/pipelora/v1/Segment.ts";
import type { TrainedModule__Output } from "../../rpc/generated/pipelora/v1/TrainedModule.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { peerLists } from "../cluster/peers.ts";
import type { PipelineRoles } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";

/** What ranks are told beside the plan. */
export type PrepareSettings = LinkSettings & Pick<Config, "link_timeout" | "fp8">;

/** What ranks are told of one adapter. */
export interface AdapterAssignment {
  /** Null: the base alone. */
  readonly lora: ResolvedLora | null;
  readonly settings: Pick<Config, "seed" | "init_lora_weights" | "label_smoothing_factor" | "neftune_noise_alpha">;
  /** Whether ranks draw first LoRA values; otherwise they come by ImportMatrices. */
  readonly initialise: boolean;
  /** The optimizer's group of each trained matrix; absent: the first. */
  readonly groups?: readonly number[];
}

/** The part of a plan that the workers act on. */
export interface Assignment {
  /** The first replica's. */
  readonly segments: readonly PlannedSegment[];
  readonly schedule: SchedulePolicy;
  /** Ranks of each replica, in the order of the first's. */
  readonly replicas: readonly (readonly number[])[];
  /** Whether ranks exchange tensors; not in a calibration, where each times its own part. */
  readonly linked: boolean;
  /** By number; at least one. */
  readonly adapters: readonly AdapterAssignment[];
  readonly computeDtype: string;
  /** What ranks round to for each other; null: nothing. */
  readonly linkDtype: LinkDtype | null;
  /** Bytes of each rank's arena. */
  readonly arenaBytes: readonly number[];
  /** Bytes of pinned host memory for each rank's offloaded activations. */
  readonly hostBytes: readonly number[];
}

/** One Prepare message a rank. */
export async function prepareRequests(
  members: readonly WorkerConnection[],
  setup: ModelSetup,
  { segments, schedule, replicas, linked, adapters, computeDtype, linkDtype, arenaBytes, hostBytes }: Assignment,
  settings: PrepareSettings,
): Promise<Prepare[]> {
  const lists = linked ? await peerLists(members, settings, segments, replicas) : null;
  const common: Prepare = {
    modelDir: setup.dir,
    hubModel: hubModelMessage(setup),
    modelFingerprint: await checkpointFingerprint(setup.checkpoint!),
    holdDtype: setup.holdDtype,
    computeDtype,
    linkDtype: linkDtype ?? "",
    adapters: adapters.map(adapterMessage),
    quantization: quantizationMessage(setup),
    schedule,
    linkTimeoutS: settings.link_timeout,
    fp8: settings.fp8,
  };
  return members.map(({ hello }, rank): Prepare => {
    const own = replicas.find((ranks) => ranks.includes(rank)) ?? [];
    const position = own.indexOf(rank);
    return {
      ...common,
      peers: lists?.peers[rank] ?? [],
      segments: own.length === 0 ? [] : segmentsOn(own, segments),
      replicaRanks: own.length === 0 || !linked ? [] : replicas.map((ranks) => ranks[position]!),
      pipelineRanks: linked ? [...own] : [],
      replicaNccl: Buffer.from(lists?.replicaNccl[rank] ?? []),
      threads: hello.threads,
      arenaBytes: arenaBytes[rank]!,
      hostBytes: hostBytes[rank]!,
    };
  });
}

/** What ranks are told of an adapter. */
export function adapterMessage({ lora, settings, initialise, groups = [] }: AdapterAssignment): Adapter {
  return {
    lora: (lora?.targets ?? []).map((target) => {
      const { name, role, moduleId, r, scale, dropout, in: input, out, stack, dora } = target;
      const all = { expertsOf: stack?.parameter ?? "", experts: stack?.experts ?? 1, embedding: role === "embedding" };
      return { module: name, moduleId, r, scale, dropout, in: input, out, dora, ...all };
    }),
    trained: lora === null ? [] : trainedModules(lora),
    matrices: (lora?.matrices ?? []).map(({ name }, id) => ({ name, group: groups[id] ?? 0 })),
    seed: settings.seed,
    loraInit: { kind: initialise ? initialisation(settings.init_lora_weights) : "none" },
    labelSmoothing: settings.label_smoothing_factor,
    neftuneNoiseAlpha: settings.neftune_noise_alpha ?? 0,
  };
}

function segmentsOn(ranks: readonly number[], segments: readonly PlannedSegment[]): Segment[] {
  return segments.map(({ devices: _devices, ranks: own, ...segment }) => ({
    ...segment,
    ranks: own.map((position) => ranks[position]!),
  }));
}

/** What a node that can't read the coordinator's folder needs to fetch the model from its hub; null for a local model. */
export function hubModelMessage({ hub }: Pick<ModelSetup, "hub">): HubModel | null {
  return hub === null ? null : { ...hub, revision: hub.revision ?? "" };
}

/** The part of Prepare that describes trained matrices other than lora_A and lora_B. */
export function trainedModules({
  saved,
  biases,
  tokens,
}: Pick<ResolvedLora, "saved" | "biases" | "tokens">): TrainedModule__Output[] {
  const message = (module: string, what: string, [matrix]: readonly NamedMatrix[], ids: readonly number[] = []) => {
    return { module, what, matrix: matrix!.name, tokens: Buffer.from(bytesOf(Int32Array.from(ids))), twinOf: "" };
  };
  const rows = tokens === null ? [] : [message(tokens.module, "tokens", tokenMatrices(tokens), tokens.ids)];
  const twins = rows.flatMap((own) => {
    const { twin } = tokenMatrices(tokens!)[0]!;
    return twin === undefined ? [] : [{ ...own, module: tokens!.head!.module, matrix: twin.name, twinOf: own.matrix }];
  });
  return [
    ...saved.map((one) => message(one.module, "weight", savedMatrices(one))),
    ...biases.map((one) => message(one.module, "bias", biasMatrices(one))),
    ...rows,
    ...twins,
  ];
}

function quantizationMessage({ quantization }: ModelSetup): Quantization {
  if (quantization === null) return { method: "none" };
  const { settings, linears } = quantization;
  const modules = linears.map(({ name }) => name);
  return settings.method === "8bit"
    ? { method: "8bit", int8Threshold: settings.threshold, modules }
    : { method: "4bit", quantType: settings.quantType, doubleQuant: settings.doubleQuant, modules };
}

function initialisation(init: Config["init_lora_weights"]): string {
  return typeof init === "string" ? init : init ? "kaiming" : "random";
}

/**
 * The ranks that hold the model's first and last layer and each trained matrix, by replica. All adapters' matrices of one name lie in one
 * layer.
 */
export function pipelineRoles({
  segments,
  replicas,
  adapters,
}: Pick<Assignment, "segments" | "replicas" | "adapters">): PipelineRoles[] {
  const positionOf = (layer: number) =>
    segments.find(({ firstLayer, lastLayer }) => firstLayer <= layer && layer <= lastLayer)!.ranks[0]!;
  const all = adapters.flatMap(({ lora }) => lora?.matrices ?? []);
  return replicas.map((ranks) => ({
    ranks,
    twins: new Map(
      all.flatMap(({ name, twin }) =>
        twin === undefined ? [] : [[name, { name: twin.name, rank: ranks[positionOf(twin.layer)]! }] as const],
      ),
    ),
    first: ranks[segments[0]!.ranks[0]!]!,
    heads: segments.at(-1)!.ranks.map((position) => ranks[position]!),
    owners: new Map(all.map(({ name, layer }) => [name, ranks[positionOf(layer)]!] as const)),
  }));
}
