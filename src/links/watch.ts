/** Calls `onStalled` once if there was no progress for `timeoutMs`. */
export class Watch {
  readonly #timer: NodeJS.Timeout;
  #since = performance.now();

  constructor(timeoutMs: number, isWaiting: () => boolean, onStalled: () => void) {
    this.#timer = setInterval(
      () => {
        if (!isWaiting()) {
          this.progress();
          return;
        }
        if (performance.now() - this.#since < timeoutMs) return;
        this.stop();
        onStalled();
      },
      Math.min(1000, Math.max(10, timeoutMs / 8)),
    );
    this.#timer.unref();
  }

  progress(): void {
    this.#since = performance.now();
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
