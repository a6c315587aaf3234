import type { COLUMN_KEYS } from "./column-keys.ts";

/** One of several sets, in the form of our `dataset` key. */
export interface ConvertedSet {
  readonly path: string;
  readonly columns?: Readonly<Record<string, string>>;
  readonly rows?: number;
}

/** The converted sets, and remarks on each. */
export interface ConvertedSets {
  readonly sets: readonly ConvertedSet[];
  readonly remarks: readonly string[];
}

/** LLaMA-Factory's names of columns, and ours. */
const COLUMNS: Readonly<Record<string, (typeof COLUMN_KEYS)[number]>> = {
  prompt: "instruction",
  query: "input",
  response: "output",
  history: "history",
  messages: "messages",
  system: "system",
  tools: "tools",
};
/** Columns whose rows are refused when they are read. */
const REFUSED = ["chosen", "rejected", "kto_tag", "images", "videos", "audios"];
/** Tags that are understood as they are. */
const TAGS: Readonly<Record<string, readonly string[]>> = {
  role_tag: ["from", "role"],
  content_tag: ["value", "content"],
  user_tag: ["human", "user"],
  assistant_tag: ["gpt", "assistant", "bot", "model", "chatgpt"],
  observation_tag: ["observation", "tool", "function", "tool_response"],
  function_tag: ["function_call", "tool_call"],
  system_tag: ["system"],
};

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The names in LLaMA-Factory's `dataset`: a list, or a text with commas. */
export function datasetNames(given: unknown): string[] {
  const list = Array.isArray(given) ? given : String(given).split(",");
  return list.map((name) => String(name).trim()).filter((name) => name !== "");
}

/**
 * Sets by the names that LLaMA-Factory's dataset_info.json gives them: their files in `dir`, or their hub names with configuration, split and
 * number of rows, and their columns under our keys. `limit`: max_samples, of each set.
 */
export function setsOfInfo(
  names: readonly string[],
  info: Readonly<Record<string, unknown>>,
  dir: string,
  limit: number | null,
): ConvertedSets {
  const sets: ConvertedSet[] = [];
  const remarks: string[] = [];
  for (const name of names) {
    const entry = info[name];
    if (!isObject(entry)) {
      remarks.push(`dataset ${name}: dataset_info.json has no such set`);
      continue;
    }
    const path = pathOf(entry, dir);
    if (path === null) {
      remarks.push(`dataset ${name}: sets that a script makes are not read`);
      continue;
    }
    if (entry["hf_hub_url"] === undefined && entry["ms_hub_url"] !== undefined) {
      remarks.push(`dataset ${name}: it is ModelScope's alone: say hub: modelscope`);
    }
    const columns = columnsOf(entry);
    const rows = [entry["num_samples"], limit].find((count) => typeof count === "number") as number | undefined;
    sets.push({
      path,
      ...(Object.keys(columns).length > 0 ? { columns } : {}),
      ...(rows === undefined ? {} : { rows }),
    });
    remarks.push(...remarksOf(name, entry));
  }
  return { sets, remarks };
}

function pathOf(entry: Readonly<Record<string, unknown>>, dir: string): string | null {
  const hub = entry["hf_hub_url"] ?? entry["ms_hub_url"];
  if (typeof hub === "string") {
    const config = typeof entry["subset"] === "string" ? `${entry["subset"]}/` : "";
    const split = typeof entry["split"] === "string" ? entry["split"] : "train";
    const revision = typeof entry["revision"] === "string" ? `@${entry["revision"]}` : "";
    return `${hub}${config === "" && split === "train" ? "" : `:${config}${split}`}${revision}`;
  }
  if (typeof entry["file_name"] !== "string") return null;
  return dir === "." ? entry["file_name"] : `${dir.replace(/\/+$/, "")}/${entry["file_name"]}`;
}

/** Only columns whose own names are not found. */
function columnsOf(entry: Readonly<Record<string, unknown>>): Record<string, string> {
  const given = isObject(entry["columns"]) ? entry["columns"] : {};
  const plainText =
    given["prompt"] !== undefined && given["response"] === undefined && entry["formatting"] !== "sharegpt";
  const columns: Record<string, string> = {};
  for (const [theirs, column] of Object.entries(given)) {
    const ours = plainText && theirs === "prompt" ? "text" : COLUMNS[theirs];
    if (ours === undefined || typeof column !== "string") continue;
    const found = ours === column || (ours === "messages" && ["conversations", "conversation"].includes(column));
    if (!found) columns[ours] = column;
  }
  return columns;
}

function remarksOf(name: string, entry: Readonly<Record<string, unknown>>): string[] {
  const remarks: string[] = [];
  const columns = isObject(entry["columns"]) ? entry["columns"] : {};
  const refused = REFUSED.filter((key) => columns[key] !== undefined);
  if (refused.length > 0 || entry["ranking"] === true) {
    remarks.push(`dataset ${name}: its rows are refused (${refused.length > 0 ? refused.join(", ") : "ranking"})`);
  }
  for (const [tag, value] of Object.entries(isObject(entry["tags"]) ? entry["tags"] : {})) {
    const known = TAGS[tag];
    if (known === undefined || !known.includes(String(value))) {
      remarks.push(`dataset ${name}: its ${tag} "${String(value)}" is not understood; rename it in the rows`);
    }
  }
  for (const key of ["folder", "script_url"]) {
    if (entry[key] !== undefined) remarks.push(`dataset ${name}: ${key} ${String(entry[key])} has no counterpart`);
  }
  return remarks;
}

/** Axolotl's fields that hold what ours hold. */
const FIELDS: Readonly<Record<string, (typeof COLUMN_KEYS)[number]>> = {
  field_messages: "messages",
  field_system: "system",
  field_instruction: "instruction",
  field_input: "input",
  field_output: "output",
  field_tools: "tools",
  field: "text",
};
/** Types whose rows are no supervised fine-tuning. */
const OTHER_TYPES = /dpo|orpo|kto|ipo|simpo|chosen|intel|ultra|argilla|prompt_pairs|stepwise|bradley/;

/** Axolotl's `datasets`: path, split, configuration and fields of each. */
export function setsOfAxolotl(entries: readonly unknown[]): ConvertedSets {
  const remarks: string[] = [];
  const sets = entries.map((entry): ConvertedSet => {
    if (!isObject(entry)) return { path: String(entry) };
    const type = isObject(entry["type"]) ? entry["type"] : {};
    const path = String(entry["data_files"] ?? entry["path"]);
    const config = typeof entry["name"] === "string" ? `${entry["name"]}/` : "";
    const split = typeof entry["split"] === "string" ? entry["split"] : "train";
    const isFile = /\.\w+$/.test(path);
    const columns: Record<string, string> = {};
    for (const [theirs, column] of Object.entries({ ...entry, ...type })) {
      const ours = FIELDS[theirs];
      if (ours !== undefined && typeof column === "string" && column !== ours) columns[ours] = column;
    }
    if (typeof entry["type"] === "string" && OTHER_TYPES.test(entry["type"])) {
      remarks.push(`datasets: ${path}: its rows are refused (type ${entry["type"]})`);
    }
    for (const key of ["shards", "preprocess_shards", "chat_template", "roles", "train_on_eos", "format"]) {
      const value = entry[key] ?? type[key];
      if (value !== undefined) remarks.push(`datasets: ${path}: ${key} has no counterpart`);
    }
    const shown = isFile || (config === "" && split === "train") ? path : `${path}:${config}${split}`;
    return { path: shown, ...(Object.keys(columns).length > 0 ? { columns } : {}) };
  });
  return { sets, remarks };
}
