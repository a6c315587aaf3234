import { existsSync } from "node:fs";
import type { Logger } from "../../common/log.ts";
import type { RowSets } from "../../config/groups/data.ts";
import type { Config } from "../../config/options.ts";
import type { RowSet } from "../../data/encode.ts";
import { holdsRows } from "../../data/readers/read.ts";
import { fetchSplit } from "../../hub/dataset-files.ts";
import { parseDatasetReference } from "../../hub/reference.ts";
import { openSnapshot } from "./named-models.ts";
import type { Templates } from "./row-templates.ts";

/**
 * The sets that a setting names, each with its local files. A text that is a local file is that file; another one in a hub name's form is
 * fetched. Errors: those of hub/.
 */
export async function findSets(
  given: RowSets,
  config: Pick<Config, "columns" | "template" | "hub">,
  templates: Templates,
  log: Logger,
): Promise<RowSet[]> {
  const entries = typeof given === "string" ? pathsOf(given) : given;
  const sets: RowSet[] = [];
  for (const entry of entries) {
    const { path, weight, rows, columns, template } = typeof entry === "string" ? { path: entry } : entry;
    sets.push({
      label: path,
      files: await filesOf(path, config.hub, log),
      weight: weight ?? null,
      limit: rows ?? null,
      columns: columns ?? config.columns,
      ...templates(template ?? config.template),
    });
  }
  return sets;
}

/** Separated by commas, except commas in a file's name: of two readings, the longest one that exists is taken. */
export function pathsOf(text: string, exists: (path: string) => boolean = existsSync): string[] {
  const parts = text.split(",");
  const paths: string[] = [];
  for (let at = 0; at < parts.length; ) {
    let end = parts.length;
    while (end > at + 1 && !exists(parts.slice(at, end).join(","))) end -= 1;
    const path = parts.slice(at, end).join(",");
    // A space after a comma is no part of a name, unless there is such a file.
    paths.push(exists(path) ? path : path.trim());
    at = end;
  }
  return paths.filter((path) => path !== "");
}

async function filesOf(path: string, hub: Config["hub"], log: Logger): Promise<string[]> {
  if (existsSync(path)) return [path];
  const reference = parseDatasetReference(path);
  // "data/train.jsonl" has a name's form, but is a file that is missing.
  if (reference === null || (holdsRows(reference.name) && reference.split === null)) return [path];
  const snapshot = await openSnapshot(reference, hub, log);
  return fetchSplit(snapshot, reference, holdsRows);
}
