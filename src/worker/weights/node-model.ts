import { join } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { isFile } from "../../common/files.ts";
import { HUBS, type HubName } from "../../common/hubs.ts";
import type { Logger } from "../../common/log.ts";
import {
  type Checkpoint,
  INDEX_FILE,
  type ModelNames,
  openCheckpoint,
  SINGLE_FILE,
  shardsHolding,
} from "../../formats/checkpoint.ts";
import { checkFingerprint } from "../../formats/fingerprint.ts";
import { fetchModelConfig, fetchWeights } from "../../hub/model-files.ts";
import { downloadProgress } from "../../hub/progress.ts";
import { hubSettings } from "../../hub/settings.ts";
import { Snapshot } from "../../hub/snapshot.ts";
import type { HubModel__Output } from "../../rpc/generated/pipelora/v1/HubModel.ts";

/** The parts of a request that name its model. */
export interface ModelRequest {
  /** The coordinator's folder. */
  readonly modelDir: string;
  readonly hubModel: HubModel__Output | null;
}

/** Where a fetch reports its progress, and what aborts it. */
export interface FetchContext {
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** The model on this node: in a folder, or in the node's cache. What a rank needs is fetched into the cache when that is known. */
export class NodeModel {
  readonly dir: string;
  /** Null if the model is in a folder. */
  readonly #snapshot: Snapshot | null;

  private constructor(dir: string, snapshot: Snapshot | null) {
    this.dir = dir;
    this.#snapshot = snapshot;
  }

  /**
   * Finds the model. `own`: this node's --model. Without it: the coordinator's folder, if it is complete here too (the same machine or a shared
   * volume). Otherwise the named model is looked up on the hub and its configuration fetched. Errors: those of hub/; PL_CHECKPOINT_INVALID if
   * the revision has another commit by now.
   */
  static async find(
    own: string | null,
    { modelDir, hubModel }: ModelRequest,
    { log, signal }: FetchContext,
  ): Promise<NodeModel> {
    if (own !== null || hubModel === null) return new NodeModel(own ?? modelDir, null);
    if (await isWhole(modelDir)) return new NodeModel(modelDir, null);
    const { hub, name, revision, commit } = hubModel;
    if (!isHub(hub))
      throw new PipeloraError(
        "PL_PROTOCOL_MISMATCH",
        `the coordinator names the hub "${hub}", which this version does not know`,
      );
    // Hugging Face accepts a commit's hash as a revision.
    const asked = hub === "huggingface" ? commit : revision || null;
    const snapshot = await Snapshot.open(
      { kind: "model", name, revision: asked },
      {
        settings: { ...(await hubSettings(hub)), cancelled: signal },
        progress: downloadProgress(log),
        warn: (text) => log.warn(text),
      },
    );
    if (snapshot.commit !== commit) {
      throw new PipeloraError(
        "PL_CHECKPOINT_INVALID",
        `${name} is at ${snapshot.commit.slice(0, 12)} by now, the coordinator has ${commit.slice(0, 12)}`,
        { hint: "Start the run again, or name a tag behind @." },
      );
    }
    await fetchModelConfig(snapshot);
    return new NodeModel(snapshot.dir, snapshot);
  }

  /** The commit of a model whose weights are fetched when a rank needs them; null for a folder. */
  get commit(): string | null {
    return this.#snapshot?.commit ?? null;
  }

  /**
   * Opens the files with these tensors. `fingerprint`: the coordinator's, with which a folder is compared. Fetched files are checked by commit
   * and hashes. Errors: those of openCheckpoint and hub/.
   */
  async openCheckpoint(spec: ModelNames, tensors: readonly string[], fingerprint: string): Promise<Checkpoint> {
    if (this.#snapshot === null) {
      const checkpoint = await openCheckpoint(this.dir, spec);
      await checkFingerprint(checkpoint, fingerprint);
      return checkpoint;
    }
    await fetchWeights(this.#snapshot, tensors, spec);
    return openCheckpoint(this.dir, spec, tensors);
  }
}

function isHub(name: string): name is HubName {
  return (HUBS as readonly string[]).includes(name);
}

/** Whether a folder has all files of a model. */
async function isWhole(dir: string): Promise<boolean> {
  if (!(await isFile(join(dir, "config.json")))) return false;
  if (await isFile(join(dir, SINGLE_FILE))) return true;
  if (!(await isFile(join(dir, INDEX_FILE)))) return false;
  const shards = await shardsHolding(dir, null);
  return (await Promise.all(shards.map((shard) => isFile(join(dir, shard))))).every(Boolean);
}
