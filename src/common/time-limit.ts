import { createContext, Script } from "node:vm";

/** What runs while the limit holds; work within work runs in the same globals. */
const globals: { work: () => unknown } = { work: () => undefined };
const context = createContext(globals);
const script = new Script("work()");

export class TimeLimitError extends Error {
  constructor(ms: number) {
    super(`it took over ${Math.ceil(ms)} ms`);
  }
}

/**
 * The result of synchronous work, which is stopped when it takes longer: for what strangers' files can make endless, such as regular
 * expressions, where no budget of steps can be kept. Costs 0.1 ms. What the work was changing when it was stopped is lost with it: use
 * nothing of it afterwards. Throws TimeLimitError, else what the work throws.
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
