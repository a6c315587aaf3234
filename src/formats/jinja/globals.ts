import { asInteger, asText, bind } from "./arguments.ts";
import { str } from "./text.ts";
import { Callable, Dict, fail, iterate, LoopLike, Namespace, Tuple, type Value } from "./values.ts";

/** Jinja's sandbox's own bound. */
const MAX_RANGE = 100_000;

/** Names that every template can use: Jinja's, and transformers' raise_exception. */
export function globals(): Map<string, Value> {
  const functions: [string, Callable["call"]][] = [
    ["range", range],
    ["dict", ({ positional, named }) => new Dict([...pairs(positional[0]), ...named])],
    ["namespace", namespace],
    ["cycler", ({ positional }) => new Cycler(positional)],
    ["joiner", (args) => joiner(str(bind("joiner", args, ["sep"])[0] ?? ", "))],
    ["raise_exception", (args) => fail(str(bind("raise_exception", args, ["message"], 1)[0]!))],
  ];
  return new Map(functions.map(([name, call]) => [name, new Callable(name, call)]));
}

function range(args: Parameters<Callable["call"]>[0]): Value {
  const [first, second, third] = bind("range", args, ["start", "stop", "step"], 1).map((value) =>
    value === undefined ? undefined : asInteger("range", value),
  );
  const [begin, end, step] = second === undefined ? [0, first!, 1] : [first!, second, third ?? 1];
  if (step === 0) fail("range() arg 3 must not be zero");
  const count = Math.max(0, Math.ceil((end - begin) / step));
  if (count > MAX_RANGE) fail(`range() of ${count} items: at most ${MAX_RANGE} are made`);
  return Array.from({ length: count }, (_, index) => begin + index * step);
}

function pairs(value: Value | undefined): (readonly [Value, Value])[] {
  if (value === undefined) return [];
  if (value instanceof Dict) return [...value.entries];
  return iterate(value).map((pair) => {
    const [key, item] = iterate(pair);
    return [key!, item!] as const;
  });
}

function namespace({ positional, named }: Parameters<Callable["call"]>[0]): Value {
  const made = new Namespace();
  for (const [key, item] of pairs(positional[0])) made.attributes.set(asText("namespace", key), item);
  for (const [key, item] of named) made.attributes.set(key, item);
  return made;
}

class Cycler extends LoopLike {
  readonly #items: readonly Value[];
  #at = 0;
  constructor(items: readonly Value[]) {
    super();
    this.#items = items.length > 0 ? items : fail("cycler() wants items");
  }
  attribute(name: string): Value | undefined {
    if (name === "current") return this.#items[this.#at]!;
    if (name === "next") {
      return new Callable("next", () => {
        const item = this.#items[this.#at]!;
        this.#at = (this.#at + 1) % this.#items.length;
        return item;
      });
    }
    if (name === "reset") {
      return new Callable("reset", () => {
        this.#at = 0;
        return null;
      });
    }
    return undefined;
  }
}

function joiner(separator: string): Callable {
  let used = false;
  return new Callable("joiner", () => {
    const shown = used ? separator : "";
    used = true;
    return shown;
  });
}

/** `loop` inside a `for`. */
export class Loop extends LoopLike {
  readonly #items: readonly Value[];
  readonly #depth: number;
  readonly #recurse: ((items: Value, depth: number) => string) | null;
  #index = 0;
  #changed: Value[] | null = null;

  constructor(items: readonly Value[], depth: number, recurse: ((items: Value, depth: number) => string) | null) {
    super();
    this.#items = items;
    this.#depth = depth;
    this.#recurse = recurse;
  }

  moveTo(index: number): void {
    this.#index = index;
  }

  /** `loop(items)` of a recursive loop. */
  call(items: Value): string {
    return this.#recurse === null ? fail("the loop is not recursive") : this.#recurse(items, this.#depth + 1);
  }

  attribute(name: string): Value | undefined {
    const [at, count] = [this.#index, this.#items.length];
    switch (name) {
      case "index":
        return at + 1;
      case "index0":
        return at;
      case "revindex":
        return count - at;
      case "revindex0":
        return count - at - 1;
      case "first":
        return at === 0;
      case "last":
        return at === count - 1;
      case "length":
        return count;
      case "depth":
        return this.#depth + 1;
      case "depth0":
        return this.#depth;
      case "previtem":
        return at > 0 ? this.#items[at - 1]! : undefined;
      case "nextitem":
        return at < count - 1 ? this.#items[at + 1]! : undefined;
      case "cycle":
        return new Callable("cycle", ({ positional }) =>
          positional.length === 0 ? fail("no items for cycling given") : positional[at % positional.length]!,
        );
      case "changed":
        return new Callable("changed", ({ positional }) => {
          const before = this.#changed;
          this.#changed = [...positional];
          return before === null || JSON.stringify(before) !== JSON.stringify(positional);
        });
      default:
        return undefined;
    }
  }
}

export function unpacked(value: Value, count: number): readonly Value[] {
  const items = value instanceof Tuple ? value.items : iterate(value);
  if (items.length !== count) fail(`expected ${count} values to unpack, got ${items.length}`);
  return items;
}
