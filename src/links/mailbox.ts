import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { IncomingTensor } from "./link.ts";

interface Awaited {
  readonly tensor: Deferred<IncomingTensor>;
  readonly fromRank: number;
}

/** Where tensors from all peers wait until they are asked for, or are asked for before they came. */
export class Mailbox {
  readonly #arrived = new Map<string, IncomingTensor>();
  readonly #awaited = new Map<string, Awaited>();
  readonly #rank: number;
  readonly #timeoutMs: number;
  #failure: PipeloraError | null = null;

  /** Of `rank`. `timeoutMs`: how long a tensor may be awaited before the link counts as stalled. */
  constructor(rank: number, timeoutMs: number) {
    this.#rank = rank;
    this.#timeoutMs = timeoutMs;
  }

  deliver(key: string, tensor: IncomingTensor): void {
    const awaited = this.#awaited.get(key);
    if (awaited === undefined) {
      this.#arrived.set(key, tensor);
      return;
    }
    this.#awaited.delete(key);
    awaited.tensor.resolve(tensor);
  }

  /** The taker releases the tensor. Errors: PL_LINK_FAILED if the link broke or the tensor did not come in time. */
  take(key: string, fromRank: number): Promise<IncomingTensor> {
    const arrived = this.#arrived.get(key);
    if (arrived !== undefined) {
      this.#arrived.delete(key);
      return Promise.resolve(arrived);
    }
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const tensor = deferred<IncomingTensor>();
    this.#awaited.set(key, { tensor, fromRank });
    const timer = setTimeout(() => {
      this.#awaited.delete(key);
      const link = `the link from rank ${fromRank} to rank ${this.#rank}`;
      tensor.reject(
        new PipeloraError("PL_LINK_FAILED", `${link}: tensor ${key} did not come within ${this.#timeoutMs / 1000} s`, {
          hint: `See rank ${fromRank}'s log; a slow network or device needs a longer --link-timeout.`,
        }),
      );
    }, this.#timeoutMs);
    return tensor.promise.finally(() => clearTimeout(timer));
  }

  /** Whether a tensor of that rank is asked for that has not come. */
  awaits(fromRank: number): boolean {
    for (const awaited of this.#awaited.values()) if (awaited.fromRank === fromRank) return true;
    return false;
  }

  /** Rejects everything awaited now and later. */
  fail(error: PipeloraError): void {
    this.#failure = error;
    for (const { tensor } of this.#awaited.values()) tensor.reject(error);
    this.#awaited.clear();
  }

  /** An aborted step: what has come is forgotten, what is awaited rejects. */
  clear(): void {
    const error = new PipeloraError("PL_LINK_FAILED", "the step that awaited this tensor was given up");
    for (const { tensor } of this.#awaited.values()) tensor.reject(error);
    this.#awaited.clear();
    for (const tensor of this.#arrived.values()) tensor.release();
    this.#arrived.clear();
  }
}
