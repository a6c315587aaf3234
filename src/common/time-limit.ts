import { createContext, Script } from "node:vm";

/** The function that runs under the limit. Nested calls run in the same globals. */
const globals: { work: () => unknown } = { work: () => undefined };
const context = createContext(globals);
const script = new Script("work()");

export class TimeLimitError extends Error {
  constructor(ms: number) {
    super(`it took over ${Math.ceil(ms)} ms`);
  }
}

/**
 * Runs synchronous work and stops it at a time limit. For input from strangers that may never end and whose steps can't be counted, such as
 * regular expressions. Costs 0.1 ms. State that stopped work was changing is unusable. Throws TimeLimitError, else what the work throws.
 */
export function withTimeLimit<T>(ms: number, work: () => T): T {
  const outer = globals.work;
  globals.work = work;
  try {
    return script.runInContext(context, { timeout: Math.ceil(ms) }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException | null)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT") throw new TimeLimitError(ms);
    throw error;
  } finally {
    globals.work = outer;
  }
}
