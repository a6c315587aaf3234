import { bind, optionalInteger } from "./arguments.ts";
import type { Budget } from "./budget.ts";
import { STRING_METHODS } from "./string-methods.ts";
import { type CallArguments, Callable, Dict, equal, fail, lookUp, Tuple, type Value } from "./values.ts";

/** Methods that Jinja's sandbox forbids: a template may not change its values. */
const CHANGING = {
  list: ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"],
  dict: ["clear", "pop", "popitem", "setdefault", "update"],
};

type Method<T> = (self: T, args: CallArguments, budget: Budget) => Value;

const LIST: Readonly<Record<string, Method<readonly Value[]>>> = {
  count: (self, args) => {
    const [item] = bind("count", args, ["value"], 1);
    return self.filter((own) => equal(own, item!)).length;
  },
  index: (self, args) => {
    const [item, from] = bind("index", args, ["value", "start"], 1);
    const at = self.findIndex((own, index) => index >= (optionalInteger("index", from) ?? 0) && equal(own, item!));
    return at >= 0 ? at : fail("the value is not in the list");
  },
  copy: (self) => [...self],
};

const DICT: Readonly<Record<string, Method<Dict>>> = {
  get: (self, args) => {
    const [key, standard] = bind("get", args, ["key", "default"], 1);
    const found = lookUp(self, key!);
    return found === undefined ? (standard ?? null) : found;
  },
  keys: (self) => [...self.entries.keys()],
  values: (self) => [...self.entries.values()],
  items: (self) => [...self.entries].map((pair) => new Tuple(pair)),
  copy: (self) => new Dict(self.entries),
};

/** A method of a text, list, tuple or dict, bound to it; undefined where there is none. */
export function methodOf(value: Value, name: string, budget: Budget): Callable | undefined {
  const bound = <T>(methods: Readonly<Record<string, Method<T>>>, self: T) =>
    Object.hasOwn(methods, name)
      ? new Callable(name, (args) => {
          budget.step();
          return methods[name]!(self, args, budget);
        })
      : undefined;
  const refused = (kind: keyof typeof CHANGING) =>
    CHANGING[kind].includes(name)
      ? new Callable(name, () => fail(`${name}() would change a ${kind}, which chat templates may not`))
      : undefined;
  if (typeof value === "string") return bound(STRING_METHODS, value);
  if (Array.isArray(value)) return bound(LIST, value) ?? refused("list");
  if (value instanceof Tuple) return name === "copy" ? undefined : bound(LIST, value.items);
  if (value instanceof Dict) return bound(DICT, value) ?? refused("dict");
  if (typeof value === "number" && name === "bit_length") {
    return new Callable(name, () => (value === 0 ? 0 : Math.abs(value).toString(2).length));
  }
  return undefined;
}
