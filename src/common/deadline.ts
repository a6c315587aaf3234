import { PipeloraError } from "./errors.ts";

/** Waits for `work`, named in the error, no longer than `ms` milliseconds. Error: PL_INTERNAL, saying what was waited for. */
export async function withDeadline<T>(work: Promise<T>, ms: number, name: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new PipeloraError("PL_INTERNAL", `${name} did not end within ${ms / 1000} s`));
    }, ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
