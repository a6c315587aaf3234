import { PipeloraError } from "../../common/errors.ts";

/** 'adapter "a": ', or nothing for the only one. */
export function adapterLabel(name: string | null): string {
  return name === null ? "" : `adapter "${name}": `;
}

/** An error with the adapter in front that it is about; `label`: adapterLabel's. */
export function named(label: string, thrown: unknown): unknown {
  if (label === "" || !(thrown instanceof PipeloraError) || thrown.message.startsWith(label)) return thrown;
  const details = { cause: thrown, ...(thrown.hint === undefined ? {} : { hint: thrown.hint }) };
  return new PipeloraError(thrown.code, `${label}${thrown.message}`, details);
}
