import { type Deferred, deferred } from "../common/deferred.ts";
import { PipeloraError, toPipeloraError } from "../common/errors.ts";
import { CacheRows } from "./cache-rows.ts";
import type { DrawnToken, RoundRunner } from "./round.ts";
import { type EndReason, Sequence, type SequenceRequest } from "./sequence.ts";
import { TokenRate } from "./token-rate.ts";

export interface SchedulerLimits {
  /** Sequences that may have a place in the cache at one time. */
  readonly sequences: number;
  /** Rows of the cache for tokens of all sequences together. */
  readonly rows: number;
  /** Longest sequence that the model takes. */
  readonly positions: number;
  /** Most new tokens of a round: longer prompts go through the model in pieces. */
  readonly roundTokens: number;
  /** Rounds under way at a time: as many as the pipeline has stages, so that none of them waits for another. */
  readonly rounds: number;
  /** Sequences that may wait for a place. */
  readonly waiting: number;
}

export interface SchedulerState {
  readonly running: number;
  readonly waiting: number;
  readonly rows: number;
  readonly rowsInUse: number;
  /** Since the beginning. */
  readonly promptTokens: number;
  readonly newTokens: number;
  readonly rounds: number;
}

/** Rounds of one adapter before another adapter gets its turn: changing adapters takes time. */
const ROUNDS_OF_AN_ADAPTER = 16;
/** After this many failures of a runner with a sequence under way each time, the sequence is taken for the cause. */
const MOST_FAILURES = 3;

/** No place is free and as many wait as may. */
export class Busy extends PipeloraError {
  readonly retryAfterS: number;

  constructor(waiting: number, retryAfterS: number) {
    super("PL_SERVER_BUSY", `${waiting} sequences wait already`, { hint: `Try again in ${retryAfterS} s.` });
    this.retryAfterS = retryAfterS;
  }
}

/** A runner with what is under way on it. */
interface Attached {
  readonly runner: RoundRunner;
  readonly detached: Deferred<void>;
  underWay: number;
}

/**
 * Continuous batching over one pipeline. Every round takes the next token of each running sequence, and fills the rest of its room with
 * pieces of new prompts. Sequences begin in order of arrival, and only when the cache has rows for their greatest length: so each that
 * begins can end. A sequence's tokens do not depend on its neighbours, as long as the runner's results do not.
 */
export class Scheduler {
  readonly #limits: SchedulerLimits;
  readonly #rows: CacheRows;
  readonly #slots: number[];
  readonly #rate = new TokenRate();
  #waiting: Sequence[] = [];
  #running: Sequence[] = [];
  #attached: Attached | null = null;
  /** Only sequences that came before this number may begin. */
  #admitBelow = Number.POSITIVE_INFINITY;
  #arrivals = 0;
  #rounds = 0;
  /** The adapter of the last round, and how many before it in a row. */
  #turn = { adapter: 0, rounds: 0 };
  #promptTokens = 0;
  #newTokens = 0;
  /** Whether sequences that have begun may go on with another runner. */
  #mayGoOn = true;
  /** Resolves when nothing runs and nothing may begin. */
  #drained: Deferred<void> | null = null;

  constructor(limits: SchedulerLimits) {
    // A piece of a prompt must fit beside the next tokens of all others.
    this.#limits = { ...limits, roundTokens: Math.max(limits.roundTokens, limits.sequences + 1) };
    this.#rows = new CacheRows(limits.rows);
    this.#slots = Array.from({ length: limits.sequences }, (_, slot) => limits.sequences - 1 - slot);
  }

  state(): SchedulerState {
    return {
      running: this.#running.length,
      waiting: this.#waiting.length,
      rows: this.#rows.total,
      rowsInUse: this.#rows.total - this.#rows.free,
      promptTokens: this.#promptTokens,
      newTokens: this.#newTokens,
      rounds: this.#rounds,
    };
  }

  /** Whether something answers now. */
  get attached(): boolean {
    return this.#attached !== null;
  }

  /** Longest prompt and reply together. */
  get mostTokens(): number {
    // The last token takes no row.
    return Math.min(this.#limits.positions, this.#limits.rows + 1);
  }

  /** Sequences that may run and wait together. */
  get mostSequences(): number {
    return this.#limits.sequences + this.#limits.waiting;
  }

  /** Error: Busy unless the queue has room for this many more sequences. */
  expectRoom(count: number): void {
    const places = Math.max(0, this.#limits.sequences - this.#running.length);
    if (count + this.#waiting.length > this.#limits.waiting + places) {
      throw new Busy(this.#waiting.length, this.#retryAfter());
    }
  }

  /**
   * Continues a prompt. Resolves with the reason of its end. Errors: Busy, PL_REQUEST_INVALID for a prompt that never fits, the signal's
   * reason, PL_ENGINE_FAILED where no token can be drawn, and the error given to fail().
   */
  async run(request: SequenceRequest): Promise<EndReason> {
    const { prompt, maxNewTokens, signal } = request;
    signal?.throwIfAborted();
    if (prompt.length === 0) throw new PipeloraError("PL_REQUEST_INVALID", "the prompt has no token");
    if (prompt.length + maxNewTokens > this.mostTokens) {
      throw new PipeloraError(
        "PL_REQUEST_INVALID",
        `${prompt.length} tokens of the prompt and ${maxNewTokens} new ones are more than the ${this.mostTokens} that a sequence may have`,
        { hint: "Shorten the prompt, or ask for fewer tokens." },
      );
    }
    this.expectRoom(1);
    const sequence = new Sequence(request, this.#arrivals++);
    const leave = () => this.#giveUp(sequence, signal!.reason);
    signal?.addEventListener("abort", leave, { once: true });
    this.#waiting.push(sequence);
    this.#pump();
    try {
      return await sequence.ended.promise;
    } finally {
      signal?.removeEventListener("abort", leave);
    }
  }

  /**
   * From now on rounds go to this runner, whose cache is empty. The promise rejects with the runner's first failure; sequences then wait,
   * with the tokens they have, for another runner. It resolves on detach().
   */
  attach(runner: RoundRunner): Promise<void> {
    this.detach();
    const attached: Attached = { runner, detached: deferred<void>(), underWay: 0 };
    this.#attached = attached;
    this.#pump();
    return attached.detached.promise;
  }

  /** Sequences that run wait, with the tokens they have, for another runner. */
  detach(): void {
    this.#detach(null);
  }

  /**
   * Answers the sequences that wait now and none that come later, then releases the runner. If the runner fails, sequences that had begun
   * fail too: another runner's weights may differ. Errors: the runner's.
   */
  async answerWaiting(runner: RoundRunner): Promise<void> {
    this.#admitBelow = this.#arrivals;
    this.#mayGoOn = false;
    this.#drained = deferred<void>();
    try {
      const broken = this.attach(runner);
      await Promise.race([broken, this.#drained.promise]);
    } finally {
      this.#drained = null;
      this.detach();
      this.#mayGoOn = true;
      this.#admitBelow = Number.POSITIVE_INFINITY;
    }
  }

  /** Ends everything that runs or waits with this error; `adapter`: only its sequences, while nothing runs. */
  fail(error: unknown, adapter?: number): void {
    this.detach();
    for (const sequence of [...this.#waiting]) {
      if (adapter === undefined || sequence.request.adapter === adapter) this.#giveUp(sequence, error);
    }
  }

  #detach(failure: PipeloraError | null): void {
    const attached = this.#attached;
    if (attached === null) return;
    this.#attached = null;
    for (const sequence of this.#running) {
      this.#free(sequence);
      sequence.startAnew();
      if (failure === null || sequence.over) continue;
      sequence.failures++;
      if (sequence.failures === MOST_FAILURES || (sequence.begun && !this.#mayGoOn)) {
        sequence.over = true;
        sequence.ended.reject(failure);
      }
    }
    this.#waiting = [...this.#running.filter(({ over }) => !over), ...this.#waiting];
    this.#waiting.sort((a, b) => a.number - b.number);
    this.#running = [];
    if (failure === null) attached.detached.resolve();
    else attached.detached.reject(failure);
  }

  #giveUp(sequence: Sequence, reason: unknown): void {
    if (sequence.over) return;
    sequence.over = true;
    sequence.ended.reject(reason);
    this.#waiting = this.#waiting.filter((one) => one !== sequence);
    if (sequence.place !== null && sequence.underWay === 0) this.#retire(sequence);
    this.#pump();
  }

  #retire(sequence: Sequence): void {
    this.#free(sequence);
    this.#running = this.#running.filter((one) => one !== sequence);
  }

  #free(sequence: Sequence): void {
    const { place } = sequence;
    if (place === null) return;
    this.#slots.push(place.slot);
    this.#rows.give(place.start, sequence.rows);
    sequence.place = null;
  }

  /** Begins all sequences that may begin, and as many rounds as may be under way. */
  #pump(): void {
    const attached = this.#attached;
    if (attached !== null) {
      this.#admit();
      while (this.#attached === attached && attached.underWay < this.#limits.rounds) {
        const picked = this.#pick();
        if (picked.length === 0) break;
        void this.#round(attached, picked);
      }
    }
    const mayBegin = this.#waiting.some(({ number }) => number < this.#admitBelow);
    if (this.#running.length === 0 && !mayBegin) this.#drained?.resolve();
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined; next = this.#waiting[0]) {
      if (this.#slots.length === 0 || next.number >= this.#admitBelow) return;
      const start = this.#rows.take(next.rows);
      if (start === null) return;
      next.place = { slot: this.#slots.pop()!, start };
      this.#promptTokens += next.ready;
      this.#waiting.shift();
      this.#running.push(next);
    }
  }

  /**
   * The sequences of the next round, and the number of tokens of each: longest waiting first. Where several rounds are under way, sequences
   * past their prompt are shared out among them. All use one adapter.
   */
  #pick(): { sequence: Sequence; count: number }[] {
    const all = this.#running
      .filter((sequence) => sequence.ready > 0)
      .sort((a, b) => a.lastRound - b.lastRound || a.number - b.number);
    const adapter = this.#nextAdapter(all);
    const ready = all.filter(({ request }) => request.adapter === adapter);
    const share = Math.ceil(this.#running.length / this.#limits.rounds);
    const going = ready.filter((sequence) => sequence.ready === 1).slice(0, share);
    let room = this.#limits.roundTokens - going.length;
    const picked = going.map((sequence) => ({ sequence, count: 1 }));
    for (const sequence of ready) {
      if (sequence.ready === 1 || room === 0) continue;
      const count = Math.min(sequence.ready, room);
      picked.push({ sequence, count });
      room -= count;
    }
    return picked;
  }

  /**
   * Of the sequences that are ready, longest waiting first: those of the last round's adapter for some rounds, then those of the adapter
   * that has waited longest.
   */
  #nextAdapter(ready: readonly Sequence[]): number | undefined {
    const others = ready.find(({ request }) => request.adapter !== this.#turn.adapter)?.request.adapter;
    const stays = ready.some(({ request }) => request.adapter === this.#turn.adapter);
    return stays && (others === undefined || this.#turn.rounds < ROUNDS_OF_AN_ADAPTER) ? this.#turn.adapter : others;
  }

  async #round(attached: Attached, picked: readonly { sequence: Sequence; count: number }[]): Promise<void> {
    const number = this.#rounds++;
    attached.underWay++;
    const { adapter } = picked[0]!.sequence.request;
    this.#turn = { adapter, rounds: adapter === this.#turn.adapter ? this.#turn.rounds + 1 : 1 };
    const entries = picked.map(({ sequence, count }) => {
      sequence.lastRound = number;
      return sequence.take(count);
    });
    let drawn: DrawnToken[];
    try {
      drawn = await attached.runner.infer({ adapter, entries });
    } catch (error) {
      if (this.#attached === attached) this.#detach(toPipeloraError(error));
      return;
    }
    if (this.#attached !== attached) return;
    attached.underWay--;
    let next = 0;
    for (const [index, { sequence }] of picked.entries()) {
      sequence.underWay--;
      if (entries[index]!.draw !== null) this.#take(sequence, drawn[next++]!);
      if (sequence.over && sequence.underWay === 0) this.#retire(sequence);
    }
    this.#rate.add(next, performance.now());
    this.#pump();
  }

  #take(sequence: Sequence, token: DrawnToken): void {
    if (sequence.over) return;
    if (token.failure !== null) {
      sequence.over = true;
      sequence.ended.reject(token.failure);
      return;
    }
    this.#newTokens++;
    try {
      const reason = sequence.add(token);
      if (reason === null) return;
      sequence.ended.resolve(reason);
    } catch (error) {
      sequence.ended.reject(error);
    }
    sequence.over = true;
  }

  /** Estimated seconds until half of the requested tokens are made. */
  #retryAfter(): number {
    const left = [...this.#running, ...this.#waiting].reduce((sum, sequence) => sum + sequence.left, 0);
    const rate = this.#rate.perSecond(performance.now());
    return Math.max(1, Math.min(60, Math.ceil(rate === 0 ? 1 : left / 2 / rate)));
  }
}
