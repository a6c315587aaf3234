import { type ErrorCode, PipeloraError } from "./errors.ts";

/** What is waited for, and the code of the error at the deadline. Without a code the error is a defect. */
export interface Waiting {
  readonly name: string;
  readonly code?: ErrorCode;
}

/** Waits for `work` no longer than `ms` milliseconds. Error: the code given, saying what was waited for. */
export async function withDeadline<T>(
  work: Promise<T>,
  ms: number,
  { name, code = "PL_INTERNAL" }: Waiting,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new PipeloraError(code, `${name} did not end within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
