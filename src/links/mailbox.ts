import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError } from "../common/errors.ts";
import type { IncomingTensor } from "./link.ts";

interface Awaited {
  readonly tensor: Deferred<IncomingTensor>;
  readonly fromRank: number;
  /** A key outside of any step: it has no deadline, and stays when a step is given up. */
  readonly lasting: boolean;
}

/** Holds tensors from all peers until they are asked for, and requests for tensors that have not come. */
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
    const known = this.#known(key);
    if (known !== null) return known;
    const tensor = deferred<IncomingTensor>();
    this.#await(key, { tensor, fromRank, lasting: false });
    const timer = setTimeout(() => {
      if (this.#awaited.get(key)?.tensor === tensor) this.#awaited.delete(key);
      const link = `the link from rank ${fromRank} to rank ${this.#rank}`;
      tensor.reject(
        new PipeloraError("PL_LINK_FAILED", `${link}: tensor ${key} did not come within ${this.#timeoutMs / 1000} s`, {
          hint: `See rank ${fromRank}'s log; a slow network or device needs a longer --link-timeout.`,
        }),
      );
    }, this.#timeoutMs);
    return tensor.promise.finally(() => clearTimeout(timer));
  }

  /** The same without a deadline. Errors: PL_LINK_FAILED if the link broke. */
  takeWhenever(key: string, fromRank: number): Promise<IncomingTensor> {
    const known = this.#known(key);
    if (known !== null) return known;
    const tensor = deferred<IncomingTensor>();
    this.#await(key, { tensor, fromRank, lasting: true });
    return tensor.promise;
  }

  /** A key has one waiter: two would each take the other's tensor for lost. */
  #await(key: string, awaited: Awaited): void {
    if (this.#awaited.has(key)) {
      awaited.tensor.reject(
        new PipeloraError("PL_INTERNAL", `tensor ${key} is awaited already, and only one can take it`),
      );
    } else this.#awaited.set(key, awaited);
  }

  /** The tensor if it has come, or the error if it never will; null: it is still to come. */
  #known(key: string): Promise<IncomingTensor> | null {
    const arrived = this.#arrived.get(key);
    if (arrived === undefined) return this.#failure === null ? null : Promise.reject(this.#failure);
    this.#arrived.delete(key);
    return Promise.resolve(arrived);
  }

  /** Whether a caller waits for a tensor of that rank that has not arrived. Tensors without a deadline do not count: they have room already. */
  awaits(fromRank: number): boolean {
    for (const awaited of this.#awaited.values()) if (awaited.fromRank === fromRank && !awaited.lasting) return true;
    return false;
  }

  /** Rejects everything awaited now and later. */
  fail(error: PipeloraError): void {
    this.#failure = error;
    for (const { tensor } of this.#awaited.values()) tensor.reject(error);
    this.#awaited.clear();
  }

  /** Aborts a step: drops what has come, rejects what is awaited. */
  clear(): void {
    const error = new PipeloraError("PL_LINK_FAILED", "the step that awaited this tensor was given up");
    for (const [key, { tensor, lasting }] of this.#awaited) {
      if (lasting) continue;
      tensor.reject(error);
      this.#awaited.delete(key);
    }
    for (const tensor of this.#arrived.values()) tensor.release();
    this.#arrived.clear();
  }
}
