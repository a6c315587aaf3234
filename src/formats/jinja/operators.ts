import type { Budget } from "./budget.ts";
import { formatPercent } from "./percent-format.ts";
import {
  Callable,
  characters,
  compare,
  Dict,
  equal,
  Float,
  fail,
  iterate,
  lookUp,
  numberOf,
  Tuple,
  textLength,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

export function notUndefined(value: Value): void {
  if (value instanceof Undefined) fail(`${value.what} is undefined`);
}

/** Python's + - * / // % **. */
export function arithmetic(operator: string, left: Value, right: Value, budget: Budget): Value {
  notUndefined(left);
  if (operator === "%" && typeof left === "string") return budget.text(formatPercent(left, right, budget));
  notUndefined(right);
  const [a, b] = [numberOf(left), numberOf(right)];
  if (a !== null && b !== null) return onNumbers(operator, a, b, left instanceof Float || right instanceof Float);
  if (operator === "+") {
    if (typeof left === "string" && typeof right === "string") {
      budget.make(left.length + right.length);
      return left + right;
    }
    if (Array.isArray(left) && Array.isArray(right)) {
      budget.make(left.length + right.length);
      return [...left, ...right];
    }
    if (left instanceof Tuple && right instanceof Tuple) return new Tuple([...left.items, ...right.items]);
  }
  if (operator === "*") {
    if (typeof left === "number" || typeof left === "boolean") return repeated(right, Number(left), budget);
    if (typeof right === "number" || typeof right === "boolean") return repeated(left, Number(right), budget);
  }
  return fail(`unsupported operand types for ${operator}: '${typeName(left)}' and '${typeName(right)}'`);
}

function repeated(value: Value, times: number, budget: Budget): Value {
  const count = Math.max(0, times);
  if (typeof value === "string") {
    budget.make(value.length * count);
    return value.repeat(count);
  }
  const items = Array.isArray(value) ? value : value instanceof Tuple ? value.items : null;
  if (items === null) return fail(`can't multiply ${typeName(value)} by int`);
  budget.make(items.length * count * 8);
  const many = Array.from({ length: items.length * count }, (_, index) => items[index % items.length]!);
  return Array.isArray(value) ? many : new Tuple(many);
}

function onNumbers(operator: string, a: number, b: number, float: boolean): Value {
  const of = (value: number): Value => {
    if (float) return new Float(value);
    return Number.isSafeInteger(value) ? value + 0 : fail("a whole number grew beyond 2^53");
  };
  if ((operator === "/" || operator === "//" || operator === "%") && b === 0) fail("division by zero");
  switch (operator) {
    case "+":
      return of(a + b);
    case "-":
      return of(a - b);
    case "*":
      return of(a * b);
    case "/":
      return new Float(a / b);
    case "//":
      return of(Math.floor(a / b));
    case "%": {
      const rest = a % b;
      return of(rest !== 0 && rest < 0 !== b < 0 ? rest + b : rest);
    }
    case "**":
      return float || b < 0 ? new Float(a ** b) : of(a ** b);
    default:
      return fail(`unknown operator ${operator}`);
  }
}

/** Python's comparisons, `in` among them. */
export function compares(operator: string, left: Value, right: Value): boolean {
  switch (operator) {
    case "==":
      return equal(left, right);
    case "!=":
      return !equal(left, right);
    case "in":
      return contains(right, left);
    case "not in":
      return !contains(right, left);
    default: {
      notUndefined(left);
      notUndefined(right);
      const order = compare(left, right);
      if (operator === "<") return order < 0;
      if (operator === "<=") return order <= 0;
      return operator === ">" ? order > 0 : order >= 0;
    }
  }
}

export function contains(container: Value, item: Value): boolean {
  if (typeof container === "string") {
    if (typeof item !== "string") {
      notUndefined(item);
      return fail(`'in <string>' requires text, not ${typeName(item)}`);
    }
    return container.includes(item);
  }
  if (container instanceof Dict) return lookUp(container, item) !== undefined;
  if (container instanceof Undefined) return false;
  return iterate(container).some((own) => equal(own, item));
}

/** `value[index]` of a text, list or tuple; undefined where it is out of range. */
export function elementAt(value: Value, index: Value): Value | undefined {
  const at = typeof index === "boolean" ? Number(index) : index;
  if (typeof at !== "number") return undefined;
  if (typeof value === "string") {
    const list = textLength(value) === value.length ? value : characters(value);
    return list[at < 0 ? at + list.length : at];
  }
  const list = Array.isArray(value) ? value : value instanceof Tuple ? value.items : null;
  return list?.[at < 0 ? at + list.length : at];
}

/** `value[begin:end:step]` under Python's rules. */
export function sliced(value: Value, bounds: readonly (number | null)[]): Value {
  notUndefined(value);
  if (!(typeof value === "string" || Array.isArray(value) || value instanceof Tuple)) {
    return fail(`'${typeName(value)}' object can't be sliced`);
  }
  const whole = typeof value === "string" ? characters(value) : Array.isArray(value) ? value : value.items;
  const step = bounds[2] ?? 1;
  if (step === 0) fail("slice step cannot be zero");
  const { length } = whole;
  const clamp = (bound: number | null | undefined, standard: number) => {
    if (bound === null || bound === undefined) return standard;
    const at = bound < 0 ? bound + length : bound;
    return step > 0 ? Math.min(Math.max(at, 0), length) : Math.min(Math.max(at, -1), length - 1);
  };
  const begin = clamp(bounds[0], step > 0 ? 0 : length - 1);
  const end = clamp(bounds[1], step > 0 ? length : -1);
  const taken: Value[] = [];
  for (let at = begin; step > 0 ? at < end : at > end; at += step) taken.push(whole[at]!);
  if (typeof value === "string") return taken.join("");
  return Array.isArray(value) ? taken : new Tuple(taken);
}

export function isCallable(value: Value): value is Callable {
  return value instanceof Callable;
}
