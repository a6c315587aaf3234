import type { Budget } from "./budget.ts";
import { floatText, repr, str } from "./text.ts";
import { characters, Dict, Float, fail, lookUp, numberOf, Tuple, typeName, type Value } from "./values.ts";

const DIRECTIVE = /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d*)(?:\.(\*|\d*))?[hlL]?([\s\S])/g;

/** Python's `text % values`. */
export function formatPercent(text: string, values: Value, budget: Budget): string {
  const list = values instanceof Tuple ? values.items : [values];
  let taken = 0;
  const take = (): Value => (taken < list.length ? list[taken++]! : fail("not enough arguments for format string"));
  let named = false;
  const formatted = text.replace(DIRECTIVE, (_, key, flags: string, width: string, precision, type: string) => {
    if (type === "%") return "%";
    const size = (written: string) => (written === "*" ? Number(numberOf(take()) ?? 0) : Number(written));
    const least = width === "" ? 0 : size(width);
    const digits = precision === undefined ? null : size(precision as string);
    budget.make(Math.abs(least) + (digits ?? 0));
    let value: Value;
    if (key === undefined) value = take();
    else {
      named = true;
      if (!(values instanceof Dict)) fail("format requires a mapping");
      value = lookUp(values as Dict, key as string) ?? fail(`format: no key "${key}"`);
    }
    return padded(directive(type, flags, digits, value), flags, least, "diouxXeEfFgG".includes(type));
  });
  if (!named && taken < list.length && !(values instanceof Dict) && !Array.isArray(values)) {
    fail("not all arguments converted during string formatting");
  }
  return formatted;
}

function directive(type: string, flags: string, digits: number | null, value: Value): string {
  const cut = (shown: string) => (digits === null ? shown : characters(shown).slice(0, digits).join(""));
  switch (type) {
    case "s":
      return cut(str(value));
    case "r":
    case "a":
      return cut(repr(value));
    case "c":
      return typeof value === "string" ? value : String.fromCodePoint(numberOf(value) ?? 0);
  }
  const number = numberOf(value);
  if (number === null) return fail(`%${type} format: a number is required, not ${typeName(value)}`);
  const sign = number < 0 || Object.is(number, -0) ? "-" : flags.includes("+") ? "+" : flags.includes(" ") ? " " : "";
  const size = Math.abs(number);
  const whole = (radix: number) =>
    Math.trunc(size)
      .toString(radix)
      .padStart(digits ?? 0, "0");
  switch (type) {
    case "d":
    case "i":
    case "u":
      return sign + whole(10);
    case "x":
      return sign + (flags.includes("#") ? "0x" : "") + whole(16);
    case "X":
      return sign + (flags.includes("#") ? "0X" : "") + whole(16).toUpperCase();
    case "o":
      return sign + (flags.includes("#") ? "0o" : "") + whole(8);
    case "e":
    case "E":
    case "f":
    case "F":
    case "g":
    case "G":
      return sign + formatFloat(size, type, digits ?? 6);
    default:
      return fail(`unsupported format character '${type}'`);
  }
}

/** A float that is not negative in one of Python's e, f and g forms. */
export function formatFloat(size: number, type: string, digits: number): string {
  if (digits > 100) fail("over 100 digits behind the point");
  if (!Number.isFinite(size)) return Number.isNaN(size) ? "nan" : "inf";
  const exponential = (shown: string) => shown.replace(/e([+-])(\d)$/, "e$10$2");
  const lower = type.toLowerCase();
  let shown: string;
  if (lower === "f") shown = size.toFixed(digits);
  else if (lower === "e") shown = exponential(size.toExponential(digits));
  else {
    const precision = Math.max(1, digits);
    const exponent = size === 0 ? 0 : Number(size.toExponential(precision - 1).split("e")[1]);
    const plain = exponent >= -4 && exponent < precision;
    shown = plain ? size.toFixed(precision - 1 - exponent) : size.toExponential(precision - 1);
    const [digitsPart, power] = shown.split("e") as [string, string | undefined];
    const trimmed = digitsPart.includes(".") ? digitsPart.replace(/\.?0+$/, "") : digitsPart;
    shown = power === undefined ? trimmed : exponential(`${trimmed}e${power}`);
  }
  return type === lower ? shown : shown.toUpperCase();
}

function padded(text: string, flags: string, width: number, number: boolean): string {
  if (flags.includes("-")) return text.padEnd(width);
  if (number && flags.includes("0")) {
    const sign = /^[-+ ]?(0[xX])?/.exec(text)![0];
    return sign + text.slice(sign.length).padStart(width - sign.length, "0");
  }
  return text.padStart(width);
}

/** A value in str.format's mini-language: fill, alignment, sign, width, grouping, precision, type. */
export function formatSpec(value: Value, spec: string, budget: Budget): string {
  if (spec === "") return str(value);
  const parts = /^(?:(.)?([<>=^]))?([-+ ])?(#)?(0)?(\d+)?([,_])?(?:\.(\d+))?([bcdeEfFgGnosxX%])?$/u.exec(spec);
  if (parts === null) return fail(`invalid format specifier "${spec}"`);
  const [, fill, align, sign, alternate, zero, width, group, precision, type] = parts;
  const least = Number(width ?? 0);
  const digits = precision === undefined ? null : Number(precision);
  budget.make(least + (digits ?? 0));
  const number = typeof value === "string" ? null : numberOf(value);
  let shown: string;
  let prefix = "";
  if (number === null || type === "s") {
    shown = characters(str(value))
      .slice(0, digits ?? undefined)
      .join("");
  } else {
    prefix = number < 0 ? "-" : sign === "+" || sign === " " ? sign : "";
    shown = numberText(value, Math.abs(number), type, digits, alternate !== undefined);
    if (group !== undefined) shown = shown.replace(/^\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, group));
  }
  const missing = Math.max(0, least - characters(prefix + shown).length);
  const filler = (fill ?? (zero === undefined ? " " : "0")).repeat(missing);
  switch (align ?? (zero !== undefined && number !== null ? "=" : number === null ? "<" : ">")) {
    case "<":
      return prefix + shown + filler;
    case "=":
      return prefix + filler + shown;
    case "^": {
      const left = Math.floor(missing / 2) * (fill?.length ?? 1);
      return filler.slice(0, left) + prefix + shown + filler.slice(left);
    }
    default:
      return filler + prefix + shown;
  }
}

function numberText(value: Value, size: number, type: string | undefined, digits: number | null, alternate: boolean) {
  switch (type) {
    case "b":
      return (alternate ? "0b" : "") + size.toString(2);
    case "o":
      return (alternate ? "0o" : "") + size.toString(8);
    case "x":
      return (alternate ? "0x" : "") + size.toString(16);
    case "X":
      return (alternate ? "0X" : "") + size.toString(16).toUpperCase();
    case "c":
      return String.fromCodePoint(size);
    case "%":
      return `${(size * 100).toFixed(digits ?? 6)}%`;
    case "d":
    case "n":
      return String(size);
    case undefined:
      if (value instanceof Float) return digits === null ? floatText(size) : formatFloat(size, "g", digits);
      return String(size);
    default:
      return formatFloat(size, type, digits ?? 6);
  }
}
