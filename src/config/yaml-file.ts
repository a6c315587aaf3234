import { readFile, stat } from "node:fs/promises";
import { PipeloraError } from "../common/errors.ts";
import { withTimeLimit } from "../common/time-limit.ts";

/** A file of flags has at most some hundred lines. Nested brackets cost the parser the square of their number. */
const MAX_YAML_BYTES = 1 << 20;
const YAML_MS = 5_000;

/** Keys and values of a YAML file, which `flag` names. Error: PL_CONFIG_INVALID. */
export async function readYaml(path: string, flag = "--config"): Promise<Record<string, unknown>> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > MAX_YAML_BYTES) throw new Error(`it has ${size} bytes, expected at most ${MAX_YAML_BYTES}`);
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new PipeloraError("PL_CONFIG_INVALID", `${flag}: can't read ${path}: ${(cause as Error).message}`, {
      cause,
      hint: `Name a YAML file of ${flag === "--config" ? "flags" : "settings"} in snake_case.`,
    });
  }
  // The YAML parser is loaded when a file is named: most runs have flags alone.
  const { parse } = await import("yaml");
  try {
    const parsed: unknown = withTimeLimit(YAML_MS, () => parse(text)) ?? {};
    if (typeof parsed === "object" && !Array.isArray(parsed)) return parsed as Record<string, unknown>;
  } catch (cause) {
    const where = cause instanceof Error ? cause.message.split("\n")[0] : String(cause);
    throw new PipeloraError("PL_CONFIG_INVALID", `${path} is not YAML: ${where}`, { cause });
  }
  throw new PipeloraError("PL_CONFIG_INVALID", `${path}: expected a mapping of keys to values`);
}
