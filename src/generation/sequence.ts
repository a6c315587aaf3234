import { type Deferred, deferred } from "../common/deferred.ts";
import { Draws, type TokenChoice } from "./draws.ts";
import type { DrawnToken, RoundEntry } from "./round.ts";

/** Why a sequence ended: at a stop id, at its last token, or because its listener said so. */
export type EndReason = "stop" | "length" | "told";

export interface SequenceRequest {
  /** At least one id. */
  readonly prompt: readonly number[];
  readonly maxNewTokens: number;
  /** Ids that end it; such an id is its last token. */
  readonly stopIds: ReadonlySet<number>;
  readonly choice: TokenChoice;
  /** Number of its adapter: see Round. */
  readonly adapter: number;
  /** Called with each token, in order; true: it was the last. */
  readonly onToken: (token: DrawnToken) => boolean;
  /** Aborts the sequence; the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** Where a sequence's keys, values and state are. */
export interface Place {
  readonly slot: number;
  readonly start: number;
}

/** A running sequence: its tokens so far, and how many of them are in the cache or on their way to it. */
export class Sequence {
  readonly request: SequenceRequest;
  readonly ended: Deferred<EndReason> = deferred<EndReason>();
  /** Order of arrival. */
  readonly number: number;
  place: Place | null = null;
  /** Rounds under way with tokens of it. */
  underWay = 0;
  /** The round that served it last. */
  lastRound = -1;
  /** Runners that failed while it ran. */
  failures = 0;
  /** The sequence has ended: results of rounds under way are dropped. */
  over = false;
  readonly #draws: Draws;
  readonly #tokens: number[];
  #issued = 0;
  #drawing = false;

  constructor(request: SequenceRequest, number: number) {
    this.request = request;
    this.number = number;
    this.#tokens = [...request.prompt];
    this.#draws = new Draws(request.choice, request.prompt);
  }

  /** Rows of the cache that it may need. The last token is never put into the cache. */
  get rows(): number {
    return this.request.prompt.length + this.request.maxNewTokens - 1;
  }

  /** Whether a token of its reply was made. */
  get begun(): boolean {
    return this.#tokens.length > this.request.prompt.length;
  }

  /** Tokens that the next round may take of it. */
  get ready(): number {
    return this.#drawing || this.over ? 0 : this.#tokens.length - this.#issued;
  }

  /** Tokens still to be drawn, unless the sequence ends earlier. */
  get left(): number {
    return this.request.prompt.length + this.request.maxNewTokens - this.#tokens.length;
  }

  /** Its next `count` tokens as part of a round. */
  take(count: number): RoundEntry {
    const { slot, start } = this.place!;
    const past = this.#issued;
    this.#issued += count;
    this.#drawing = this.#issued === this.#tokens.length;
    this.underWay++;
    return {
      tokens: this.#tokens.slice(past, this.#issued),
      slot,
      start,
      past,
      length: this.request.prompt.length,
      draw: this.#drawing ? this.#draws.next() : null,
    };
  }

  /** Adds the token that the last round drew. Returns why the sequence ends; null: it goes on. */
  add(token: DrawnToken): EndReason | null {
    this.#drawing = false;
    this.#tokens.push(token.id);
    this.#draws.add(token.id);
    const told = this.request.onToken(token);
    if (this.request.stopIds.has(token.id)) return "stop";
    if (told) return "told";
    return this.left === 0 ? "length" : null;
  }

  /** Its cache is gone: all tokens so far must go through the model again. */
  startAnew(): void {
    this.place = null;
    this.underWay = 0;
    this.#issued = 0;
    this.#drawing = false;
  }
}
