const MASK = (1n << 64n) - 1n;

/** SplitMix64 (Steele, Lea, Flood 2014) at position `index` of the stream `seed`: uniform in [0, 1), 53 bits. */
export function uniformAt(seed: number, index: number): number {
  let z = (BigInt(seed) + (BigInt(index) + 1n) * 0x9e3779b97f4a7c15n) & MASK;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return Number((z ^ (z >> 31n)) >> 11n) / 2 ** 53;
}
