import { PipeloraError } from "../../../common/errors.ts";

/*
 * How text is cut before byte pairs are merged. llama.cpp has the cuts in its code, under a name that tokenizer.ggml.pre gives
 * (src/llama-vocab.cpp); which one a tokenizer has is read off its own patterns.
 */

/** ByteLevel's own cut, GPT-2's. */
const GPT2 = "ByteLevel";
const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES = String.raw`\s*[\r\n]+|\s+(?!\S)|\s+`;
const CL100K = String.raw`${CONTRACTIONS}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|${SPACES}`;
const LETTERS = String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`;
const LOWER = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;

interface PreTokenizer {
  readonly name: string;
  /** One after the other, as tokenizer.json has them. */
  readonly cuts: readonly string[];
  /** Words that are tokens as they stand are not built by merges. */
  readonly ignoresMerges?: true;
}

const PRE_TOKENIZERS: readonly PreTokenizer[] = [
  { name: "gpt-2", cuts: [GPT2] },
  { name: "refact", cuts: [String.raw`\p{N}`, GPT2] },
  { name: "llama-bpe", cuts: [CL100K], ignoresMerges: true },
  { name: "dbrx", cuts: [CL100K] },
  {
    name: "qwen2",
    cuts: [String.raw`${CONTRACTIONS}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|${SPACES}`],
  },
  {
    name: "qwen35",
    cuts: [String.raw`${CONTRACTIONS}|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|${SPACES}`],
  },
  {
    name: "gpt-4o",
    cuts: [
      String.raw`${LETTERS}*${LOWER}+${CONTRACTIONS}?|${LETTERS}+${LOWER}*${CONTRACTIONS}?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${SPACES}`,
    ],
  },
  {
    name: "tekken",
    cuts: [String.raw`${LETTERS}*${LOWER}+|${LETTERS}+${LOWER}*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|${SPACES}`],
    ignoresMerges: true,
  },
  {
    name: "seed-coder",
    cuts: [String.raw`${CONTRACTIONS}|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|${SPACES}`],
  },
  {
    name: "deepseek-v3",
    cuts: [
      String.raw`\p{N}{1,3}`,
      "[一-龥぀-ゟ゠-ヿ]+",
      String.raw`[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_${"`"}{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|${SPACES}`,
    ],
  },
  {
    name: "deepseek-coder",
    cuts: [String.raw`[\r\n]`, String.raw`\s?\p{L}+`, String.raw`\s?\p{P}+`, "[一-龥ࠀ-一가-퟿]+", String.raw`\p{N}`],
  },
];

export interface Cuts {
  /** tokenizer.json's pre_tokenizer. */
  readonly steps: unknown;
  /** model.ignore_merges */
  readonly ignoresMerges: boolean;
}

/** llama.cpp's name of these cuts. Error: PL_TOKENIZER_INVALID for cuts that it does not have. */
export function preTokenizerName(path: string, { steps, ignoresMerges }: Cuts): PreTokenizer {
  const cuts = cutsOf(steps).map(plain);
  const same = PRE_TOKENIZERS.filter(
    (known) => known.cuts.length === cuts.length && known.cuts.every((cut, i) => plain(cut) === cuts[i]),
  );
  const found = same.find((known) => (known.ignoresMerges ?? false) === ignoresMerges) ?? same[0];
  if (found !== undefined) return found;
  throw new PipeloraError(
    "PL_TOKENIZER_INVALID",
    `${path} cuts text by ${cuts.map((cut) => JSON.stringify(cut)).join(", then ")}, which llama.cpp does not have.`,
    {
      hint: "Merge the adapter (coordinator merge) and convert the folder with a llama.cpp that knows this tokenizer.",
    },
  );
}

/** Line ends stand in some files as themselves. */
const plain = (pattern: string) => pattern.replaceAll("\r", "\\r").replaceAll("\n", "\\n");

interface Step {
  readonly type?: unknown;
  readonly pretokenizers?: unknown;
  readonly pattern?: { readonly Regex?: unknown; readonly String?: unknown };
  readonly individual_digits?: unknown;
  readonly use_regex?: unknown;
  readonly add_prefix_space?: unknown;
  readonly behavior?: unknown;
  readonly invert?: unknown;
}

/** The patterns of a pre_tokenizer; a step of another kind stands as its JSON, which no known one equals. */
function cutsOf(given: unknown): string[] {
  if (typeof given !== "object" || given === null) return [];
  const step = given as Step;
  switch (step.type) {
    case "Sequence":
      return Array.isArray(step.pretokenizers) ? step.pretokenizers.flatMap(cutsOf) : [];
    case "Digits":
      return [step.individual_digits === true ? String.raw`\p{N}` : String.raw`\p{N}+`];
    case "ByteLevel":
      if (step.add_prefix_space === true) return [JSON.stringify(step)];
      return step.use_regex === false ? [] : [GPT2];
    case "Split": {
      const isolated = step.behavior === "Isolated" && step.invert !== true;
      const kept = step.behavior === "Removed" && step.invert === true;
      const { Regex: regex } = step.pattern ?? {};
      return [typeof regex === "string" && (isolated || kept) ? regex : JSON.stringify(step)];
    }
    default:
      return [JSON.stringify(step)];
  }
}
