import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { TensorMessage } from "./link.ts";

interface Arrived {
  readonly tensor: TensorMessage;
  readonly onTaken: () => void;
}

/** Where tensors from all peers wait until they are asked for, or are asked for before they came. */
export class Mailbox {
  readonly #arrived = new Map<string, Arrived>();
  readonly #awaited = new Map<string, Deferred<TensorMessage>>();
  readonly #timeoutMs: number;
  #failure: PipeloraError | null = null;

  /** `timeoutMs`: how long a tensor may be awaited before the link counts as stalled. */
  constructor(timeoutMs: number) {
    this.#timeoutMs = timeoutMs;
  }

  /** `onTaken` is called once when the tensor leaves the mailbox: that is when its room is free again. */
  deliver(key: string, tensor: TensorMessage, onTaken: () => void): void {
    const awaited = this.#awaited.get(key);
    if (awaited === undefined) {
      this.#arrived.set(key, { tensor, onTaken });
      return;
    }
    this.#awaited.delete(key);
    awaited.resolve(tensor);
    onTaken();
  }

  /** Errors: PL_LINK_FAILED if the link broke or the tensor did not come in time; `from` names the sender in it. */
  take(key: string, from: string): Promise<TensorMessage> {
    const arrived = this.#arrived.get(key);
    if (arrived !== undefined) {
      this.#arrived.delete(key);
      arrived.onTaken();
      return Promise.resolve(arrived.tensor);
    }
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const awaited = deferred<TensorMessage>();
    this.#awaited.set(key, awaited);
    const timer = setTimeout(() => {
      this.#awaited.delete(key);
      awaited.reject(
        new PipeloraError(
          "PL_LINK_FAILED",
          `tensor ${key} did not come from ${from} within ${this.#timeoutMs / 1000} s`,
          {
            hint: "See that rank's log; a slow network or device needs a longer --link-timeout.",
          },
        ),
      );
    }, this.#timeoutMs);
    return awaited.promise.finally(() => clearTimeout(timer));
  }

  /** Rejects everything awaited now and later. */
  fail(error: PipeloraError): void {
    this.#failure = error;
    for (const awaited of this.#awaited.values()) awaited.reject(error);
    this.#awaited.clear();
  }

  /** Forgets tensors that nobody will take (an aborted step). */
  clear(): void {
    for (const { onTaken } of this.#arrived.values()) onTaken();
    this.#arrived.clear();
  }
}
