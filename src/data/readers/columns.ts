import type { Columns } from "../../config/column-keys.ts";
import { datasetError, isRecord } from "./checks.ts";

/** Keys that rows may lack. */
const MAY_LACK: readonly string[] = ["input", "system", "history", "tools", "labels", "loss_weights"];

/** The row with its columns renamed to our keys. A value that was under one of these keys is dropped. Error: PL_DATASET_INVALID. */
export function withColumns(where: string, value: unknown, columns: Columns): unknown {
  if (!isRecord(value)) return value;
  const taken = new Set<string>(Object.values(columns));
  const row = Object.fromEntries(Object.entries(value).filter(([key]) => !taken.has(key)));
  for (const [key, column] of Object.entries(columns)) {
    if (Object.hasOwn(value, column)) row[key] = value[column];
    else if (!MAY_LACK.includes(key)) {
      const found = Object.keys(value).slice(0, 8);
      throw datasetError(
        `${where} has no column "${column}"; it has ${found.map((name) => `"${name}"`).join(", ")}.`,
        `--columns says that "${key}" stands there: name the column that holds it.`,
      );
    }
  }
  return row;
}
