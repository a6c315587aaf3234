import type { DecoderNames } from "./decoder-names.ts";
import type { AttentionKind, LinearRole, LinearSpec, ModuleSpec } from "./spec.ts";

/** A block's attention as its module has it. */
export interface AttentionParts {
  /** Under the block: "self_attn". */
  readonly leaf: string;
  /** Behind the family's prefix: "Attention". */
  readonly className: string;
  readonly attention: AttentionKind;
  readonly linears: readonly LinearSpec[];
  /** Norms of q and k, null: none. */
  readonly headNorms: readonly [q: string, k: string] | null;
  /** Norms of q and k without weights. */
  readonly plainHeadNorms?: true;
  /** All modules in it, linears too, in the order that its class registers them. */
  readonly modules: readonly ModuleSpec[];
}

/** Where a block's attention lies and what its class is built of. */
export interface AttentionPlace {
  /** Of the block: "model.layers.0". */
  readonly block: string;
  /** Class names begin with it. */
  readonly prefix: string;
  readonly hidden: number;
  readonly names: DecoderNames;
}

/** Role, name below the path, outputs. */
export type Projection = readonly [role: LinearRole, leaf: string, out: number];

/** Linears of one input. */
export function projections(path: string, width: number, bias: boolean, of: readonly Projection[]): LinearSpec[] {
  return of.map(([role, leaf, out]) => ({ role, name: `${path}.${leaf}`, in: width, out, bias }));
}

const linearModules = (linears: readonly LinearSpec[]): ModuleSpec[] =>
  linears.map(({ name }) => ({ name, className: "Linear" }));

export interface SoftmaxSizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly bias: boolean;
  readonly outputBias: boolean;
  /** q_proj gives each head's query and the gate of its output. */
  readonly gated: boolean;
}

/** Softmax attention over heads. */
export function softmaxParts({ block, prefix, hidden, names }: AttentionPlace, sizes: SoftmaxSizes): AttentionParts {
  const path = `${block}.${names.attention}`;
  const width = sizes.heads * sizes.headDim;
  const q = (sizes.gated ? 2 : 1) * width;
  const kv = sizes.kvHeads * sizes.headDim;
  const { qkv } = names;
  const widths: readonly Projection[] =
    typeof qkv === "string"
      ? [["qkv", qkv, q + 2 * kv]]
      : [
          ["q", qkv[0], q],
          ["k", qkv[1], kv],
          ["v", qkv[2], kv],
        ];
  const inputs = projections(path, hidden, sizes.bias, widths);
  const output = projections(path, width, sizes.outputBias, [["o", names.output, hidden]]);
  const linears = names.outputFirst ? [...output, ...inputs] : [...inputs, ...output];
  const headNorms = (names.headNorms ?? []).map((leaf) => `${path}.${leaf}`);
  return {
    leaf: names.attention,
    className: "Attention",
    attention: { kind: "softmax", gated: sizes.gated },
    linears,
    headNorms: names.headNorms === null ? null : [`${headNorms[0]}.weight`, `${headNorms[1]}.weight`],
    modules: [
      ...linearModules(linears),
      ...headNorms.map((name) => ({ name, className: `${prefix}${names.classes.norm}` })),
    ],
  };
}

export interface DeltaSizes {
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly taps: number;
  /** in_proj_qkvz and in_proj_ba, by key head (Qwen3-Next), else in_proj_qkv, in_proj_z, in_proj_b and in_proj_a (Qwen3.5). */
  readonly fused: boolean;
}

/** A gated delta net, as Qwen3NextGatedDeltaNet and Qwen3_5GatedDeltaNet register it. */
export function deltaParts({ block, prefix, hidden }: AttentionPlace, sizes: DeltaSizes): AttentionParts {
  const path = `${block}.linear_attn`;
  const { fused, ...rest } = sizes;
  const values = sizes.valueHeads * sizes.valueDim;
  const mixed = 2 * sizes.keyHeads * sizes.keyDim + values;
  const inputs = projections(
    path,
    hidden,
    false,
    fused
      ? [
          ["delta_qkvz", "in_proj_qkvz", mixed + values],
          ["delta_ba", "in_proj_ba", 2 * sizes.valueHeads],
        ]
      : [
          ["delta_qkv", "in_proj_qkv", mixed],
          ["delta_z", "in_proj_z", values],
          ["delta_b", "in_proj_b", sizes.valueHeads],
          ["delta_a", "in_proj_a", sizes.valueHeads],
        ],
  );
  const output = projections(path, values, false, [["o", "out_proj", hidden]]);
  const ends = [{ name: `${path}.norm`, className: `${prefix}RMSNormGated` }, ...linearModules(output)];
  return {
    leaf: "linear_attn",
    className: "GatedDeltaNet",
    attention: {
      kind: "delta",
      ...rest,
      conv: `${path}.conv1d.weight`,
      aLog: `${path}.A_log`,
      dtBias: `${path}.dt_bias`,
      norm: `${path}.norm.weight`,
    },
    linears: fused ? [...inputs, ...output] : [...output, ...inputs],
    headNorms: null,
    modules: [
      { name: `${path}.act`, className: "SiLUActivation" },
      { name: `${path}.conv1d`, className: "Conv1d" },
      ...(fused ? [...linearModules(inputs), ...ends] : [...ends, ...linearModules(inputs)]),
    ],
  };
}

export interface LatentSizes {
  readonly heads: number;
  readonly qRank: number | null;
  readonly kvRank: number;
  readonly plain: number;
  readonly turning: number;
  readonly value: number;
  /** Of the projections down to latent vectors, and of the output's. */
  readonly bias: boolean;
}

/** The epsilon of the latent vectors' norms, which DeepSeek's classes leave at RMSNorm's own. */
const LATENT_EPS = 1e-6;

/** Multi-head latent attention, as DeepseekV2Attention and DeepseekV3Attention register it. */
export function latentParts({ block, prefix, hidden, names }: AttentionPlace, sizes: LatentSizes): AttentionParts {
  const path = `${block}.${names.attention}`;
  const { heads, qRank, kvRank, plain, turning, value, bias } = sizes;
  const q = heads * (plain + turning);
  const one = (role: LinearRole, leaf: string, width: number, out: number, biased: boolean) =>
    projections(path, width, biased, [[role, leaf, out]]);
  const norm = (leaf: string): ModuleSpec => ({ name: `${path}.${leaf}`, className: `${prefix}${names.classes.norm}` });
  const down = qRank === null ? one("q", "q_proj", hidden, q, false) : one("q_a", "q_a_proj", hidden, qRank, bias);
  const up = qRank === null ? [] : one("q_b", "q_b_proj", qRank, q, false);
  const kvDown = one("kv_a", "kv_a_proj_with_mqa", hidden, kvRank + turning, bias);
  const kvUp = one("kv_b", "kv_b_proj", kvRank, heads * (plain + value), false);
  const output = one("o", names.output, heads * value, hidden, bias);
  return {
    leaf: names.attention,
    className: "Attention",
    attention: {
      kind: "latent",
      ...{ qRank, kvRank, plain, turning, value },
      qNorm: qRank === null ? null : `${path}.q_a_layernorm.weight`,
      kvNorm: `${path}.kv_a_layernorm.weight`,
      normEps: LATENT_EPS,
    },
    linears: [...down, ...up, ...kvDown, ...kvUp, ...output],
    headNorms: null,
    modules: [
      ...linearModules(down),
      ...(qRank === null ? [] : [norm("q_a_layernorm")]),
      ...linearModules([...up, ...kvDown]),
      norm("kv_a_layernorm"),
      ...linearModules([...kvUp, ...output]),
    ],
  };
}
