import { createHash } from "node:crypto";
import { randomTexts } from "./tokenizer-texts.ts";

/** Texts of one hash: small enough to find which one differs. */
const BLOCK = 250;
const SEED = 17;

/** Hashes of the ids of `count` random texts, one a block, as tests/fixtures/tokenizers/expected.py makes them. */
export function idsHashes(count: number, encode: (text: string) => number[]): string[] {
  const texts = randomTexts(count, SEED);
  return Array.from({ length: Math.ceil(count / BLOCK) }, (_, block) => {
    const ids = texts.slice(block * BLOCK, (block + 1) * BLOCK).map((text) => encode(text).join(","));
    return createHash("sha256").update(ids.join("\n")).digest("hex").slice(0, 16);
  });
}
