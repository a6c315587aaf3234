import { Dict, Float, Namespace, spending, Tuple, Undefined, type Value } from "./values.ts";

/** Python's str() of a value, which is what a template prints. */
export function str(value: Value): string {
  if (typeof value === "string") return value;
  if (value instanceof Undefined) return "";
  return repr(value);
}

/** Python's repr(). */
export function repr(value: Value): string {
  spending.step();
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return quote(value);
  if (value instanceof Float) return floatText(value.value);
  if (value instanceof Tuple) {
    const items = value.items.map(repr);
    return items.length === 1 ? `(${items[0]},)` : `(${items.join(", ")})`;
  }
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Dict)
    return `{${[...value.entries].map(([key, item]) => `${repr(key)}: ${repr(item)}`).join(", ")}}`;
  if (value instanceof Undefined) return "Undefined";
  if (value instanceof Namespace) return "<Namespace>";
  return "<object>";
}

/** Python's shortest text of a float: 1.0, 1e+16, 1e-05. */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return Object.is(value, -0) ? "-0.0" : "0.0";
  const [digits, power] = value.toExponential().split("e") as [string, string];
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  const plain = exponent < -6 ? value.toFixed(20) : String(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}

const ESCAPES: Readonly<Record<string, string>> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function quote(text: string): string {
  spending.step(text.length);
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const body = Array.from(text, (character) => {
    if (character === mark) return `\\${character}`;
    if (Object.hasOwn(ESCAPES, character)) return ESCAPES[character]!;
    return /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(character)
      ? escaped(character.codePointAt(0)!)
      : character;
  });
  return mark + body.join("") + mark;
}

function escaped(code: number): string {
  const hex = code.toString(16);
  if (code < 0x100) return `\\x${hex.padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
}

/** White space as Python's str.isspace has it: with U+0085 and U+001C … U+001F, without U+FEFF. */
export const SPACE = "\\t-\\r\\x1c-\\x1f \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

const isIn = (set: ReadonlySet<string> | null, character: string) =>
  set === null ? new RegExp(`^[${SPACE}]$`).test(character) : set.has(character);

/** str.strip and its like: `set` null takes off white space, else any of the text's characters. */
export function strip(text: string, chars: string | null, left: boolean, right: boolean): string {
  if (chars === null) {
    let taken = text;
    if (left) taken = taken.replace(LEADING, "");
    if (right) taken = withoutTrailing(taken, null);
    return taken;
  }
  const set = new Set(Array.from(chars));
  let taken = text;
  if (left) {
    let at = 0;
    for (const character of taken) {
      if (!set.has(character)) break;
      at += character.length;
    }
    taken = taken.slice(at);
  }
  return right ? withoutTrailing(taken, set) : taken;
}

const LEADING = new RegExp(`^[${SPACE}]+`);

/** Walks from the end: a regular expression anchored there takes quadratic time. */
function withoutTrailing(text: string, set: ReadonlySet<string> | null): string {
  let end = text.length;
  while (end > 0) {
    const pair = end > 1 && /[\ud800-\udbff]/.test(text[end - 2]!) && /[\udc00-\udfff]/.test(text[end - 1]!);
    const character = text.slice(end - (pair ? 2 : 1), end);
    if (!isIn(set, character)) break;
    end -= character.length;
  }
  return text.slice(0, end);
}

/** Where str.splitlines cuts. */
export const LINE_BREAKS = "\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029";
