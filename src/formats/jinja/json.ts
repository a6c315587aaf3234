import type { Budget } from "./budget.ts";
import { floatText } from "./text.ts";
import { compare, Dict, Float, fail, Tuple, typeName, Undefined, type Value } from "./values.ts";

export interface JsonStyle {
  readonly ensureAscii: boolean;
  readonly indent: string | null;
  readonly itemSeparator: string;
  readonly keySeparator: string;
  readonly sortKeys: boolean;
}

/** json.dumps of Python. */
export function toJson(value: Value, style: JsonStyle, budget: Budget, depth = 0): string {
  budget.step();
  if (depth > 200) fail("tojson: nested too deeply");
  if (value === null) return "null";
  if (typeof value === "boolean" || typeof value === "number") return String(value);
  if (typeof value === "string") return text(value, style.ensureAscii);
  if (value instanceof Float) {
    if (Number.isNaN(value.value)) return "NaN";
    return Number.isFinite(value.value) ? floatText(value.value) : value.value > 0 ? "Infinity" : "-Infinity";
  }
  const inner = (item: Value) => toJson(item, style, budget, depth + 1);
  if (Array.isArray(value) || value instanceof Tuple) {
    return wrapped("[", Array.isArray(value) ? value.map(inner) : value.items.map(inner), "]", style, depth);
  }
  if (value instanceof Dict) {
    const entries = [...value.entries];
    if (style.sortKeys) entries.sort(([a], [b]) => compare(a, b));
    const items = entries.map(
      ([key, item]) => `${text(keyText(key), style.ensureAscii)}${style.keySeparator}${inner(item)}`,
    );
    return wrapped("{", items, "}", style, depth);
  }
  if (value instanceof Undefined) return fail(`${value.what} is undefined`);
  return fail(`a ${typeName(value)} is not JSON`);
}

function wrapped(open: string, items: readonly string[], close: string, style: JsonStyle, depth: number): string {
  if (items.length === 0) return open + close;
  if (style.indent === null) return open + items.join(style.itemSeparator) + close;
  const line = `\n${style.indent.repeat(depth + 1)}`;
  return `${open}${line}${items.join(style.itemSeparator + line)}\n${style.indent.repeat(depth)}${close}`;
}

function keyText(key: Value): string {
  if (typeof key === "string") return key;
  if (key === null) return "null";
  if (typeof key === "boolean" || typeof key === "number") return String(key);
  return key instanceof Float ? floatText(key.value) : fail(`keys must be text, not ${typeName(key)}`);
}

function text(value: string, ensureAscii: boolean): string {
  // JSON.stringify writes lone surrogates as escapes and leaves U+007F alone, as Python does.
  const quoted = JSON.stringify(value);
  if (!ensureAscii) return quoted;
  return quoted.replace(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
