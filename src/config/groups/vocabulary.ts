import { z } from "zod";
import { FLOAT_DTYPES } from "../../common/dtype.ts";
import type { Command, FlagKind, Option, OptionGroup } from "../option.ts";

/** Commands that load or place a model, and those that share only some of the flags. */
export const RUNS: readonly Command[] = ["train", "plan", "parameters", "generate", "chat", "serve"];
export const TRAINS: readonly Command[] = ["train", "plan"];
export const SAMPLES: readonly Command[] = ["generate", "chat"];
/** Commands that answer over HTTP, alone or beside their work. */
export const SERVES: readonly Command[] = ["serve", "train"];
/** Commands that have an address of their own, with a key and TLS. */
export const LISTENS: readonly Command[] = [...SERVES, "ui"];
export const MODELS: readonly Command[] = [...RUNS, "merge", "export", "quantize", "add-tokens", "tokenize"];
export const QUANTIZES: readonly Command[] = [...RUNS, "merge", "quantize"];

const PLACEHOLDERS: Record<FlagKind, string> = {
  string: "TEXT",
  integer: "N",
  number: "X",
  boolean: "",
  list: "A,B,…",
  json: "JSON",
  "boolean-or-string": "[VALUE]",
};

export function option<T extends z.ZodType>(
  kind: FlagKind,
  group: OptionGroup,
  commands: readonly Command[],
  schema: T,
  help: string,
  placeholder: string = PLACEHOLDERS[kind],
  other?: Option["other"],
): Option<T> {
  return { kind, group, commands, schema, help, placeholder, ...(other === undefined ? {} : { other }) };
}

/** An option that the environment may set, as in a pod; a flag or the file takes precedence. */
export function fromEnvironment<T extends z.ZodType>(environment: string, taken: Option<T>): Option<T> {
  return { ...taken, environment };
}

export const choice = <const V extends readonly [string, ...string[]]>(values: V) => z.enum(values);
export const positive = z.number().int().positive();
export const count = z.number().int().nonnegative();
export const ratio = z.number().min(0).max(1);
export const text = z.string().min(1);
export const names = z.array(text).min(1);
/** A list for which the command line may give a single entry. */
export const oneOrMore = z.union([names, text.transform((one) => [one])]);
export const optional = <T extends z.ZodType>(schema: T) => schema.nullable().default(null);
export const flag = (value = false) => z.boolean().default(value);

export const DTYPES = ["auto", ...FLOAT_DTYPES] as const;
export const STRATEGIES = ["no", "steps", "epoch"] as const;
