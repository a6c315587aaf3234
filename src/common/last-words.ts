import { withDeadline } from "./deadline.ts";
import type { PipeloraError } from "./errors.ts";

type LastWord = (error: PipeloraError) => Promise<void>;

/** Of this process. */
const words = new Set<LastWord>();

/** How long a process that ends for a defect may take to tell others so. */
const LAST_WORDS_MS = 6_000;

/** `word` is said to others before this process ends for a defect that nobody caught. Returns what takes it back. */
export function onDefect(word: LastWord): () => void {
  words.add(word);
  return () => words.delete(word);
}

/** Resolves when all has been said, or can't be. */
export async function sayLastWords(error: PipeloraError): Promise<void> {
  const said = Promise.allSettled([...words].map((word) => word(error)));
  await withDeadline(said, LAST_WORDS_MS, { name: "telling the workers of a defect" }).catch(() => {});
}
