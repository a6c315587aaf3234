import { asInteger, asText, bind, optionalInteger } from "./arguments.ts";
import type { Budget } from "./budget.ts";
import { formatSpec } from "./percent-format.ts";
import { LINE_BREAKS, repr, SPACE, str, strip } from "./text.ts";
import {
  type CallArguments,
  characters,
  Dict,
  elementOrFail,
  fail,
  iterate,
  Tuple,
  textLength,
  typeName,
  type Value,
} from "./values.ts";

type Method = (self: string, args: CallArguments, budget: Budget) => Value;

const stripper =
  (name: string, left: boolean, right: boolean): Method =>
  (self, args) => {
    const [chars] = bind(name, args, ["chars"]);
    return strip(self, chars === undefined || chars === null ? null : asText(name, chars), left, right);
  };

/** A part of a text by Python's start and end, in code points; with how many characters stand before it. */
function part(self: string, start: Value | undefined, end: Value | undefined): { text: string; before: number } | null {
  const [from, to] = [optionalInteger("start", start), optionalInteger("end", end)];
  if (from === null && to === null) return { text: self, before: 0 };
  const all = characters(self);
  const at = (bound: number | null, standard: number) =>
    bound === null ? standard : Math.min(Math.max(bound < 0 ? bound + all.length : bound, 0), all.length);
  const [begin, finish] = [at(from, 0), at(to, all.length)];
  if ((from ?? 0) > all.length || begin > finish) return null;
  return { text: all.slice(begin, finish).join(""), before: begin };
}

const finder =
  (name: string, last: boolean, missing: (text: string) => Value): Method =>
  (self, args) => {
    const [sub, start, end] = bind(name, args, ["sub", "start", "end"], 1);
    const piece = part(self, start, end);
    const sought = asText(name, sub);
    const at = piece === null ? -1 : last ? piece.text.lastIndexOf(sought) : piece.text.indexOf(sought);
    return at < 0 ? missing(sought) : piece!.before + textLength(piece!.text.slice(0, at));
  };

const edge =
  (name: string, test: (text: string, affix: string) => boolean): Method =>
  (self, args) => {
    const [affix, start, end] = bind(name, args, ["affix", "start", "end"], 1);
    const piece = part(self, start, end);
    const affixes = affix instanceof Tuple ? affix.items : [affix!];
    return affixes.some((own) => {
      const wanted = asText(name, own);
      return piece !== null && test(piece.text, wanted);
    });
  };

/** str.split and str.rsplit: by white space where no separator is given. */
const splitter =
  (name: string, fromRight: boolean): Method =>
  (self, args, budget) => {
    const [separator, most] = bind(name, args, ["sep", "maxsplit"]);
    budget.make(self.length);
    const limit = optionalInteger(name, most) ?? -1;
    if (separator === undefined || separator === null) return splitSpaces(self, limit, fromRight);
    const mark = asText(name, separator);
    if (mark === "") return fail("empty separator");
    const pieces = self.split(mark);
    if (limit < 0 || pieces.length <= limit + 1) return pieces;
    if (fromRight) {
      const kept = pieces.length - limit;
      return [pieces.slice(0, kept).join(mark), ...pieces.slice(kept)];
    }
    return [...pieces.slice(0, limit), pieces.slice(limit).join(mark)];
  };

function splitSpaces(self: string, limit: number, fromRight: boolean): string[] {
  const words = [...self.matchAll(new RegExp(`[^${SPACE}]+`, "g"))];
  if (limit < 0 || words.length <= limit) return words.map(([word]) => word);
  if (fromRight) {
    const kept = words.length - limit;
    const rest = words[kept - 1]!;
    const head = self.slice(0, rest.index + rest[0].length);
    return [strip(head, null, true, false), ...words.slice(kept).map(([word]) => word)];
  }
  return [...words.slice(0, limit).map(([word]) => word), strip(self.slice(words[limit]!.index), null, false, true)];
}

const partition =
  (name: string, last: boolean): Method =>
  (self, args) => {
    const mark = asText(name, bind(name, args, ["sep"], 1)[0]);
    if (mark === "") return fail("empty separator");
    const at = last ? self.lastIndexOf(mark) : self.indexOf(mark);
    if (at < 0) return new Tuple(last ? ["", "", self] : [self, "", ""]);
    return new Tuple([self.slice(0, at), mark, self.slice(at + mark.length)]);
  };

/** Whether a text has characters and all of them match. */
const every =
  (pattern: RegExp): Method =>
  (self) =>
    self !== "" && characters(self).every((character) => pattern.test(character));

const CASED = /[\p{Lu}\p{Ll}\p{Lt}]/u;
const cased =
  (wanted: RegExp): Method =>
  (self) => {
    const letters = characters(self).filter((character) => CASED.test(character));
    return letters.length > 0 && letters.every((character) => wanted.test(character));
  };

const aligned =
  (name: string, place: (missing: number, width: number) => number): Method =>
  (self, args, budget) => {
    const [width, fill] = bind(name, args, ["width", "fillchar"], 1);
    const filler = fill === undefined ? " " : asText(name, fill);
    if (textLength(filler) !== 1) fail(`${name}() wants one character to fill with`);
    const wanted = asInteger(name, width);
    const missing = Math.max(0, wanted - textLength(self));
    budget.make(missing + self.length);
    const left = place(missing, wanted);
    return filler.repeat(left) + self + filler.repeat(missing - left);
  };

/** Python's title(): a letter behind anything but a letter is large. */
export function titled(text: string): string {
  let before = false;
  return Array.from(text, (character) => {
    const shown = before ? character.toLowerCase() : character.toUpperCase();
    before = CASED.test(character);
    return shown;
  }).join("");
}

export function capitalized(text: string): string {
  const [first, ...rest] = characters(text);
  return first === undefined ? "" : first.toUpperCase() + rest.join("").toLowerCase();
}

/** str.replace, with the size of what comes out checked first. */
export function replaced(text: string, from: string, to: string, most: number, budget: Budget): string {
  budget.make(text.length);
  const places = from === "" ? textLength(text) + 1 : text.split(from).length - 1;
  const count = most < 0 ? places : Math.min(most, places);
  budget.make(text.length + count * Math.max(0, to.length - from.length));
  if (count === 0) return text;
  if (from === "") {
    const all = characters(text);
    return all.map((one, index) => (index < count ? to + one : one)).join("") + (count > all.length ? to : "");
  }
  const pieces = text.split(from);
  return (
    pieces.slice(0, count + 1).join(to) +
    pieces
      .slice(count + 1)
      .map((piece) => from + piece)
      .join("")
  );
}

/** str.format: {}, {0}, {name}, {name.key}, {0[key]}, !r and !s, and format specifiers. */
function formatted(self: string, { positional, named }: CallArguments, budget: Budget): string {
  let automatic = 0;
  return self.replace(/\{\{|\}\}|\{([^{}]*)\}|[{}]/g, (found, field?: string) => {
    if (found === "{{") return "{";
    if (found === "}}") return "}";
    if (field === undefined) return fail("single brace in format string");
    const [, path, conversion, spec] = /^([^!:]*)(?:!([rsa]))?(?::(.*))?$/s.exec(field) ?? fail(`bad field {${field}}`);
    const [head, ...steps] = path!.split(/[.[]/);
    let value: Value | undefined;
    if (head === "") value = positional[automatic++];
    else value = /^\d+$/.test(head!) ? positional[Number(head)] : named.get(head!);
    for (const step of steps) {
      if (step.startsWith("_")) fail("attributes that begin with _ are closed to templates");
      if (value !== undefined) value = elementOrFail(value, step.replace(/\]$/, ""));
    }
    if (value === undefined) return fail(`format: nothing given for {${field}}`);
    const shown = conversion === undefined ? value : conversion === "s" ? str(value) : repr(value);
    return formatSpec(shown, spec ?? "", budget);
  });
}

const LINES = new RegExp(`([^${LINE_BREAKS}]*)(\\r\\n|[${LINE_BREAKS}]|$)`, "g");

export const STRING_METHODS: Readonly<Record<string, Method>> = {
  strip: stripper("strip", true, true),
  lstrip: stripper("lstrip", true, false),
  rstrip: stripper("rstrip", false, true),
  split: splitter("split", false),
  rsplit: splitter("rsplit", true),
  splitlines: (self, args) => {
    const keep = bind("splitlines", args, ["keepends"])[0] === true;
    const lines = [...self.matchAll(LINES)];
    return lines.filter(([whole]) => whole !== "").map(([whole, line]) => (keep ? whole : line!));
  },
  partition: partition("partition", false),
  rpartition: partition("rpartition", true),
  join: (self, args, budget) => {
    const items = iterate(bind("join", args, ["iterable"], 1)[0]!).map((item) =>
      typeof item === "string" ? item : fail(`join: expected text, got ${typeName(item)}`),
    );
    budget.make(items.reduce((sum, item) => sum + item.length + self.length, 0));
    return items.join(self);
  },
  replace: (self, args, budget) => {
    const [from, to, most] = bind("replace", args, ["old", "new", "count"], 2);
    const count = optionalInteger("replace", most) ?? -1;
    return replaced(self, asText("replace", from), asText("replace", to), count, budget);
  },
  startswith: edge("startswith", (text, affix) => text.startsWith(affix)),
  endswith: edge("endswith", (text, affix) => text.endsWith(affix)),
  find: finder("find", false, () => -1),
  rfind: finder("rfind", true, () => -1),
  index: finder("index", false, () => fail("substring not found")),
  rindex: finder("rindex", true, () => fail("substring not found")),
  count: (self, args) => {
    const [sub, start, end] = bind("count", args, ["sub", "start", "end"], 1);
    const piece = part(self, start, end);
    const sought = asText("count", sub);
    if (piece === null) return 0;
    return sought === "" ? textLength(piece.text) + 1 : piece.text.split(sought).length - 1;
  },
  upper: (self) => self.toUpperCase(),
  lower: (self) => self.toLowerCase(),
  casefold: (self) => self.toLowerCase().replaceAll("ß", "ss").replaceAll("ς", "σ"),
  title: (self) => titled(self),
  capitalize: (self) => capitalized(self),
  swapcase: (self) =>
    Array.from(self, (one) => (one === one.toUpperCase() ? one.toLowerCase() : one.toUpperCase())).join(""),
  isupper: cased(/\p{Lu}/u),
  islower: cased(/\p{Ll}/u),
  istitle: (self) => CASED.test(self) && titled(self) === self,
  isspace: every(new RegExp(`^[${SPACE}]$`)),
  isalpha: every(/^\p{L}$/u),
  isdecimal: every(/^\p{Nd}$/u),
  isdigit: every(/^[\p{Nd}²³¹⁰-⁹₀-₉①-⑨⑴-⑼⒈-⒐❶-❾➀-➈➊-➒]$/u),
  isnumeric: every(/^\p{N}$/u),
  isalnum: every(/^[\p{L}\p{N}]$/u),
  isascii: (self) => /^\p{ASCII}*$/u.test(self),
  isprintable: (self) => !/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(self),
  isidentifier: (self) => /^[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{Mn}\p{Mc}\p{Nd}\p{Pc}]*$/u.test(self),
  removeprefix: (self, args) => {
    const prefix = asText("removeprefix", bind("removeprefix", args, ["prefix"], 1)[0]);
    return self.startsWith(prefix) ? self.slice(prefix.length) : self;
  },
  removesuffix: (self, args) => {
    const suffix = asText("removesuffix", bind("removesuffix", args, ["suffix"], 1)[0]);
    return suffix !== "" && self.endsWith(suffix) ? self.slice(0, -suffix.length) : self;
  },
  ljust: aligned("ljust", () => 0),
  rjust: aligned("rjust", (missing) => missing),
  // Python's own rule for an odd rest.
  center: aligned("center", (missing, width) => Math.floor(missing / 2) + (missing & width & 1)),
  zfill: (self, args, budget) => {
    const width = asInteger("zfill", bind("zfill", args, ["width"], 1)[0]);
    budget.make(Math.max(0, width));
    const sign = /^[+-]/.exec(self)?.[0] ?? "";
    return sign + "0".repeat(Math.max(0, width - textLength(self))) + self.slice(sign.length);
  },
  expandtabs: (self, args, budget) => {
    const size = optionalInteger("expandtabs", bind("expandtabs", args, ["tabsize"])[0]) ?? 8;
    budget.make(self.length * Math.max(1, size));
    let column = 0;
    return Array.from(self, (one) => {
      if (one !== "\t") {
        column = one === "\n" || one === "\r" ? 0 : column + 1;
        return one;
      }
      const width = size <= 0 ? 0 : size - (column % size);
      column += width;
      return " ".repeat(width);
    }).join("");
  },
  format: (self, args, budget) => budget.text(formatted(self, args, budget)),
  format_map: (self, args, budget) => {
    const mapping = bind("format_map", args, ["mapping"], 1)[0];
    if (!(mapping instanceof Dict)) return fail("format_map wants a mapping");
    const named = new Map([...mapping.entries].filter((pair): pair is [string, Value] => typeof pair[0] === "string"));
    return budget.text(formatted(self, { positional: [], named }, budget));
  },
};
