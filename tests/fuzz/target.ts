import type { Random } from "./random.ts";

/** One kind of input that comes from outside. */
export interface FuzzTarget {
  readonly name: string;
  /** Writes one input into an empty folder: a valid example with changes. */
  readonly make: (random: Random, dir: string) => void | Promise<void>;
  /**
   * Reads it as the program does. An input that is taken must be right, and one that is not must end in an error of the catalogue;
   * whatever else is thrown is a fault.
   */
  readonly check: (dir: string) => void | Promise<void>;
}
