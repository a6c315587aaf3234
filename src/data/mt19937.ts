import { PipeloraError } from "../common/errors.ts";
import { atOnce } from "../common/slices.ts";

const N = 624;
const M = 397;

/** The 32-bit Mersenne Twister (Matsumoto and Nishimura, 1998), seeded as torch's CPU generator is. */
export class Mt19937 {
  readonly #state = new Uint32Array(N);
  #next = N;

  constructor(seed: number) {
    const state = this.#state;
    state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < N; i++) {
      const previous = state[i - 1]! ^ (state[i - 1]! >>> 30);
      state[i] = Math.imul(1812433253, previous) + i;
    }
  }

  /** The next word, 0 … 2^32 - 1. */
  next(): number {
    if (this.#next === N) this.#refill();
    let word = this.#state[this.#next++]!;
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  }

  #refill(): void {
    const state = this.#state;
    for (let i = 0; i < N; i++) {
      const mixed = (state[i]! & 0x80000000) | (state[(i + 1) % N]! & 0x7fffffff);
      state[i] = state[(i + M) % N]! ^ (mixed >>> 1) ^ (mixed & 1 ? 0x9908b0df : 0);
    }
    this.#next = 0;
  }
}

/** Above this size torch draws 64-bit numbers, by another algorithm. */
const LARGEST = Math.floor(0xffffffff / 20);

/** Numbers placed between two yields. */
const SLICE = 1 << 16;

/** torch.randperm(n) on a CPU generator with this seed. */
export function randperm(n: number, seed: number): Uint32Array {
  return atOnce(randpermInSlices(n, seed));
}

/** The same as a generator that yields after each slice, so that the event loop can run between. */
export function* randpermInSlices(n: number, seed: number): Generator<void, Uint32Array> {
  if (n >= LARGEST) {
    throw new PipeloraError("PL_DATASET_INVALID", `${n} rows are more than can be shuffled (${LARGEST - 1}).`, {
      hint: "Split the dataset, or take --train-sampling-strategy sequential.",
    });
  }
  const generator = new Mt19937(seed);
  const order = new Uint32Array(n);
  for (let i = 0; i < n; i++) order[i] = i;
  for (let i = 0; i < n - 1; i++) {
    if (i % SLICE === SLICE - 1) yield;
    const j = i + (generator.next() % (n - i));
    const swapped = order[i]!;
    order[i] = order[j]!;
    order[j] = swapped;
  }
  return order;
}
