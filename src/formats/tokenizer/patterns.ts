/** Unicode's word characters, as a class without its brackets. */
const WORD = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";
const CLASSES: Readonly<Record<string, string>> = {
  ...{ "\\s": "\\p{White_Space}", "\\S": "\\P{White_Space}" },
  ...{ "\\d": "\\p{Nd}", "\\D": "\\P{Nd}", "\\w": WORD },
};

/**
 * Patterns of Rust's tokenizers in JavaScript's syntax. Classes are Unicode's: white space is White_Space (with U+0085, without U+FEFF), and
 * digits and letters are those of every script; without regard to case, "s" also matches "ſ".
 */
export function asRustReads(pattern: string): string {
  const folded = pattern.replace(/\(\?i:([^()]*)\)/g, (_, body: string) => `(?i:${withLongS(body)})`);
  let inClass = false;
  // Groups capture nothing: the library would take what they caught for pieces.
  return folded.replace(/\\.|[[\]]|\((?!\?)/gsu, (part) => {
    if (part === "(") return inClass ? part : "(?:";
    if (part === "[") inClass = true;
    if (part === "]") inClass = false;
    if (part === "\\w" && !inClass) return `[${WORD}]`;
    if (part === "\\W" && !inClass) return `[^${WORD}]`;
    return CLASSES[part] ?? part;
  });
}

function withLongS(body: string): string {
  let inClass = false;
  return body.replace(/\\.|[[\]s]/gu, (part) => {
    if (part === "[") inClass = true;
    if (part === "]") inClass = false;
    if (part !== "s") return part;
    return inClass ? "sſ" : "[sſ]";
  });
}

/** ByteLevel's own cut, GPT-2's. */
const GPT2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;

const split = (pattern: string) => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: false,
});

/** What the matches of a pattern become, whose pattern the library understands. `inverted`: what lies between them, as Split's invert. */
function cut(pattern: string, behavior: string, inverted: boolean): unknown {
  const ending = String.raw`[\s\S]*?(?:${pattern})`;
  const beginning = String.raw`(?:${pattern})(?:(?!${pattern})[\s\S])*`;
  switch (behavior) {
    case "MergedWithPrevious":
      return split(inverted ? beginning : ending);
    case "MergedWithNext":
      return split(inverted ? ending : beginning);
    case "Contiguous":
      return split(`(?:${pattern})+`);
    case "Removed":
      return { ...split(pattern), behavior, invert: inverted };
    default:
      return split(pattern);
  }
}

/** Whitespace's \w+|[^\w\s]+ in the syntax of Rust's regex. */
const RUST_WORD = String.raw`\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}`;
const WORDS = String.raw`[${RUST_WORD}]+|[^${RUST_WORD}\p{White_Space}]+`;
const SPACES = String.raw`\p{White_Space}+`;
/** Rust's is_punctuation: Unicode's, and ASCII's signs. */
const PUNCTUATION = String.raw`[\p{P}\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e]`;

/** tokenizer.json's pre_tokenizer. Steps that the JavaScript library does differently are rewritten as a Split. */
export function asRustCuts(step: unknown): unknown {
  if (!isObject(step)) return step;
  switch (step["type"]) {
    case "Sequence":
      return Array.isArray(step["pretokenizers"])
        ? { ...step, pretokenizers: step["pretokenizers"].map(asRustCuts) }
        : step;
    case "Digits":
      // Splits at every numeric character, not only at 0 … 9.
      return split(step["individual_digits"] === true ? "\\p{N}" : "\\p{N}+");
    case "Split": {
      const { pattern, behavior, invert } = step;
      if (!isObject(pattern) || typeof behavior !== "string") return step;
      const { Regex: regex, String: text } = pattern;
      if (typeof regex === "string") return cut(asRustReads(regex), behavior, invert === true);
      if (typeof text !== "string") return step;
      return cut(text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), behavior, invert === true);
    }
    case "Punctuation":
      return cut(PUNCTUATION, typeof step["behavior"] === "string" ? step["behavior"] : "Isolated", false);
    case "Whitespace":
      return cut(WORDS, "Removed", true);
    case "WhitespaceSplit":
      return cut(SPACES, "Removed", false);
    case "BertPreTokenizer":
      return {
        type: "Sequence",
        pretokenizers: [cut(SPACES, "Removed", false), cut(PUNCTUATION, "Isolated", false)],
      };
    case "CharDelimiterSplit":
      return asRustCuts({ type: "Split", pattern: { String: step["delimiter"] }, behavior: "Removed" });
    case "ByteLevel":
      // The space in front is added before the split.
      if (step["use_regex"] === false || step["add_prefix_space"] === true) return step;
      return { type: "Sequence", pretokenizers: [split(asRustReads(GPT2)), { ...step, use_regex: false }] };
    default:
      return step;
  }
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
