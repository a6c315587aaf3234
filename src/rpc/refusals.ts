const WINDOW_MS = 60_000;
/** Refusals of one reason that are logged within a window; further ones are counted. */
const TOLD = 5;
const MOST_REASONS = 100;
const MANY = "one of many reasons";

/** Logs refusals at a limited rate: anybody who can connect could otherwise fill the log. */
export class Refusals {
  readonly #tell: (peer: string, reason: string) => void;
  readonly #counts = new Map<string, number>();
  #window: NodeJS.Timeout | null = null;

  constructor(tell: (peer: string, reason: string) => void) {
    this.#tell = tell;
  }

  add(peer: string, reason: string): void {
    const count = (this.#counts.get(reason) ?? 0) + 1;
    // Reasons may quote what a stranger sent.
    if (count === 1 && reason !== MANY && this.#counts.size >= MOST_REASONS) {
      this.add(peer, MANY);
      return;
    }
    this.#counts.set(reason, count);
    if (count <= TOLD) this.#tell(peer, reason);
    this.#window ??= setTimeout(() => this.flush(), WINDOW_MS).unref();
  }

  /** Logs how many were left out, and starts a new window. */
  flush(): void {
    if (this.#window !== null) clearTimeout(this.#window);
    this.#window = null;
    for (const [reason, count] of this.#counts) {
      if (count > TOLD) this.#tell(`${count - TOLD} more peers`, `${reason} (within ${WINDOW_MS / 1000} s)`);
    }
    this.#counts.clear();
  }
}
