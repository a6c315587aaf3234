import type { z } from "zod";
import { shown } from "../common/shown.ts";
import { type FlagKind, flagOf, type Option } from "./option.ts";
import { type Config, OPTIONS, type OptionKey } from "./options.ts";

/** Builds the configuration from these values and the defaults. Malformed values are added to `problems`. */
export function parseValues(values: Readonly<Record<string, unknown>>, problems: string[]): Config {
  const config: Record<string, unknown> = {};
  for (const [key, option] of Object.entries(OPTIONS) as [OptionKey, Option][]) {
    const parsed = parseValue(option, values[key]);
    if (parsed.ok) config[key] = parsed.value;
    else problems.push(`${flagOf(key)}: ${parsed.problem}`);
  }
  return config as Config;
}

/** One value, as YAML gives it. */
export function parseValue(
  { schema }: Option,
  value: unknown,
): { readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly problem: string } {
  const result = schema.safeParse(value);
  if (result.success) return { ok: true, value: result.data };
  return { ok: false, problem: describeIssues(result.error.issues, value) };
}

function describeIssues(issues: readonly z.core.$ZodIssue[], value: unknown): string {
  const what = issues.map((issue) => issue.message.replace(/^Invalid (input|option): /, "")).join("; ");
  return `${what}, got ${shown(value)}`;
}

type Parsed = { readonly ok: true; readonly value: unknown } | { readonly ok: false; readonly expected: string };

/** A flag's text. */
export function parseFlag(kind: FlagKind, text: string | boolean): Parsed {
  switch (kind) {
    case "boolean":
      return parseBoolean(text) ?? { ok: false, expected: "true or false" };
    case "boolean-or-string":
      return parseBoolean(text) ?? { ok: true, value: text };
    case "integer":
      return isText(text) && /^-?\d+$/.test(text)
        ? { ok: true, value: Number(text) }
        : { ok: false, expected: "a whole number" };
    case "number":
      return isText(text) && text.trim() !== "" && Number.isFinite(Number(text))
        ? { ok: true, value: Number(text) }
        : { ok: false, expected: "a number" };
    case "list":
      if (!isText(text)) return { ok: false, expected: "a comma-separated list" };
      return { ok: true, value: splitList(text) };
    case "json":
      try {
        if (isText(text)) return { ok: true, value: JSON.parse(text) };
      } catch {}
      return { ok: false, expected: "JSON" };
    case "string":
      return isText(text) ? { ok: true, value: text } : { ok: false, expected: "a value" };
  }
}

/** YAML 1.1's words for true and false, which YAML 1.2 takes for text; "a,b" where a list is wanted. */
export function typedAsFlag(kind: FlagKind, value: unknown): unknown {
  if (typeof value !== "string") return value;
  if (kind === "boolean" || (kind === "boolean-or-string" && /^(yes|no|on|off)$/i.test(value))) {
    return parseBoolean(value)?.value ?? value;
  }
  return kind === "list" ? splitList(value) : value;
}

/** At commas outside of brackets: "a{1,2}" and "(a,b)" are one regular expression each. */
function splitList(text: string): string | string[] {
  const parts = text.split(/,(?![^([{]*[)\]}])/).map((part) => part.trim());
  return parts.length > 1 ? parts : text;
}

function isText(value: string | boolean): value is string {
  return typeof value === "string";
}

function parseBoolean(text: string | boolean): { readonly ok: true; readonly value: boolean } | null {
  if (typeof text === "boolean") return { ok: true, value: text };
  if (/^(true|1|yes|on)$/i.test(text)) return { ok: true, value: true };
  if (/^(false|0|no|off)$/i.test(text)) return { ok: true, value: false };
  return null;
}
