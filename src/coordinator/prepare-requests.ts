import type { Config } from "../config/options.ts";
import { checkpointFingerprint } from "../formats/fingerprint.ts";
import type { PlannedSegment } from "../plan/plan.ts";
import type { Prepare } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { Quantization } from "../rpc/generated/pipelora/v1/Quantization.ts";
import type { WorkerConnection } from "../rpc/worker-connection.ts";
import type { ModelSetup } from "./model-setup.ts";
import type { PipelineRoles } from "./pipeline.ts";

/** The part of a plan that the workers act on. */
export interface Assignment {
  readonly segments: readonly PlannedSegment[];
  readonly computeDtype: string;
  /** Bytes of each rank's arena. */
  readonly arenaBytes: readonly number[];
}

/** One Prepare message a rank. `initialise`: ranks draw first LoRA values; otherwise they come by ImportLora. */
export async function prepareRequests(
  config: Config,
  setup: ModelSetup,
  { segments, computeDtype, arenaBytes }: Assignment,
  members: readonly WorkerConnection[],
  initialise: boolean,
): Promise<Prepare[]> {
  const common: Prepare = {
    modelDir: setup.dir,
    modelFingerprint: await checkpointFingerprint(setup.checkpoint!),
    holdDtype: setup.holdDtype,
    computeDtype,
    segments: segments.map(({ device: _device, ...segment }) => segment),
    lora: (setup.lora?.targets ?? []).map(({ name, moduleId, r, scale, dropout, in: input, out }) => {
      return { module: name, moduleId, r, scale, dropout, in: input, out };
    }),
    quantization: quantizationMessage(setup),
    peers: members.map(({ hello }, rank) => ({ rank, address: hello.linkAddress })),
    schedule: config.schedule,
    seed: config.seed,
    loraInit: { kind: initialise ? initialisation(config) : "none" },
    linkTimeoutS: config.link_timeout,
  };
  return members.map(({ hello }, rank) => ({ ...common, threads: hello.threads, arenaBytes: arenaBytes[rank]! }));
}

function quantizationMessage({ quantization }: ModelSetup): Quantization {
  if (quantization === null) return { method: "none" };
  const { settings, linears } = quantization;
  const modules = linears.map(({ name }) => name);
  return settings.method === "8bit"
    ? { method: "8bit", int8Threshold: settings.threshold, modules }
    : { method: "4bit", quantType: settings.quantType, doubleQuant: settings.doubleQuant, modules };
}

function initialisation(config: Config): string {
  if (config.init_lora_weights === "gaussian") return "gaussian";
  return config.init_lora_weights ? "kaiming" : "random";
}

/** Which ranks hold the ends of the model and each LoRA pair. */
export function pipelineRoles(setup: ModelSetup, segments: readonly PlannedSegment[]): PipelineRoles {
  const rankOf = (layer: number) =>
    segments.find(({ firstLayer, lastLayer }) => firstLayer <= layer && layer <= lastLayer)!.rank;
  return {
    first: segments[0]!.rank,
    last: segments.at(-1)!.rank,
    owners: new Map((setup.lora?.targets ?? []).map(({ name, layer }) => [name, rankOf(layer)])),
  };
}
