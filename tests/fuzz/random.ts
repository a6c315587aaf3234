import { createHash } from "node:crypto";
import { Mt19937 } from "../../src/data/mt19937.ts";

/** Draws for one input: the same from the same words, whatever was drawn for others. */
export class Random {
  readonly #generator: Mt19937;

  constructor(...words: readonly (string | number)[]) {
    this.#generator = new Mt19937(createHash("sha256").update(words.join("/")).digest().readUInt32LE(0));
  }

  /** 0 … below - 1 */
  below(below: number): number {
    return Math.floor((this.#generator.next() / 2 ** 32) * below);
  }

  /** from … to, both included. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  chance(probability: number): boolean {
    return this.#generator.next() / 2 ** 32 < probability;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }

  bytes(length: number): Buffer {
    return Buffer.from(Array.from({ length }, () => this.below(256)));
  }
}
