import { resolve } from "node:path";
import { freeDisk, freeMemory } from "../common/machine.ts";
import type { Capabilities } from "../engine/index.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import { checkpointDigest } from "../formats/fingerprint.ts";
import type { Preflight__Output } from "../rpc/generated/pipelora/v1/Preflight.ts";
import type { PreflightReport } from "../rpc/generated/pipelora/v1/PreflightReport.ts";
import { toFailure } from "../rpc/wire-error.ts";
import { type FetchContext, NodeModel } from "./weights/node-model.ts";

/** This node's own folders, where they differ from the coordinator's. */
export interface OwnFolders {
  readonly modelDir: string | null;
  readonly outputDir: string | null;
}

/** What this node has for a run. Of weights only samples are read. `own`: this node's folders; null: those at the coordinator's paths. */
export async function inspectNode(
  request: Preflight__Output,
  own: OwnFolders,
  { cuda, nccl }: Capabilities,
  context: FetchContext,
): Promise<PreflightReport> {
  const clockMs = Date.now();
  const digest = describeCheckpoint(request, own, context);
  const [checkpoint, checkpointFailure] = await digest.then(
    (found) => [found, null] as const,
    (error: unknown) => ["", toFailure(error)] as const,
  );
  const freeDiskBytes = request.outputDir === "" ? 0 : await freeDisk(resolve(own.outputDir ?? request.outputDir));
  const hasGpus = (cuda?.devices.length ?? 0) > 0;
  return {
    clockMs,
    freeMemoryBytes: freeMemory(),
    freeDiskBytes,
    checkpoint,
    checkpointFailure,
    nccl: hasGpus ? (nccl.version ?? "none") : "",
  };
}

async function describeCheckpoint(request: Preflight__Output, own: OwnFolders, context: FetchContext): Promise<string> {
  const model = await NodeModel.find(own.modelDir, request, context);
  if (model.commit !== null) return `commit ${model.commit}`;
  return checkpointDigest(await openCheckpoint(model.dir));
}
