import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { holdsRows } from "../../data/readers/read.ts";
import { fetchSplit } from "../../hub/dataset-files.ts";
import { fetchAdapter, fetchModelConfig, fetchTokenizer, fetchWeights } from "../../hub/model-files.ts";
import { parseDatasetReference, parseReference } from "../../hub/reference.ts";
import { readModelSpec } from "../../models/index.ts";
import { asReference, openSnapshot } from "../planning/named-models.ts";

export interface Downloaded {
  /** The snapshot's, in the cache. */
  readonly dir: string;
  readonly commit: string;
  /** Of a data set: the split's, in order. */
  readonly files?: readonly string[];
}

/**
 * The `download` command: fetches what a run with that name would. A model's configuration is checked before its weights are fetched.
 * Errors: those of hub/ and models/.
 */
export async function download(
  { name, kind, hub }: Pick<Config, "name" | "kind" | "hub">,
  log: Logger,
): Promise<Downloaded> {
  if (kind === "dataset") {
    const reference = asReference(name!, parseDatasetReference(name!), "owner/name[:split][@revision]");
    const snapshot = await openSnapshot(reference, hub, log);
    const files = await fetchSplit(snapshot, reference, holdsRows);
    return { dir: snapshot.dir, commit: snapshot.commit, files };
  }
  const reference = asReference(name!, parseReference(name!), "owner/name[@revision]");
  const snapshot = await openSnapshot(reference, hub, log);
  if (kind === "adapter") await fetchAdapter(snapshot);
  else {
    await fetchModelConfig(snapshot);
    await readModelSpec(snapshot.dir);
    await fetchTokenizer(snapshot);
    await fetchWeights(snapshot);
  }
  return { dir: snapshot.dir, commit: snapshot.commit };
}
