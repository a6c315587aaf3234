/** Anchors of the whole text: the library reads ^ and $ as those of a line. */
export const SPACES_AT_ENDS = String.raw`(?<![\s\S]) +| +(?![\s\S])`;
export const BEFORE_ALL = String.raw`(?<![\s\S])(?=[\s\S])`;

/**
 * Patterns of published tokenizers, as tokenizer.json writes them. None has a repetition within a repetition, so that matching takes
 * time in proportion to the text. Any other may take for ever on some text, and is run under a limit of time
 * (docs/decisions/data/hostile-input.md).
 */
const KNOWN: ReadonlySet<string> = new Set([
  // GPT-2, RoBERTa, OPT, Phi.
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
  // GPT-4's cl100k, Llama 3.
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  // Qwen 2, 2.5 and 3.
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  // Qwen 3.5.
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  // GPT-4o's o200k.
  String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
  // DeepSeek's steps.
  String.raw`\p{N}{1,3}`,
  "[一-龥぀-ゟ゠-ヿ]+",
  // Single characters and runs of them, as in many normalizers and splits.
  String.raw`\p{N}`,
  String.raw`\s+`,
  String.raw`\s`,
  " {2,}",
  // SentencePiece's, as this program writes them.
  SPACES_AT_ENDS,
  BEFORE_ALL,
  "[0-9]",
  String.raw`\d`,
]);

/** Whether every pattern in these parts of a tokenizer.json is one of a published tokenizer. */
export function hasOnlyKnownPatterns(part: unknown): boolean {
  if (typeof part !== "object" || part === null) return true;
  const pattern = (part as { Regex?: unknown }).Regex;
  if (pattern !== undefined && !(typeof pattern === "string" && KNOWN.has(pattern))) return false;
  return Object.values(part).every(hasOnlyKnownPatterns);
}
