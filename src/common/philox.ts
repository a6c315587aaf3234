/**
 * Philox4x32-10 (Salmon et al., 2011): a counter-based generator. A block's numbers depend on key and counter alone, so they are the same
 * in any order and on any device.
 */
export class Philox {
  readonly #key: readonly [number, number];

  constructor(keyLow: number, keyHigh: number) {
    this.#key = [keyLow >>> 0, keyHigh >>> 0];
  }

  /** Fills `out[0..3]` with the four 32-bit words of the block that the 128-bit counter names. */
  block(c0: number, c1: number, c2: number, c3: number, out: Uint32Array): void {
    let [k0, k1] = this.#key;
    let [x0, x1, x2, x3] = [c0, c1, c2, c3];
    for (let round = 0; round < 10; round++) {
      const high0 = multiplyHigh(0xd2511f53, x0);
      const low0 = Math.imul(0xd2511f53, x0);
      const high1 = multiplyHigh(0xcd9e8d57, x2);
      const low1 = Math.imul(0xcd9e8d57, x2);
      x0 = high1 ^ x1 ^ k0;
      x1 = low1;
      x2 = high0 ^ x3 ^ k1;
      x3 = low0;
      k0 = (k0 + 0x9e3779b9) | 0;
      k1 = (k1 + 0xbb67ae85) | 0;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
  }
}

/** The upper 32 bits of the 64-bit product of two unsigned words. */
function multiplyHigh(a: number, b: number): number {
  const [aLow, aHigh] = [a & 0xffff, a >>> 16];
  const [bLow, bHigh] = [b & 0xffff, b >>> 16];
  const low = aLow * bLow;
  const middle = aHigh * bLow + (low >>> 16);
  const other = aLow * bHigh + (middle % 0x10000);
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(other / 0x10000)) | 0;
}
