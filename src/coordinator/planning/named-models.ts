import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import type { HubName } from "../../common/hubs.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { fetchAdapter, fetchModelConfig, fetchTokenizer, fetchWeights } from "../../hub/model-files.ts";
import { downloadProgress } from "../../hub/progress.ts";
import { parseReference, type RepoReference } from "../../hub/reference.ts";
import { hubSettings } from "../../hub/settings.ts";
import { Snapshot } from "../../hub/snapshot.ts";

/** A model of a hub, as a worker of another node can fetch it too. */
export interface HubModel {
  readonly hub: HubName;
  readonly name: string;
  /** As asked for; null: the main branch. */
  readonly revision: string | null;
  readonly commit: string;
}

/** Where a model's files are or will be. The configuration is there; the other files are fetched on demand. */
export interface ModelSource {
  /** As others name it: the path as written, or "owner/name". */
  readonly name: string;
  /** Absolute. */
  readonly dir: string;
  /** null: a folder of this machine. */
  readonly hub: HubModel | null;
  fetchTokenizer(): Promise<void>;
  fetchWeights(): Promise<void>;
}

export async function openSnapshot(reference: RepoReference, hub: HubName, log: Logger): Promise<Snapshot> {
  try {
    return await Snapshot.open(reference, {
      settings: await hubSettings(hub),
      progress: downloadProgress(log),
      warn: (text) => log.warn(text),
    });
  } catch (error) {
    if (reference.name.includes("/") || !(error instanceof PipeloraError)) throw error;
    // Without an owner, the text is more likely a folder's name than one of the few models that have none.
    throw new PipeloraError(error.code, `nothing here is called "${reference.name}", and ${error.message}`, {
      ...(error.hint === undefined ? {} : { hint: error.hint }),
      cause: error,
    });
  }
}

/** A local folder, else a model of that name on a hub. Errors: those of hub/. */
export async function locateModel({ model, hub }: Pick<Config, "model" | "hub">, log: Logger): Promise<ModelSource> {
  const reference = referenceOf(model!);
  if (reference === null) {
    const nothing = async () => {};
    return { name: model!, dir: resolve(model!), hub: null, fetchTokenizer: nothing, fetchWeights: nothing };
  }
  const snapshot = await openSnapshot(reference, hub, log);
  await fetchModelConfig(snapshot);
  const { name, revision } = reference;
  return {
    name,
    dir: snapshot.dir,
    hub: { hub, name, revision, commit: snapshot.commit },
    fetchTokenizer: () => fetchTokenizer(snapshot),
    fetchWeights: () => fetchWeights(snapshot),
  };
}

/** An adapter's folder: local, else fetched. Errors: those of hub/. */
export async function locateAdapter(adapter: string, hub: HubName, log: Logger): Promise<string> {
  const reference = referenceOf(adapter);
  // No adapter on a hub has a name without an owner, so such a name is a missing folder.
  if (reference === null || !reference.name.includes("/")) return adapter;
  const snapshot = await openSnapshot(reference, hub, log);
  await fetchAdapter(snapshot);
  return snapshot.dir;
}

/** null: a local path, also if nothing is there. */
function referenceOf(text: string): RepoReference | null {
  return existsSync(text) ? null : parseReference(text);
}

/** The form that a hub's names have. Error: PL_CONFIG_INVALID. */
export function asReference<T>(name: string, parsed: T | null, form: string): T {
  if (parsed !== null) return parsed;
  throw new PipeloraError("PL_CONFIG_INVALID", `"${name}" is no name of a hub`, { hint: `Write it as ${form}.` });
}
