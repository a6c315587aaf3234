import type { AttentionKind, BlockLayer, ModelSpec } from "./spec.ts";

/** A parameter of a block that is no linear's: held in float32, never quantised. */
export interface BlockVector {
  readonly name: string;
  readonly shape: readonly number[];
  /** Its value in a model that was never trained; null: random, as a linear's weight. */
  readonly fresh: number | null;
}

/** The parameters of a block beside its linears: norms, and what its kind of attention has. */
export function blockVectors({ shape, rules }: ModelSpec, block: BlockLayer): BlockVector[] {
  const { hidden, heads, kvHeads, headDim } = shape;
  const { whole } = rules.headNorm;
  const all: [string | null, number][] = [
    ...[block.attnNorm, block.attnPostNorm, block.mlpNorm, block.mlpPostNorm].map((name): [string | null, number] => [
      name,
      hidden,
    ]),
    [block.qNorm, whole ? heads * headDim : headDim],
    [block.kNorm, whole ? kvHeads * headDim : headDim],
  ];
  const norms = all.flatMap(([name, width]) =>
    name === null ? [] : [{ name, shape: [width], fresh: 1 - rules.norm.offset }],
  );
  const sinks = block.sinks === undefined ? [] : [{ name: block.sinks, shape: [heads], fresh: 0 }];
  return [...norms, ...sinks, ...attentionVectors(block.attention)];
}

/** Those that the attention itself holds, in the order that its class registers them. */
export function attentionVectors(attention: AttentionKind): BlockVector[] {
  switch (attention.kind) {
    case "softmax":
      return [];
    case "delta": {
      const { keyHeads, valueHeads, keyDim, valueDim, taps } = attention;
      const mixed = 2 * keyHeads * keyDim + valueHeads * valueDim;
      return [
        { name: attention.dtBias, shape: [valueHeads], fresh: 1 },
        { name: attention.aLog, shape: [valueHeads], fresh: 0 },
        { name: attention.conv, shape: [mixed, 1, taps], fresh: null },
        { name: attention.norm, shape: [valueDim], fresh: 1 },
      ];
    }
    case "latent": {
      const { qNorm, qRank, kvNorm, kvRank } = attention;
      const q = qNorm === null ? [] : [{ name: qNorm, shape: [qRank ?? 0], fresh: 1 }];
      return [...q, { name: kvNorm, shape: [kvRank], fresh: 1 }];
    }
  }
}
