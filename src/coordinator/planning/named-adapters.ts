import { PipeloraError } from "../../common/errors.ts";

/** 'adapter "a": ', or nothing for the only one. */
export function adapterLabel(name: string | null): string {
  return name === null ? "" : `adapter "${name}": `;
}

/** The error with the adapter's label in front (adapterLabel). */
export function named(label: string, thrown: unknown): unknown {
  if (label === "" || !(thrown instanceof PipeloraError) || thrown.message.startsWith(label)) return thrown;
  const details = { cause: thrown, ...(thrown.hint === undefined ? {} : { hint: thrown.hint }) };
  return new PipeloraError(thrown.code, `${label}${thrown.message}`, details);
}
