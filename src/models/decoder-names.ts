/** How a family names the parts of its module tree, and which parts it has. Paths of the tree's ends are whole, others are leaves. */
export interface DecoderNames {
  readonly embedding: string;
  readonly layers: string;
  readonly norm: string;
  readonly head: string;
  /** The module that holds rotary's buffers; null: the blocks' own, or none. */
  readonly rotary: string | null;
  readonly attention: string;
  readonly mlp: string;
  /** One fused product, or three. */
  readonly qkv: string | readonly [q: string, k: string, v: string];
  readonly output: string;
  /** One fused product, or two. */
  readonly gateUp: string | readonly [gate: string, up: string];
  readonly down: string;
  /** The leaf of the MLP's activation; null: no module of its own. */
  readonly activation: string | null;
  /** Norms of q and k; null: none. */
  readonly headNorms: readonly [q: string, k: string] | null;
  /** Norms of a block, null where there is none. */
  readonly norms: {
    readonly attn: string | null;
    readonly attnPost: string | null;
    readonly mlp: string | null;
    readonly mlpPost: string | null;
  };
  /** Attention's output projection is registered before its inputs (Phi-3). */
  readonly outputFirst: boolean;
  /** Ends of class names behind the family's prefix. */
  readonly classes: { readonly model: string; readonly causal: string; readonly layer: string; readonly norm: string };
}

export const LLAMA_NAMES: DecoderNames = {
  embedding: "model.embed_tokens",
  layers: "model.layers",
  norm: "model.norm",
  head: "lm_head",
  rotary: "model.rotary_emb",
  attention: "self_attn",
  mlp: "mlp",
  qkv: ["q_proj", "k_proj", "v_proj"],
  output: "o_proj",
  gateUp: ["gate_proj", "up_proj"],
  down: "down_proj",
  activation: "act_fn",
  headNorms: null,
  norms: { attn: "input_layernorm", attnPost: null, mlp: "post_attention_layernorm", mlpPost: null },
  outputFirst: false,
  classes: { model: "Model", causal: "ForCausalLM", layer: "DecoderLayer", norm: "RMSNorm" },
};
