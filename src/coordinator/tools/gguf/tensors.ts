import { ofExpert } from "../../../models/experts.ts";
import type { BlockLayer, ExpertsSpec, LatentAttention, LinearSpec, ModelSpec } from "../../../models/spec.ts";
import { type Architecture, blocksOf } from "./architectures.ts";
import { deltaOrder, deltaTensors } from "./delta-tensors.ts";
import { headColumns, kvHeadRows, overHeads, range, sequence } from "./rows.ts";

/** Rows (and columns) of one of the checkpoint's tensors, in the order in which the file has them; null: all as they are. */
export interface Piece {
  readonly source: string;
  readonly rows: Int32Array | null;
  readonly columns: Int32Array | null;
  /** Of so many heads each, the matrix [rows, columns] is written as [columns, rows]. */
  readonly turnedHeads?: number;
}

/** A tensor of the file. */
export interface Layout {
  readonly name: string;
  /** The outermost extent first. */
  readonly shape: readonly number[];
  /** Laid end to end. */
  readonly pieces: readonly Piece[];
  /** Of each value; absent: as it is. */
  readonly value?: (value: number) => number;
  /** Held in float32 whatever the rest is in. */
  readonly exact: boolean;
  /** Experts that the checkpoint packs stay so. */
  readonly packed?: "mxfp4";
}

/** Names below "blk.N." by role; what has none here has rules of its own. */
const NAMES: Readonly<Record<string, string>> = {
  ...{ qkv: "attn_qkv", q: "attn_q", k: "attn_k", v: "attn_v", o: "attn_output" },
  ...{ gate: "ffn_gate", up: "ffn_up", down: "ffn_down", gate_up: "ffn_up" },
  ...{ router: "ffn_gate_inp", shared_gate: "ffn_gate_inp_shexp" },
  ...{ q_a: "attn_q_a", q_b: "attn_q_b", kv_a: "attn_kv_a_mqa" },
};
const SHARED = new Set(["gate", "up", "down"]);

/** A part of a linear's rows under a name of its own. */
export interface Part {
  readonly name: string;
  readonly rows: Int32Array | null;
  readonly columns?: Int32Array | null;
}

export const whole = (source: string): Piece => ({ source, rows: null, columns: null });

/** The file's tensors in its order, of a model that fits the architecture. */
export function layouts(spec: ModelSpec, architecture: Architecture): Layout[] {
  const head = spec.layers.find((layer) => layer.kind === "head")!;
  const norm = spec.layers.find((layer) => layer.kind === "norm")!;
  const embedding = spec.layers.find((layer) => layer.kind === "embedding")!;
  const table = [spec.shape.vocab, spec.shape.hidden];
  return [
    { name: "token_embd.weight", shape: table, pieces: [whole(embedding.weight)], exact: false },
    ...blocksOf(spec).flatMap((block) => blockLayouts(spec, architecture, block)),
    normLayout(spec, "output_norm.weight", spec.shape.hidden, whole(norm.weight)),
    ...(head.tied && architecture.head !== "own"
      ? []
      : [{ name: "output.weight", shape: table, pieces: [whole(head.weight)], exact: false }]),
  ];
}

function blockLayouts(spec: ModelSpec, architecture: Architecture, block: BlockLayer): Layout[] {
  const { hidden, heads, kvHeads, headDim } = spec.shape;
  const at = (name: string) => `blk.${block.index}.${name}`;
  const norm = (name: string, source: string | null, width: number, columns: Int32Array | null = null) =>
    source === null ? [] : [normLayout(spec, at(`${name}.weight`), width, { ...whole(source), columns })];
  const turned = headColumns(spec, architecture);
  const headNorm = (name: string, source: string | null, count: number) => {
    const each = spec.rules.headNorm.whole ? count : 1;
    return norm(name, source, each * headDim, turned === null ? null : overHeads(turned, each));
  };
  const delta = block.attention.kind === "delta" ? block.attention : null;
  const latent = block.attention.kind === "latent" ? block.attention : null;
  return [
    ...norm("attn_norm", block.attnNorm, hidden),
    ...(delta === null ? [] : deltaTensors(delta, architecture, at)),
    ...block.linears.flatMap((linear) => linearLayouts(spec, architecture, block, linear)),
    ...headNorm("attn_q_norm", block.qNorm, heads),
    ...headNorm("attn_k_norm", block.kNorm, kvHeads),
    ...(latent === null ? [] : norm("attn_q_a_norm", latent.qNorm, latent.qRank ?? 0)),
    ...(latent === null ? [] : norm("attn_kv_a_norm", latent.kvNorm, latent.kvRank)),
    ...(block.sinks === undefined
      ? []
      : [{ name: at("attn_sinks.weight"), shape: [heads], pieces: [whole(block.sinks)], exact: true }]),
    ...norm("post_attention_norm", block.attnPostNorm, hidden),
    ...norm(architecture.mlpNorm ?? "ffn_norm", block.mlpNorm, hidden),
    ...(block.experts === undefined ? [] : expertLayouts(block.experts, at)),
    ...norm("post_ffw_norm", block.mlpPostNorm, hidden),
  ];
}

/** Weight - offset is what a checkpoint holds; the file holds the weight. */
function normLayout({ rules }: ModelSpec, name: string, width: number, piece: Piece): Layout {
  const { offset } = rules.norm;
  return {
    ...{ name, shape: [width], pieces: [piece], exact: true },
    ...(offset === 0 ? {} : { value: (value: number) => value + offset }),
  };
}

function linearLayouts(spec: ModelSpec, architecture: Architecture, block: BlockLayer, linear: LinearSpec): Layout[] {
  const at = (name: string) => `blk.${block.index}.${name}`;
  if (linear.role === "kv_b") return latentUp(spec, block.attention as LatentAttention, linear, at);
  return linearParts(spec, architecture, block, linear).flatMap(({ name, rows, columns = null }): Layout[] => {
    const out = rows?.length ?? linear.out;
    const matrix = { source: `${linear.name}.weight`, rows, columns };
    const single = linear.out === 1;
    return [
      {
        name: at(`${name}.weight`),
        // The gate of a shared expert is a vector.
        shape: single ? [linear.in] : [out, linear.in],
        pieces: [matrix],
        exact: single || name === "ssm_ba" || name === "ffn_gate_inp",
      },
      ...(linear.bias
        ? [{ name: at(`${name}.bias`), shape: [out], pieces: [biasPiece(linear, rows)], exact: true }]
        : []),
    ];
  });
}

/** A bias is read as one row: what are a weight's rows are its columns. */
const biasPiece = ({ name }: LinearSpec, rows: Int32Array | null): Piece => ({
  source: `${name}.bias`,
  rows: null,
  columns: rows,
});

/** Into which tensors a linear's rows go. */
export function linearParts(
  spec: ModelSpec,
  architecture: Architecture,
  block: BlockLayer,
  { role, out }: Pick<LinearSpec, "role" | "out">,
): Part[] {
  const { heads, kvHeads, headDim } = spec.shape;
  const turned = headColumns(spec, architecture);
  const rows = (count: number) => (turned === null ? null : overHeads(turned, count));
  if (block.attention.kind === "delta") {
    const parts = deltaOrder(block.attention, architecture, role);
    if (parts !== null) return parts;
  }
  switch (role) {
    case "q":
    case "q_b":
      return [{ name: NAMES[role]!, rows: rows(out / (turned?.length ?? 1)) }];
    case "k":
      return [{ name: "attn_k", rows: rows(kvHeads) }];
    case "kv_a":
      return [{ name: NAMES[role]!, rows: latentKeyRows(block.attention as LatentAttention, turned) }];
    case "qkv": {
      const [q, k, v] = spec.rules.qkvByKvHead
        ? kvHeadRows(spec.shape)
        : ([0, heads, heads + kvHeads] as const).map((first, part) =>
            range(first * headDim, (part === 0 ? heads : kvHeads) * headDim),
          );
      const order = (own: Int32Array, count: number) => {
        const over = rows(count);
        return over === null ? own : over.map((row) => own[row]!);
      };
      const parts = [order(q!, heads), order(k!, kvHeads), v!];
      if (architecture.fused) {
        const all = sequence(parts);
        return [{ name: NAMES[role]!, rows: all.every((row, i) => row === i) ? null : all }];
      }
      return ["attn_q", "attn_k", "attn_v"].map((name, i) => ({ name, rows: parts[i]! }));
    }
    default: {
      const name = NAMES[role];
      if (name === undefined) throw new Error(`no place for ${role}`);
      return [{ name: block.experts !== undefined && SHARED.has(role) ? `${name}_shexp` : name, rows: null }];
    }
  }
}

/** Behind the latent vector's rows stands the key's part with positions, as one head. */
function latentKeyRows({ kvRank, turning }: LatentAttention, turned: Int32Array | null): Int32Array | null {
  if (turned === null) return null;
  const plain = turned.length - turning;
  return sequence([range(0, kvRank), turned.slice(plain).map((column) => column - plain + kvRank)]);
}

/** k's part of each head turned, so that queries can be brought to the latent vector; v's as it is. */
function latentUp(
  { shape: { heads } }: ModelSpec,
  { kvRank, plain, value }: LatentAttention,
  linear: LinearSpec,
  at: (name: string) => string,
): Layout[] {
  const source = `${linear.name}.weight`;
  const each = plain + value;
  const rowsOf = (first: number, count: number) =>
    sequence(Array.from({ length: heads }, (_, head) => range(head * each + first, count)));
  return [
    {
      name: at("attn_k_b.weight"),
      shape: [heads, kvRank, plain],
      pieces: [{ source, rows: rowsOf(0, plain), columns: null, turnedHeads: heads }],
      exact: false,
    },
    {
      name: at("attn_v_b.weight"),
      shape: [heads, value, kvRank],
      pieces: [{ source, rows: rowsOf(plain, value), columns: null }],
      exact: false,
    },
  ];
}

function expertLayouts(experts: ExpertsSpec, at: (name: string) => string): Layout[] {
  const { count, router, packed } = experts;
  const numbers = Array.from({ length: count }, (_, expert) => expert);
  const route: Layout[] = [
    {
      name: at("ffn_gate_inp.weight"),
      shape: [count, router.linear.in],
      pieces: [whole(`${router.linear.name}.weight`)],
      exact: true,
    },
    ...(router.linear.bias
      ? [{ name: at("ffn_gate_inp.bias"), shape: [count], pieces: [whole(`${router.linear.name}.bias`)], exact: true }]
      : []),
    ...(router.correction === null
      ? []
      : [{ name: at("exp_probs_b.bias"), shape: [count], pieces: [whole(router.correction)], exact: true }]),
  ];
  const stacks = experts.linears.flatMap((linear) =>
    expertParts(experts, linear).flatMap(({ name, rows }): Layout[] => {
      const out = rows?.length ?? linear.out;
      const each = (suffix: string, order: Pick<Piece, "rows" | "columns">) =>
        numbers.map((expert): Piece => ({ source: ofExpert(`${linear.name}.${suffix}`, expert), ...order }));
      return [
        {
          name: at(`${name}.weight`),
          shape: [count, out, linear.in],
          pieces: each("weight", { rows, columns: null }),
          exact: false,
          ...(packed === null ? {} : { packed }),
        },
        ...(linear.bias
          ? [
              {
                name: at(`${name}.bias`),
                shape: [count, out],
                pieces: each("bias", { rows: null, columns: rows }),
                exact: true,
              },
            ]
          : []),
      ];
    }),
  );
  return [...route, ...stacks];
}

/** Into which stacks the rows of an expert's linear go. */
export function expertParts({ interleaved }: ExpertsSpec, { role, out }: Pick<LinearSpec, "role" | "out">): Part[] {
  if (role !== "gate_up") return [{ name: `${NAMES[role]}_exps`, rows: null }];
  const half = Array.from({ length: out / 2 }, (_, row) => row);
  const rows = (part: number) =>
    Int32Array.from(half, (row) => (interleaved ? 2 * row + part : part * half.length + row));
  return [
    { name: "ffn_gate_exps", rows: rows(0) },
    { name: "ffn_up_exps", rows: rows(1) },
  ];
}
