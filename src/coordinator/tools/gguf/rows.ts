import type { ModelShape, ModelSpec } from "../../../models/spec.ts";
import type { Architecture } from "./architectures.ts";

/** Orders of rows: the number of the source's row at each place of the target. */
export const range = (first: number, count: number): Int32Array =>
  Int32Array.from({ length: count }, (_, i) => first + i);

export function sequence(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** One head's order over several heads that lie one behind the other. */
export function overHeads(one: Int32Array, heads: number): Int32Array {
  return sequence(Array.from({ length: heads }, (_, head) => one.map((column) => column + head * one.length)));
}

/**
 * The order of a head's columns where the checkpoint turns other pairs together than the architecture does; null: the same. A product of q
 * and k is the same in any order that both have.
 */
export function headColumns({ shape, rules, layers }: ModelSpec, { rope }: Architecture): Int32Array | null {
  if (rules.rotaryInterleaved === (rope === "neighbours")) return null;
  const half = rules.rotary[0]!.invFreq.length;
  const block = layers.find((layer) => layer.kind === "block");
  // Columns with positions come last in latent attention, else first.
  const first = block?.attention.kind === "latent" ? block.attention.plain : 0;
  return Int32Array.from({ length: shape.headDim }, (_, column) => {
    const place = column - first;
    if (place < 0 || place >= 2 * half) return column;
    if (rope === "neighbours") return first + (place >> 1) + (place % 2) * half;
    return first + (place < half ? 2 * place : 2 * (place - half) + 1);
  });
}

/** Rows of q, k and v where they stand by kv head: its query heads, its key, its value. */
export function kvHeadRows({ heads, kvHeads, headDim }: ModelShape): Int32Array[] {
  const queries = heads / kvHeads;
  const group = (queries + 2) * headDim;
  const kv = Array.from({ length: kvHeads }, (_, head) => head * group);
  return [
    sequence(kv.map((first) => range(first, queries * headDim))),
    sequence(kv.map((first) => range(first + queries * headDim, headDim))),
    sequence(kv.map((first) => range(first + (queries + 1) * headDim, headDim))),
  ];
}
