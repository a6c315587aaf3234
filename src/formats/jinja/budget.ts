import { fail } from "./values.ts";

/** Node visits and, a part each, characters made: seconds at most. Real conversations take some thousands. */
const MAX_STEPS = 5_000_000;
/** Longest text or list that a template may make. */
const MAX_SIZE = 1 << 26;
const CHARACTERS_A_STEP = 64;

/** What one rendering may spend: templates come from strangers. */
export class Budget {
  #steps = 0;

  step(count = 1): void {
    this.#steps += count;
    if (this.#steps > MAX_STEPS) fail("the template takes too many steps");
  }

  /** To be asked before a text or list of `size` is made. */
  make(size: number): void {
    if (!(size <= MAX_SIZE)) fail(`the template makes a value of over ${MAX_SIZE} characters or items`);
    this.step(Math.ceil(size / CHARACTERS_A_STEP));
  }

  /** For a list of so many items that was made: a step each. */
  items(count: number): void {
    this.make(count);
    this.step(count);
  }

  text(value: string): string {
    this.make(value.length);
    return value;
  }
}
