import { asInteger, asText, bind } from "./arguments.ts";
import { compares, contains } from "./operators.ts";
import { type CallArguments, Callable, Dict, Float, fail, numberOf, Tuple, Undefined, type Value } from "./values.ts";

export type Test = (value: Value, args: CallArguments, names: TestNames) => boolean;

export interface TestNames {
  readonly filters: (name: string) => boolean;
  readonly tests: (name: string) => boolean;
}

const plain =
  (name: string, test: (value: Value) => boolean): Test =>
  (value, args) => {
    bind(name, args, []);
    return test(value);
  };
const binary =
  (name: string, test: (value: Value, other: Value) => boolean): Test =>
  (value, args) =>
    test(value, bind(name, args, ["other"], 1)[0]!);
const comparison = (operator: string) => binary(operator, (value, other) => compares(operator, value, other));
const isSequence = (value: Value) =>
  typeof value === "string" || Array.isArray(value) || value instanceof Tuple || value instanceof Dict;

/** Jinja's tests, for `value is name`. */
export const TESTS: Readonly<Record<string, Test>> = {
  boolean: plain("boolean", (value) => typeof value === "boolean"),
  callable: plain("callable", (value) => value instanceof Callable),
  defined: plain("defined", (value) => !(value instanceof Undefined)),
  undefined: plain("undefined", (value) => value instanceof Undefined),
  none: plain("none", (value) => value === null),
  true: plain("true", (value) => value === true),
  false: plain("false", (value) => value === false),
  string: plain("string", (value) => typeof value === "string"),
  number: plain("number", (value) => numberOf(value) !== null),
  integer: plain("integer", (value) => typeof value === "number"),
  float: plain("float", (value) => value instanceof Float),
  mapping: plain("mapping", (value) => value instanceof Dict),
  sequence: plain("sequence", (value) => isSequence(value) || value instanceof Undefined),
  iterable: plain("iterable", (value) => isSequence(value) || value instanceof Undefined),
  escaped: plain("escaped", () => false),
  lower: plain(
    "lower",
    (value) => typeof value === "string" && value !== value.toUpperCase() && value === value.toLowerCase(),
  ),
  upper: plain(
    "upper",
    (value) => typeof value === "string" && value !== value.toLowerCase() && value === value.toUpperCase(),
  ),
  odd: plain("odd", (value) => Math.abs(asInteger("odd", value) % 2) === 1),
  even: plain("even", (value) => asInteger("even", value) % 2 === 0),
  divisibleby: binary(
    "divisibleby",
    (value, other) => asInteger("divisibleby", value) % asInteger("divisibleby", other) === 0,
  ),
  sameas: binary("sameas", (value, other) => value === other),
  in: binary("in", (value, other) => contains(other, value)),
  eq: comparison("=="),
  equalto: comparison("=="),
  "==": comparison("=="),
  ne: comparison("!="),
  "!=": comparison("!="),
  lt: comparison("<"),
  lessthan: comparison("<"),
  "<": comparison("<"),
  le: comparison("<="),
  "<=": comparison("<="),
  gt: comparison(">"),
  greaterthan: comparison(">"),
  ">": comparison(">"),
  ge: comparison(">="),
  ">=": comparison(">="),
  filter: (value, args, { filters }) => {
    bind("filter", args, []);
    return filters(asText("filter", value));
  },
  test: (value, args, { tests }) => {
    bind("test", args, []);
    return tests(asText("test", value));
  },
};

export function testNamed(name: string): Test {
  return Object.hasOwn(TESTS, name) ? TESTS[name]! : fail(`no test named "${name}"`);
}
