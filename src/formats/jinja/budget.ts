import { fail } from "./values.ts";

/**
 * Steps of a rendering: node visits, and a fraction for each character made. At most some seconds; real conversations take some thousands
 * of steps.
 */
const MAX_STEPS = 5_000_000;
/** Longest text or list that a template may make. */
const MAX_SIZE = 1 << 26;
const CHARACTERS_A_STEP = 64;

/** What one rendering may use, since templates come from strangers. */
export class Budget {
  #steps = 0;

  step(count = 1): void {
    this.#steps += count;
    if (this.#steps > MAX_STEPS) fail("the template takes too many steps");
  }

  /** Called before a text or list of `size` is made. */
  make(size: number): void {
    if (!(size <= MAX_SIZE)) fail(`the template makes a value of over ${MAX_SIZE} characters or items`);
    this.step(Math.ceil(size / CHARACTERS_A_STEP));
  }

  /** Called after a list of this many items was made: a step each. */
  items(count: number): void {
    this.make(count);
    this.step(count);
  }

  text(value: string): string {
    this.make(value.length);
    return value;
  }
}
