import type { BlockLayer, DeltaNet, ModelSpec } from "../../models/spec.ts";

/**
 * Sizes of what a block's attention keeps and works on (native/model/mixer_*.cpp). The unit is a value of the compute dtype for each token,
 * unless a field says otherwise.
 */
export interface AttentionSizes {
  /** What the input projections give, and what the output projection takes: kept for the backward pass. */
  readonly inputs: number;
  readonly output: number;
  /** Expanded latent vectors: kept too. */
  readonly expanded: number;
  /** Log-sum-exp of the scores, in float32 values: kept too. */
  readonly sums: number;
  /** Workspace of the forward pass, beside what is kept; and of the backward pass, beside that and the gradient of `output`. */
  readonly forward: number;
  readonly backward: number;
  /** Float32 values in which a CPU's backward pass adds up the queries' gradient, if the compute dtype has 16 bits. */
  readonly queries: number;
  /** Further workspace on a GPU, in bytes a token (native/ops/cuda/cuda_ops_mixers.cpp). */
  readonly gpu: { readonly forward: number; readonly backward: number };
  /** The second copy of a product whose columns are rearranged. */
  readonly arranged: number;
  /** What a key/value cache holds: values of each token, and float32 values of each sequence. */
  readonly cached: number;
  readonly state: number;
}

const NOTHING = { forward: 0, backward: 0 } as const;
const FLOAT32 = 4;
/** Tokens of a chunk. The backward pass holds the state before each chunk (native/ops/cuda/delta/delta.h: kDeltaChunk). */
const DELTA_CHUNK = 32;

/**
 * Bytes a token of the delta rule's float32 workspace. Forward: normalised queries and keys, their norms, beta and the decay. Backward: the
 * same, the rule's changes of values, the states before chunks, and gradients of q and k for each value head.
 */
function deltaOnGpu({ keyHeads, valueHeads, keyDim, valueDim }: DeltaNet): { forward: number; backward: number } {
  const padded = [32, 64].find((columns) => keyDim <= columns) ?? 128;
  const inputs = 2 * keyHeads * (padded + 1) + 2 * valueHeads;
  const states = (valueHeads * keyDim * valueDim) / DELTA_CHUNK;
  return {
    forward: FLOAT32 * inputs,
    backward: FLOAT32 * (inputs + valueHeads * valueDim + states + 2 * valueHeads * keyDim),
  };
}

/** Bytes a token where keys and values differ in width: v and the output padded with zeros, and on the backward pass their gradients too. */
function widenedOnGpu(
  heads: number,
  width: number,
  value: number,
  float: number,
): { forward: number; backward: number } {
  if (width === value) return NOTHING;
  const wide = float * heads * Math.max(width, value);
  return { forward: 2 * wide, backward: 4 * wide };
}

export function attentionSizes(
  { shape, rules }: ModelSpec,
  { attention, qNorm, plainHeadNorms, linears }: BlockLayer,
  float: number,
): AttentionSizes {
  const { heads, kvHeads, headDim } = shape;
  switch (attention.kind) {
    case "softmax": {
      const [q, kv] = [heads * headDim, kvHeads * headDim];
      const turned = qNorm === null && plainHeadNorms !== true ? 0 : q + kv;
      const inputs = q + 2 * kv + (attention.gated ? q : 0);
      return {
        ...{ inputs, output: q, expanded: 0, sums: heads, queries: q },
        forward: Math.max(turned, attention.gated ? q : 0),
        backward: inputs + turned,
        gpu: NOTHING,
        arranged: rules.qkvByKvHead || attention.gated ? inputs : 0,
        ...{ cached: 2 * kv, state: 0 },
      };
    }
    case "delta": {
      const { keyHeads, valueHeads, keyDim, valueDim, taps } = attention;
      const values = valueHeads * valueDim;
      const mixed = 2 * keyHeads * keyDim + values;
      const inputs = mixed + values + 2 * valueHeads;
      const fused = linears.some(({ role }) => role === "delta_qkvz");
      return {
        ...{ inputs, output: values, expanded: 0, sums: 0, queries: 0 },
        ...{ forward: mixed, backward: inputs + 2 * mixed, arranged: fused ? inputs : 0 },
        gpu: deltaOnGpu(attention),
        ...{ cached: 0, state: (taps - 1) * mixed + valueHeads * keyDim * valueDim },
      };
    }
    case "latent": {
      const { qRank, kvRank, plain, turning, value } = attention;
      const q = heads * (plain + turning);
      const kv = heads * (plain + value);
      const rows = 2 * q + heads * value;
      const inputs = (qRank ?? q) + kvRank + turning;
      return {
        ...{ inputs, output: heads * value, sums: heads, queries: q, arranged: 0 },
        expanded: kv + (qRank === null ? 0 : q),
        forward: Math.max(rows, (qRank ?? 0) + kvRank),
        backward: inputs + kv + (qRank === null ? 0 : q) + rows + (rows - q),
        gpu: widenedOnGpu(heads, plain + turning, value, float),
        ...{ cached: q + heads * value, state: 0 },
      };
    }
  }
}
