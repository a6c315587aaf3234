import { type CallArguments, Float, fail, numberOf, typeName, Undefined, type Value } from "./values.ts";

/** The arguments of a call by parameter name; `undefined` for one that is not given. */
export function bind(
  what: string,
  { positional, named }: CallArguments,
  names: readonly string[],
  required = 0,
): (Value | undefined)[] {
  if (positional.length > names.length) {
    fail(`${what}() takes at most ${names.length} arguments, got ${positional.length}`);
  }
  for (const name of named.keys()) {
    const index = names.indexOf(name);
    if (index < 0) fail(`${what}() got an unexpected argument "${name}"`);
    if (index < positional.length) fail(`${what}() got "${name}" twice`);
  }
  const values = names.map((name, index) => (index < positional.length ? positional[index] : named.get(name)));
  if (values.slice(0, required).some((value) => value === undefined)) {
    fail(`${what}() lacks the argument "${names[values.indexOf(undefined)]}"`);
  }
  return values;
}

export function asText(what: string, value: Value | undefined): string {
  if (typeof value === "string") return value;
  return fail(`${what} expects text, got ${value === undefined ? "nothing" : typeName(value)}`);
}

export function asNumber(what: string, value: Value | undefined): number {
  const number = value === undefined ? null : numberOf(value);
  return number ?? fail(`${what} expects a number, got ${value === undefined ? "nothing" : typeName(value)}`);
}

export function asInteger(what: string, value: Value | undefined): number {
  if (value instanceof Float || value instanceof Undefined) return fail(`${what} expects a whole number`);
  return asNumber(what, value);
}

/** A whole number if it is given and not None. */
export function optionalInteger(what: string, value: Value | undefined): number | null {
  return value === undefined || value === null ? null : asInteger(what, value);
}
