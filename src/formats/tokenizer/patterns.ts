/**
 * Patterns of Rust's tokenizers in JavaScript's syntax. White space is Unicode's White_Space (with U+0085, without U+FEFF); without regard
 * to case, "s" also matches "ſ".
 */
export function asRustReads(pattern: string): string {
  const folded = pattern.replace(/\(\?i:([^()]*)\)/g, (_, body: string) => `(?i:${withLongS(body)})`);
  return folded.replace(/\\\\|\\[sS]/g, (part) =>
    part === "\\s" ? "\\p{White_Space}" : part === "\\S" ? "\\P{White_Space}" : part,
  );
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
      const pattern = step["pattern"];
      if (!isObject(pattern) || typeof pattern["Regex"] !== "string") return step;
      return { ...step, pattern: { Regex: asRustReads(pattern["Regex"]) } };
    }
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
