import { withDeadline } from "./deadline.ts";
import type { PipeloraError } from "./errors.ts";

type LastWord = (error: PipeloraError) => Promise<void>;

/** Of this process. */
const words = new Set<LastWord>();

/** How long a process that ends for a defect may take to tell its peers. */
const LAST_WORDS_MS = 6_000;

/** Registers `word`, which runs before this process ends for a defect that nobody caught. Returns a function that removes it. */
export function onDefect(word: LastWord): () => void {
  words.add(word);
  return () => words.delete(word);
}

/** Resolves when all registered functions have ended, or their time is over. */
export async function sayLastWords(error: PipeloraError): Promise<void> {
  const said = Promise.allSettled([...words].map((word) => word(error)));
  await withDeadline(said, LAST_WORDS_MS, { name: "telling the workers of a defect" }).catch(() => {});
}
