/**
 * SentencePiece's precompiled_charsmap: a double array (Darts) of byte strings, each mapped to an offset into the texts after it. Layout as
 * in google/sentencepiece: a little-endian length, the array's 32-bit units, then texts that end with a zero byte. Returns a function that
 * replaces, from left to right, the longest string in the array. Throws Error on malformed bytes.
 */
export function charsmapReplacer(bytes: Uint8Array): (text: string) => string {
  if (bytes.length < 8) throw new Error("precompiled_charsmap is cut off");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = view.getUint32(0, true);
  if (size === 0 || size % 4 !== 0 || size + 4 >= bytes.length) throw new Error("precompiled_charsmap is cut off");
  const units = Uint32Array.from({ length: size / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const texts = Buffer.from(bytes.subarray(4 + size));
  const replacement = (offset: number) => {
    const end = texts.indexOf(0, offset);
    if (offset >= texts.length || end < 0) throw new Error("precompiled_charsmap points behind its end");
    return texts.subarray(offset, end);
  };

  /** Length and offset of the longest match at `start`; null where there is none. */
  const longest = (input: Uint8Array, start: number): { length: number; offset: number } | null => {
    let found: { length: number; offset: number } | null = null;
    let node = childrenOf(units[0]!);
    for (let i = start; i < input.length && input[i] !== 0; i++) {
      node ^= input[i]!;
      const unit = units[node];
      if (unit === undefined || labelOf(unit) !== input[i]) break;
      node ^= childrenOf(unit);
      if (((unit >>> 8) & 1) === 1) {
        const value = units[node];
        if (value === undefined) break;
        found = { length: i + 1 - start, offset: value & 0x7fffffff };
      }
    }
    return found;
  };

  return (text) => {
    const input = Buffer.from(text, "utf8");
    const parts: Uint8Array[] = [];
    let kept = 0;
    for (let at = 0; at < input.length; ) {
      const match = longest(input, at);
      if (match === null) {
        at += characterBytes(input[at]!);
        continue;
      }
      parts.push(input.subarray(kept, at), replacement(match.offset));
      at += match.length;
      kept = at;
    }
    return parts.length === 0 ? text : Buffer.concat([...parts, input.subarray(kept)]).toString("utf8");
  };
}

const labelOf = (unit: number) => (unit & 0x800000ff) >>> 0;
const childrenOf = (unit: number) => (unit >>> 10) << ((unit & (1 << 9)) >>> 6);
const characterBytes = (first: number) => (first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4);
