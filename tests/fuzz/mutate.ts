import type { Random } from "./random.ts";

/** Numbers at which sizes, counts and offsets break. */
export const EXTREME_NUMBERS: readonly number[] = [
  0,
  -1,
  1,
  0.5,
  -0.0,
  255,
  256,
  65535,
  65536,
  2 ** 31 - 1,
  2 ** 31,
  2 ** 32 - 1,
  2 ** 32,
  2 ** 53 - 1,
  2 ** 53,
  1e18,
  -(2 ** 31),
  -(2 ** 53),
  1e300,
  -1e300,
  1e-300,
];

/** Patterns whose matching takes exponential or quadratic time where an engine tries every way. */
export const REGEX_BOMBS: readonly string[] = [
  "(a+)+$",
  "(?:a|a)*$",
  "(\\w+\\s?)*!",
  "^(([a-z])+.)+[A-Z]([a-z])+$",
  "(.*)*x",
  "(.*a){25}",
  "(?:.*){1,99}z",
  "((a{0,100}){0,100}){0,100}b",
  "([",
  "(?<=a+)b",
  "\\p{L}+\\p{L}+\\p{L}+\\p{L}+$",
];

export const STRANGE_TEXTS: readonly string[] = [
  "",
  " ",
  "\u0000",
  "\ud800",
  "\u202e\ufeff",
  "__proto__",
  "constructor",
  "../../etc/passwd",
  "/dev/zero",
  "NaN",
  "null",
  "-1",
  "1e999",
  "%s%n{{7*7}}{% for %}",
  "\"'\n,\t;",
  "𝔘𝔫𝔦 é é",
];

/** Stands in a value where its text gets brackets inside each other, or a number that JSON.stringify would not write. */
const DEEP = "\u0001deep\u0001";
const HUGE = "\u0001huge\u0001";

function strangeValue(random: Random): unknown {
  switch (random.below(10)) {
    case 0:
      return null;
    case 1:
      return random.chance(0.5);
    case 2:
    case 3:
      return random.pick(EXTREME_NUMBERS);
    case 4:
      return random.pick(STRANGE_TEXTS);
    case 5:
      return random.pick(REGEX_BOMBS);
    case 6:
      return random.pick(["a", "ab ", "(", "é", "0"]).repeat(random.pick([10, 1000, 100_000]));
    case 7:
      return random.pick<unknown>([[], {}, [[]], [null], { a: 1 }, ["", 1, null]]);
    case 8:
      return random.chance(0.5) ? DEEP : HUGE;
    default:
      return Array.from({ length: random.pick([3, 300, 20_000]) }, (_, index) => index);
  }
}

type Holder = Record<string, unknown> | unknown[];

/** Every place of a value that can be changed, as its holder and key. */
function places(value: unknown, found: [Holder, string | number][] = []): [Holder, string | number][] {
  if (typeof value !== "object" || value === null) return found;
  for (const key of Array.isArray(value) ? value.keys() : Object.keys(value)) {
    found.push([value as Holder, key]);
    if (found.length < 5_000) places((value as Record<string | number, unknown>)[key], found);
  }
  return found;
}

/** A copy of a JSON value with `changes` of its places changed: other types, extreme numbers, keys gone, twice or renamed. */
export function mutateValue(random: Random, value: unknown, changes = random.between(1, 3)): unknown {
  const root: { value: unknown } = { value: structuredClone(value) };
  for (let change = 0; change < changes; change++) {
    const all = places(root);
    if (all.length === 0) break;
    // Deep places are many: half of the time one near the top.
    const [holder, key] = random.pick(random.chance(0.5) ? all.slice(0, 12) : all);
    const held = holder as Record<string | number, unknown>;
    switch (random.below(6)) {
      case 0:
        if (Array.isArray(holder)) holder.splice(Number(key), 1);
        else delete held[key];
        break;
      case 1:
        if (Array.isArray(holder)) holder.push(structuredClone(held[key]));
        else held[random.pick(STRANGE_TEXTS)] = held[key];
        break;
      case 2:
        held[key] = typeof held[key] === "number" ? random.pick(EXTREME_NUMBERS) : strangeValue(random);
        break;
      case 3:
        held[key] = structuredClone(random.pick(all)[0]);
        break;
      case 4:
        held[key] = [held[key]];
        break;
      default:
        held[key] = strangeValue(random);
    }
  }
  return root.value;
}

/** The value's text; sometimes with keys that stand twice, or with bytes changed. */
export function mutatedJson(random: Random, value: unknown): Buffer {
  const changed = random.chance(0.85) ? mutateValue(random, value) : value;
  const depth = random.pick([20, 1000, 50_000, 400_000]);
  const [open, close] = random.pick([
    ["[", "]"],
    ['{"a":', "}"],
  ]);
  let text = JSON.stringify(changed) ?? "null";
  text = text
    .replaceAll(JSON.stringify(DEEP), `${open.repeat(depth)}1${close.repeat(depth)}`)
    .replaceAll(JSON.stringify(HUGE), random.pick(["1e999", "-1e999", "123456789012345678901234567890", "1E400"]));
  if (random.chance(0.1)) text = text.replace(/"[^"]{1,40}":[^,{}[\]]*/, (pair) => `${pair},${pair}`);
  const bytes = Buffer.from(text, "utf8");
  return random.chance(0.2) ? mutateBytes(random, bytes) : bytes;
}

/** Bits flipped, parts cut, moved, doubled, zeroed, and numbers in them set to extreme ones. */
export function mutateBytes(random: Random, source: Buffer, changes = random.between(1, 4)): Buffer {
  let bytes = Buffer.from(source);
  for (let change = 0; change < changes; change++) {
    if (bytes.length === 0) return random.bytes(random.below(64));
    const at = random.chance(0.3) ? random.below(Math.min(64, bytes.length)) : random.below(bytes.length);
    const length = Math.min(bytes.length - at, 1 + random.below(random.pick([4, 64, 4096])));
    switch (random.below(9)) {
      case 0:
      case 1:
        bytes[at] = bytes[at]! ^ (1 << random.below(8));
        break;
      case 2:
        bytes = bytes.subarray(0, at);
        break;
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
        break;
      case 4:
        bytes = Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)]);
        break;
      case 5:
        bytes.fill(random.pick([0, 0xff, 0x20, 0x22, 0x5b]), at, at + length);
        break;
      case 6:
        random.bytes(Math.min(length, 64)).copy(bytes, at);
        break;
      case 7: {
        const size = random.pick([1, 2, 4, 8]);
        if (at + size > bytes.length) break;
        const value = random.pick([
          0n,
          1n,
          0x7fn,
          0x80n,
          0xffn,
          0x7fffffffn,
          0x80000000n,
          0xffffffffn,
          2n ** 63n,
          2n ** 64n - 1n,
        ]);
        for (let byte = 0; byte < size; byte++) bytes[at + byte] = Number((value >> BigInt(8 * byte)) & 0xffn);
        break;
      }
      default:
        bytes = Buffer.concat([bytes.subarray(0, at), random.bytes(1 + random.below(16)), bytes.subarray(at)]);
    }
  }
  return bytes;
}

/** Text with lines and characters changed, for formats that are no JSON. */
export function mutateText(random: Random, source: string): Buffer {
  let text = source;
  for (let change = random.between(1, 4); change > 0; change--) {
    const at = random.below(text.length + 1);
    const length = random.below(random.pick([3, 30]));
    const inserted = random.pick([
      () => random.pick(STRANGE_TEXTS),
      () => random.pick(REGEX_BOMBS),
      () => String(random.pick(EXTREME_NUMBERS)),
      () =>
        random
          .pick(["[", "{", "(", '"', "'", "- ", "&a [*a", "{% if x %}", "\n", ","])
          .repeat(random.pick([1, 3, 500, 30_000])),
      () => text.slice(at, at + 200),
      () => "",
    ])();
    text = text.slice(0, at) + inserted + text.slice(at + length);
  }
  const bytes = Buffer.from(text, "utf8");
  return random.chance(0.15) ? mutateBytes(random, bytes) : bytes;
}
