/**
 * Python's values as a template sees them. int: a JavaScript integer; float: Float; str: a string; list: an array; tuple:
 * Tuple; dict: Dict; None: null; a missing name: Undefined.
 */
export type Value =
  | null
  | boolean
  | number
  | string
  | Float
  | Tuple
  | Value[]
  | Dict
  | Undefined
  | Callable
  | Namespace
  | LoopLike;

export class Float {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}

export class Tuple {
  readonly items: readonly Value[];
  constructor(items: readonly Value[]) {
    this.items = items;
  }
}

export class Dict {
  readonly entries: Map<Value, Value>;
  constructor(entries: Iterable<readonly [Value, Value]> = []) {
    this.entries = new Map(entries);
  }
}

/** A missing name, key or attribute: prints as nothing, is false, has no items; any other use is an error. */
export class Undefined {
  readonly what: string;
  constructor(what: string) {
    this.what = what;
  }
}

export interface CallArguments {
  readonly positional: readonly Value[];
  readonly named: ReadonlyMap<string, Value>;
}

export class Callable {
  readonly name: string;
  readonly call: (args: CallArguments) => Value;
  constructor(name: string, call: (args: CallArguments) => Value) {
    this.name = name;
    this.call = call;
  }
}

/** What `namespace()` makes: attributes that `set` may write. */
export class Namespace {
  readonly attributes = new Map<string, Value>();
}

/** Attributes that are computed on access: `loop`, a cycler, a joiner. */
export abstract class LoopLike {
  abstract attribute(name: string): Value | undefined;
}

/** An error of the template's. The caller turns it into a coded one. */
export class TemplateError extends Error {}

export function fail(message: string): never {
  throw new TemplateError(message);
}

/**
 * Charges one step to the current rendering, for walks through values that are not part of the template's tree. A list that holds another
 * one twice, which holds a third one twice, and so on, is small but takes for ever to walk.
 */
export const spending: { step: (count?: number) => void } = { step: () => {} };

/** Python's name of a value's type, for messages. */
export function typeName(value: Value): string {
  if (value === null) return "None";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "number") return "int";
  if (typeof value === "string") return "str";
  if (value instanceof Float) return "float";
  if (value instanceof Tuple) return "tuple";
  if (value instanceof Dict) return "dict";
  if (Array.isArray(value)) return "list";
  if (value instanceof Undefined) return "undefined";
  return "object";
}

/** JSON-like values of the caller as a template's own. Numbers that are not whole become floats. */
export function fromJson(value: unknown): Value {
  if (value === undefined || value === null) return null;
  if (typeof value === "boolean" || typeof value === "string") return value;
  if (typeof value === "number") return Number.isSafeInteger(value) ? value : new Float(value);
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(fromJson);
  if (typeof value === "object") {
    return new Dict(Object.entries(value).map(([key, item]) => [key, fromJson(item)] as const));
  }
  return fail(`a ${typeof value} can't be handed to a template`);
}

export function truthy(value: Value): boolean {
  if (value === null || value instanceof Undefined) return false;
  if (typeof value === "boolean") return value;
  if (typeof value === "number") return value !== 0;
  if (typeof value === "string") return value !== "";
  if (value instanceof Float) return value.value !== 0;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Tuple) return value.items.length > 0;
  if (value instanceof Dict) return value.entries.size > 0;
  return true;
}

/** The number of an int, bool or float; null for anything else. */
export function numberOf(value: Value): number | null {
  if (typeof value === "number") return value;
  if (typeof value === "boolean") return value ? 1 : 0;
  return value instanceof Float ? value.value : null;
}

/** Python's `==`. */
export function equal(left: Value, right: Value): boolean {
  spending.step();
  if (left === right) return true;
  const [a, b] = [numberOf(left), numberOf(right)];
  if (a !== null && b !== null) return a === b;
  if (Array.isArray(left) && Array.isArray(right)) return sameItems(left, right);
  if (left instanceof Tuple && right instanceof Tuple) return sameItems(left.items, right.items);
  if (left instanceof Dict && right instanceof Dict) {
    if (left.entries.size !== right.entries.size) return false;
    for (const [key, item] of left.entries) {
      const other = lookUp(right, key);
      if (other === undefined || !equal(item, other)) return false;
    }
    return true;
  }
  return left instanceof Undefined && right instanceof Undefined;
}

function sameItems(left: readonly Value[], right: readonly Value[]): boolean {
  return left.length === right.length && left.every((item, index) => equal(item, right[index]!));
}

/** A dict's value; undefined where the key is not there. 1, 1.0 and True are one key, tuples go by their items. */
export function lookUp(dict: Dict, key: Value): Value | undefined {
  if (dict.entries.has(key)) return dict.entries.get(key)!;
  if (typeof key === "string") return undefined;
  if (Array.isArray(key) || key instanceof Dict) fail(`unhashable type: '${typeName(key)}'`);
  for (const [own, value] of dict.entries) if (typeof own !== "string" && equal(own, key)) return value;
  return undefined;
}

/** Python's order of numbers, texts and lists; an error for others. */
export function compare(left: Value, right: Value): number {
  spending.step();
  const [a, b] = [numberOf(left), numberOf(right)];
  if (a !== null && b !== null) return a < b ? -1 : a > b ? 1 : a === b ? 0 : Number.NaN;
  if (typeof left === "string" && typeof right === "string") return compareText(left, right);
  const [items, others] = [sequenceOf(left), sequenceOf(right)];
  if (items !== null && others !== null && Array.isArray(left) === Array.isArray(right)) {
    for (let i = 0; i < Math.min(items.length, others.length); i++) {
      if (!equal(items[i]!, others[i]!)) return compare(items[i]!, others[i]!);
    }
    return items.length - others.length;
  }
  return fail(`'<' not supported between instances of '${typeName(left)}' and '${typeName(right)}'`);
}

const sequenceOf = (value: Value) => (Array.isArray(value) ? value : value instanceof Tuple ? value.items : null);

/** By code points, as Python orders texts: UTF-16 puts emoji before some other characters. */
function compareText(left: string, right: string): number {
  const [a, b] = [characters(left), characters(right)];
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    if (a[i] !== b[i]) return a[i]!.codePointAt(0)! - b[i]!.codePointAt(0)!;
  }
  return a.length - b.length;
}

/** A text's characters as Python counts them: code points, a lone surrogate for itself. */
export function characters(text: string): readonly string[] {
  return Array.from(text);
}

const SURROGATE = /[\ud800-\udfff]/;

/** len() of a text. */
export function textLength(text: string): number {
  return SURROGATE.test(text) ? characters(text).length : text.length;
}

/** What a `for` goes over: a list's items, a dict's keys, a text's characters. */
export function iterate(value: Value): readonly Value[] {
  if (Array.isArray(value)) return value;
  if (value instanceof Tuple) return value.items;
  if (value instanceof Dict) return [...value.entries.keys()];
  if (typeof value === "string") return characters(value);
  if (value instanceof Undefined) return [];
  return fail(`'${typeName(value)}' object is not iterable`);
}

/** A dict's value or a list's element by its name in str.format. */
export function elementOrFail(value: Value, name: string): Value {
  if (value instanceof Dict) return lookUp(value, name) ?? lookUp(value, Number(name)) ?? fail(`no key "${name}"`);
  const list = sequenceOf(value);
  return list?.[Number(name)] ?? fail(`no element "${name}"`);
}
