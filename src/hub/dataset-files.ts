import { readFile } from "node:fs/promises";
import { parse } from "yaml";
import { PipeloraError } from "../common/errors.ts";
import { fetchCard } from "./model-files.ts";
import type { DatasetReference } from "./reference.ts";
import type { Snapshot } from "./snapshot.ts";

/** Splits by the words that files and folders name them with, as the hub's own rules know them. */
const SPLIT_WORDS: Readonly<Record<string, readonly string[]>> = {
  train: ["train", "training"],
  validation: ["validation", "valid", "dev", "val"],
  test: ["test", "testing", "eval", "evaluation"],
};
const DEFAULT_SPLIT = "train";
const NO_DATA = /(^|\/)(\.[^/]*|README\.md|config\.json|dataset_infos?\.json|dummy_data\.zip)$/;
const SHARDED = /^data\/(\w[\w.-]*?)-\d{5}-of-\d{5}[^/]*\.[^/]+$/;

/**
 * Fetches the files of one split, in their order: those that the card's `configs` name, else data/SPLIT-00000-of-…, else files and folders
 * named after splits, else every file of rows as "train". `isRows`: whether a path's extension is one that can be read.
 * Source: "Data files Configuration" and "File names and splits" of the Hub's documentation.
 * Error: PL_HUB_NOT_FOUND, naming the configurations, splits or files there are; those of Snapshot.
 */
export async function fetchSplit(
  snapshot: Snapshot,
  { config, split, name }: DatasetReference,
  isRows: (path: string) => boolean,
): Promise<string[]> {
  const card = await fetchCard(snapshot, (path) => readFile(path, "utf8"));
  const data = snapshot.paths.filter((path) => !NO_DATA.test(path)).sort();
  const splits = configured(name, card, config, data) ?? named(name, config, data.filter(isRows));
  const wanted = split ?? DEFAULT_SPLIT;
  const files = splits.get(wanted);
  if (files === undefined || files.length === 0) {
    const known = [...splits.keys()];
    throw notFound(
      `${name} has no split "${wanted}"${known.length === 0 ? "" : `; it has ${list(known)}`}`,
      known.length === 0
        ? "Its files are of no kind that is read (JSON, JSONL, CSV, TSV, Parquet), or a script makes them: give files of your own."
        : `Name one behind the repository: ${name}:${known[0]}.`,
    );
  }
  const foreign = files.find((path) => !isRows(path));
  if (foreign !== undefined) {
    throw notFound(
      `${name}: the split "${wanted}" lies in ${foreign}, which can't be read`,
      "Rows are read from JSON, JSONL, CSV, TSV and Parquet.",
    );
  }
  await snapshot.fetch(files);
  return files.map((path) => snapshot.pathOf(path));
}

interface CardConfig {
  readonly config_name?: unknown;
  readonly data_files?: unknown;
  readonly data_dir?: unknown;
  readonly default?: unknown;
}

/** What the card's `configs` say; null where it has none. */
function configured(
  name: string,
  card: string,
  asked: string | null,
  paths: readonly string[],
): Map<string, string[]> | null {
  const configs = configsOf(name, card);
  if (configs.length === 0) return null;
  const names = configs.map(({ config_name }) => String(config_name ?? "default"));
  const chosen =
    asked !== null
      ? configs[names.indexOf(asked)]
      : (configs.find((entry) => entry.default === true) ??
        configs[names.indexOf("default")] ??
        (configs.length === 1 ? configs[0] : undefined));
  if (chosen === undefined) {
    throw notFound(
      asked === null
        ? `${name} has several configurations: ${list(names)}`
        : `${name} has no configuration "${asked}"; it has ${list(names)}`,
      `Name one with its split: ${name}:${names[0]}/${DEFAULT_SPLIT}.`,
    );
  }
  const dir = typeof chosen.data_dir === "string" ? `${chosen.data_dir.replace(/^\.\/|\/+$/g, "")}/` : "";
  const below = paths.filter((path) => path.startsWith(dir));
  if (chosen.data_files === undefined)
    return conventional(
      below.map((path) => path.slice(dir.length)),
      dir,
    );
  const splits = new Map<string, string[]>();
  for (const { split, patterns } of dataFiles(name, chosen.data_files)) {
    const files = patterns.flatMap((pattern) => {
      const match = globPattern(dir + pattern.replace(/^\.\//, ""));
      return paths.filter((path) => match.test(path));
    });
    splits.set(split, [...new Set([...(splits.get(split) ?? []), ...files])]);
  }
  return splits;
}

function configsOf(name: string, card: string): readonly CardConfig[] {
  const front = /^\uFEFF?---\r?\n([\s\S]*?)\r?\n---/.exec(card)?.[1];
  if (front === undefined) return [];
  let head: unknown;
  try {
    head = parse(front);
  } catch (cause) {
    throw notFound(
      `${name}: the head of its README.md is no YAML: ${(cause as Error).message.split("\n")[0]}`,
      "Tell its owner, or give files of your own.",
    );
  }
  const configs = (head as { configs?: unknown } | null)?.configs;
  return Array.isArray(configs) ? (configs as CardConfig[]) : [];
}

/** "*.csv", a list of them, or a list of {split, path}. */
function dataFiles(name: string, value: unknown): { split: string; patterns: string[] }[] {
  const texts = (given: unknown): string[] | null => {
    const all = [given].flat();
    return all.every((entry) => typeof entry === "string") ? (all as string[]) : null;
  };
  const plain = texts(value);
  if (plain !== null) return [{ split: DEFAULT_SPLIT, patterns: plain }];
  return [value].flat().map((entry) => {
    const { split, path } = (entry ?? {}) as { split?: unknown; path?: unknown };
    const patterns = texts(path);
    if (patterns === null)
      throw notFound(
        `${name}: its README.md has data_files without a path`,
        "Tell its owner, or give files of your own.",
      );
    return { split: split === undefined ? DEFAULT_SPLIT : String(split), patterns };
  });
}

function named(name: string, asked: string | null, paths: readonly string[]): Map<string, string[]> {
  if (asked === null) return conventional(paths, "");
  const below = paths.filter((path) => path.startsWith(`${asked}/`)).map((path) => path.slice(asked.length + 1));
  if (below.length > 0) return conventional(below, `${asked}/`);
  throw notFound(`${name} has no configuration "${asked}"`, "Leave it out: its card names none.");
}

/** Splits by the names of files; `prefix` goes in front of each path again. */
function conventional(paths: readonly string[], prefix: string): Map<string, string[]> {
  const splits = new Map<string, string[]>();
  const add = (split: string, path: string) => splits.set(split, [...(splits.get(split) ?? []), prefix + path]);
  for (const path of paths) {
    const split = SHARDED.exec(path)?.[1];
    if (split !== undefined) add(split, path);
  }
  if (splits.size > 0) return splits;
  for (const [split, words] of Object.entries(SPLIT_WORDS)) {
    const word = new RegExp(`(^|[/._ 0-9-])(${words.join("|")})([/._ 0-9-]|$)`);
    for (const path of paths) if (word.test(path)) add(split, path);
  }
  if (splits.size > 0) return splits;
  for (const path of paths) add(DEFAULT_SPLIT, path);
  return splits;
}

/** "**" stands for folders too, "*" and "?" for no slash, [0-9] and {a,b} as in a shell. */
function globPattern(glob: string): RegExp {
  let pattern = "";
  let depth = 0;
  for (let at = 0; at < glob.length; at++) {
    const rest = glob.slice(at);
    const char = glob[at]!;
    const set = /^\[[^\]/\\]+\]/.exec(rest)?.[0];
    if (rest.startsWith("**/")) {
      pattern += "(?:.*/)?";
      at += 2;
    } else if (rest.startsWith("**")) {
      pattern += ".*";
      at += 1;
    } else if (char === "*") pattern += "[^/]*";
    else if (char === "?") pattern += "[^/]";
    else if (set !== undefined) {
      pattern += set.replace(/^\[!/, "[^");
      at += set.length - 1;
    } else if (char === "{" && rest.includes("}")) {
      pattern += "(?:";
      depth += 1;
    } else if (char === "}" && depth > 0) {
      pattern += ")";
      depth -= 1;
    } else if (char === "," && depth > 0) pattern += "|";
    else pattern += char.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  }
  return new RegExp(`^${pattern}${")".repeat(depth)}$`);
}

function list(names: readonly string[]): string {
  return names.map((name) => `"${name}"`).join(", ");
}

function notFound(message: string, hint: string): PipeloraError {
  return new PipeloraError("PL_HUB_NOT_FOUND", message, { hint });
}
