import type { Budget } from "./budget.ts";
import { fail } from "./values.ts";

/** Characters of a rendering: some two million tokens. A tokenizer would take many seconds for more, and no signal is heard meanwhile. */
const MOST_CHARACTERS = 1 << 23;

/** A stretch of the output, in UTF-16 units: what a `generation` block wrote, or a loop's pass over a tracked value. */
export type Mark =
  | { readonly kind: "generation"; readonly begin: number; readonly end: number }
  | { readonly kind: "pass"; readonly number: number; readonly begin: number; readonly end: number };
export type Marks = readonly Mark[];

/** The text of a rendering as it grows, with its marks in the order in which they end. */
export class Output {
  readonly #budget: Budget;
  readonly #parts: string[] = [];
  readonly marks: Mark[] = [];
  length = 0;
  /** Of the innermost pass: what its loop is over, or what `set` named in it. */
  #number: number | null = null;

  constructor(budget: Budget) {
    this.#budget = budget;
  }

  /** `inner`: marks inside the text. */
  write(text: string, inner: Marks | null = null): void {
    if (text === "") return;
    const length = this.length + text.length;
    if (length > MOST_CHARACTERS) fail(`the template writes ${length} characters, expected at most ${MOST_CHARACTERS}`);
    this.#budget.make(text.length);
    for (const mark of inner ?? []) {
      this.marks.push({ ...mark, begin: mark.begin + this.length, end: mark.end + this.length });
    }
    this.#parts.push(text);
    this.length = length;
  }

  mark(mark: Mark): void {
    this.marks.push(mark);
  }

  /** `{% set message = messages[i] %}`: the pass at hand is that value's. */
  names(number: number): void {
    this.#number ??= number;
  }

  pass<T>(number: number | null, run: () => T): T {
    const outer = this.#number;
    const begin = this.length;
    this.#number = number;
    const result = run();
    if (this.#number !== null) this.marks.push({ kind: "pass", number: this.#number, begin, end: this.length });
    this.#number = outer;
    return result;
  }

  text(): string {
    return this.#parts.join("");
  }
}
