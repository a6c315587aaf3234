/** Tokens a second over the last seconds. */
export class TokenRate {
  readonly #window: { at: number; tokens: number }[] = [];

  /** `now`: milliseconds of performance.now(). */
  add(tokens: number, now: number): void {
    this.#window.push({ at: now, tokens });
    this.#forget(now);
  }

  /** 0: nothing was made. */
  perSecond(now: number): number {
    this.#forget(now);
    const first = this.#window[0];
    if (first === undefined) return 0;
    const tokens = this.#window.reduce((sum, entry) => sum + entry.tokens, 0);
    return tokens / Math.max(0.1, (now - first.at) / 1000);
  }

  #forget(now: number): void {
    while (this.#window.length > 0 && now - this.#window[0]!.at > WINDOW_MS) this.#window.shift();
  }
}

const WINDOW_MS = 10_000;
