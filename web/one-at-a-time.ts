/** Work of which one piece runs at a time. Who asks meanwhile gets one more when that is done: never two, and never none. */
export class OneAtATime {
  readonly #work: (signal: AbortSignal) => Promise<void>;
  readonly #ending = new AbortController();
  #running = false;
  #again = false;

  /** `work` handles its own failures. */
  constructor(work: (signal: AbortSignal) => Promise<void>) {
    this.#work = work;
  }

  ask(): void {
    this.#again = true;
    if (!this.#running) void this.#run();
  }

  /** For good. */
  end(): void {
    this.#ending.abort();
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#again && !this.#ending.signal.aborted) {
      this.#again = false;
      await this.#work(this.#ending.signal);
    }
    this.#running = false;
  }
}
