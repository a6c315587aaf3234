import { asNumber, asText, bind, optionalInteger } from "./arguments.ts";
import type { Budget } from "./budget.ts";
import { toJson } from "./json.ts";
import { LIST_FILTERS } from "./list-filters.ts";
import { formatPercent } from "./percent-format.ts";
import { capitalized, replaced } from "./string-methods.ts";
import { LINE_BREAKS, SPACE, str, strip } from "./text.ts";
import {
  type CallArguments,
  characters,
  Dict,
  Float,
  fail,
  iterate,
  numberOf,
  Tuple,
  truthy,
  Undefined,
  type Value,
} from "./values.ts";

/** The parts of the interpreter that filters use: other filters, tests, and attributes. */
export interface FilterContext {
  readonly budget: Budget;
  attribute(value: Value, name: Value): Value;
  filter(name: string, value: Value, args: CallArguments): Value;
  test(name: string, value: Value, args: CallArguments): boolean;
}

export type Filter = (value: Value, args: CallArguments, context: FilterContext) => Value;

const onText =
  (name: string, change: (text: string) => string): Filter =>
  (value, args, { budget }) => {
    bind(name, args, []);
    return budget.text(change(str(value)));
  };

const escapeHtml = (text: string) =>
  text.replace(/[&<>"']/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;" })[one]!);

const defaulted: Filter = (value, args) => {
  const [standard, falsy] = bind("default", args, ["default_value", "boolean"]);
  const missing = value instanceof Undefined || (falsy !== undefined && truthy(falsy) && !truthy(value));
  return missing ? (standard === undefined ? "" : standard) : value;
};

const length: Filter = (value) =>
  value instanceof Dict ? value.entries.size : value === null ? fail("None has no length") : iterate(value).length;

const tojson: Filter = (value, args, { budget }) => {
  const [ascii, indent, separators, sortKeys] = bind("tojson", args, [
    "ensure_ascii",
    "indent",
    "separators",
    "sort_keys",
  ]);
  const spaces = typeof indent === "string" ? indent : optionalInteger("tojson", indent);
  const pair = separators === undefined || separators === null ? null : iterate(separators).map(str);
  const style = {
    ensureAscii: ascii !== undefined && truthy(ascii),
    indent: typeof spaces === "number" ? " ".repeat(Math.min(Math.max(spaces, 0), 100)) : spaces,
    itemSeparator: pair?.[0] ?? (spaces === null ? ", " : ","),
    keySeparator: pair?.[1] ?? ": ",
    sortKeys: sortKeys !== undefined && truthy(sortKeys),
  };
  return budget.text(toJson(value, style, budget));
};

const toInteger: Filter = (value, args) => {
  const [standard, base] = bind("int", args, ["default", "base"]);
  const radix = optionalInteger("int", base) ?? 10;
  if (typeof value === "string") {
    const text = strip(value, null, true, true).replaceAll("_", "");
    const digits = "0123456789abcdefghijklmnopqrstuvwxyz".slice(0, radix);
    const body = text.toLowerCase().replace(/^([+-]?)0[xob]/, radix === 10 ? "$&" : "$1");
    if (new RegExp(`^[+-]?[${digits}]+$`).test(body)) return Number.parseInt(body, radix);
    const float = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : Number.NaN;
    return Number.isFinite(float) ? Math.trunc(float) : (standard ?? 0);
  }
  const number = numberOf(value);
  return number !== null && Number.isFinite(number) ? Math.trunc(number) : (standard ?? 0);
};

const toFloat: Filter = (value, args) => {
  const [standard] = bind("float", args, ["default"]);
  const number =
    typeof value === "string" && /^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i.test(value)
      ? Number(value)
      : numberOf(value);
  return number !== null ? new Float(number) : (standard ?? new Float(0));
};

const round: Filter = (value, args) => {
  const [precision, method] = bind("round", args, ["precision", "method"]);
  const scale = 10 ** (optionalInteger("round", precision) ?? 0);
  const scaled = asNumber("round", value) * scale;
  if (method === "ceil") return new Float(Math.ceil(scaled) / scale);
  if (method === "floor") return new Float(Math.floor(scaled) / scale);
  // Python rounds halves to even.
  const near = Math.round(scaled);
  const even = Math.abs(scaled % 1) === 0.5 && near % 2 !== 0 ? near - 1 : near;
  return new Float(even / scale);
};

const LINE_BREAK = new RegExp(`\\r\\n|[${LINE_BREAKS}]`);

/** The prefix's depth of every line but the first (all with `first`); blank lines stay so unless `blank`. */
const indent: Filter = (value, args, { budget }) => {
  const [width, first, blank] = bind("indent", args, ["width", "first", "blank"]);
  const pad = typeof width === "string" ? width : " ".repeat(Math.min(optionalInteger("indent", width) ?? 4, 1000));
  const lines = `${str(value)}\n`.split(LINE_BREAK).slice(0, -1);
  budget.make(lines.length * pad.length + str(value).length);
  const keepsBlank = blank !== undefined && truthy(blank);
  const shown = lines.map((line, index) => (index > 0 && (keepsBlank || line !== "") ? pad + line : line)).join("\n");
  return first !== undefined && truthy(first) ? pad + shown : shown;
};

const truncate: Filter = (value, args) => {
  const [size, whole, end, leeway] = bind("truncate", args, ["length", "killwords", "end", "leeway"]);
  const tail = end === undefined ? "..." : asText("truncate", end);
  const most = optionalInteger("truncate", size) ?? 255;
  const all = characters(str(value));
  if (all.length <= most + (optionalInteger("truncate", leeway) ?? 5)) return all.join("");
  const kept = all.slice(0, Math.max(0, most - characters(tail).length)).join("");
  if (whole !== undefined && truthy(whole)) return kept + tail;
  const space = kept.lastIndexOf(" ");
  return (space < 0 ? kept : kept.slice(0, space)) + tail;
};

const TEXT_FILTERS: Readonly<Record<string, Filter>> = {
  upper: onText("upper", (text) => text.toUpperCase()),
  lower: onText("lower", (text) => text.toLowerCase()),
  capitalize: onText("capitalize", capitalized),
  // Jinja's rule: a word begins after white space, a dash or a bracket.
  title: onText("title", (text) =>
    text
      .split(new RegExp(`([-${SPACE}({\\[<]+)`))
      .map(capitalized)
      .join(""),
  ),
  trim: (value, args) => {
    const [chars] = bind("trim", args, ["chars"]);
    return strip(str(value), chars === undefined || chars === null ? null : asText("trim", chars), true, true);
  },
  string: onText("string", (text) => text),
  safe: onText("safe", (text) => text),
  escape: onText("escape", escapeHtml),
  e: onText("e", escapeHtml),
  forceescape: onText("forceescape", escapeHtml),
  striptags: onText("striptags", (text) =>
    text
      .replace(/<!--.*?-->/gs, "")
      .replace(/<[^>]*>/g, "")
      .split(new RegExp(`[${SPACE}]+`))
      .filter((word) => word !== "")
      .join(" "),
  ),
  replace: (value, args, { budget }) => {
    const [from, to, most] = bind("replace", args, ["old", "new", "count"], 2);
    return replaced(str(value), str(from!), str(to!), optionalInteger("replace", most) ?? -1, budget);
  },
  indent,
  truncate,
  center: (value, args, { budget }) => {
    const width = optionalInteger("center", bind("center", args, ["width"])[0]) ?? 80;
    const text = str(value);
    const missing = Math.max(0, width - characters(text).length);
    budget.make(missing + text.length);
    const left = Math.floor(missing / 2) + (missing & width & 1);
    return " ".repeat(left) + text + " ".repeat(missing - left);
  },
  wordcount: (value) => str(value).match(/[\p{L}\p{N}_]+/gu)?.length ?? 0,
  urlencode: (value) => {
    const encoded = (text: string) =>
      encodeURIComponent(text).replace(/[!'()*]/g, (one) => `%${one.charCodeAt(0).toString(16).toUpperCase()}`);
    if (typeof value === "string" || numberOf(value) !== null) return encoded(str(value)).replaceAll("%2F", "/");
    const pairs = value instanceof Dict ? [...value.entries] : iterate(value).map(iterate);
    return pairs.map(([key, item]) => `${encoded(str(key!))}=${encoded(str(item!))}`).join("&");
  },
  format: (value, { positional, named }, { budget }) => {
    if (positional.length > 0 && named.size > 0) fail("format takes values in order or by name, not both");
    return formatPercent(str(value), named.size > 0 ? new Dict(named) : new Tuple(positional), budget);
  },
};

const VALUE_FILTERS: Readonly<Record<string, Filter>> = {
  default: defaulted,
  d: defaulted,
  length,
  count: length,
  tojson,
  int: toInteger,
  float: toFloat,
  round,
  abs: (value) => {
    const size = Math.abs(asNumber("abs", value));
    return value instanceof Float ? new Float(size) : size;
  },
  attr: (value, args, context) => context.attribute(value, asText("attr", bind("attr", args, ["name"], 1)[0])),
  pprint: (value) => str(value),
  random: () => fail("random: a template must write the same every time"),
};

const FILTERS: Readonly<Record<string, Filter>> = { ...TEXT_FILTERS, ...VALUE_FILTERS, ...LIST_FILTERS };

export function filterNamed(name: string): Filter {
  return Object.hasOwn(FILTERS, name) ? FILTERS[name]! : fail(`no filter named "${name}"`);
}

export function isFilter(name: string): boolean {
  return Object.hasOwn(FILTERS, name);
}
