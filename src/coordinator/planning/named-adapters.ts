import { PipeloraError } from "../../common/errors.ts";

/** An error with the adapter in front that it is about; `label`: 'adapter "a": ', or nothing for the only one. */
export function named(label: string, thrown: unknown): unknown {
  if (label === "" || !(thrown instanceof PipeloraError) || thrown.message.startsWith(label)) return thrown;
  const details = { cause: thrown, ...(thrown.hint === undefined ? {} : { hint: thrown.hint }) };
  return new PipeloraError(thrown.code, `${label}${thrown.message}`, details);
}
