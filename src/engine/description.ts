// What an engine is told of a model: rules of the whole, then each segment's layers. Names of tensors are the checkpoint's.

/** The numbers that all blocks share. */
export interface EngineArch {
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
  readonly rmsEps: number;
  /** Rules of positions, which blocks name by number. */
  readonly rotary: readonly EngineRotary[];
  readonly rotaryInterleaved: boolean;
  readonly activation: "silu" | "gelu_tanh" | "gelu";
  /** LayerNorm without bias, else RMSNorm; `normOffset` is added to weights. */
  readonly normCentred: boolean;
  readonly normOffset: number;
  readonly headNormWhole: boolean;
  readonly headNormAfterRotary: boolean;
  readonly parallel: boolean;
  readonly qkvByKvHead: boolean;
  readonly embeddingScale: number;
  readonly residualScale: number;
  readonly logitScale: number;
  /** 0: 1 / sqrt(headDim). */
  readonly scoreScale: number;
  /** 0: none. */
  readonly scoreCap: number;
  readonly logitCap: number;
  /** 0: none. */
  readonly queryScaleBeta: number;
  readonly queryScaleLength: number;
  /** The place of a row's first token, 0 or 1; and whether only blocks without positions scale their queries. */
  readonly queryScaleFirst: number;
  readonly queryScaleUnturned: boolean;
  /** Positions of a chunk, for the blocks that attend within theirs; 0: none does. */
  readonly attentionChunk: number;
  /** 0: off. Qwen (v1) in evaluation: sequences longer than this use a dynamic NTK base / log-n query scaling. */
  readonly qwenLongSeqLength: number;
  readonly qwenDynamicNtk: boolean;
  readonly qwenLogn: boolean;
}

export interface EngineRotary {
  readonly base: number;
  /** [R / 2], R at most headDim */
  readonly invFreq: Float64Array;
  readonly attentionScaling: number;
  /** Of sequences longer than longFrom; empty: the same. */
  readonly longInvFreq: Float64Array;
  readonly longFrom: number;
  /** Dynamic NTK for those; 0: none. */
  readonly dynamicFactor: number;
}

export type EngineLayer =
  | {
      readonly kind: "embedding";
      readonly weight: string;
      /** The module's path. */
      readonly name: string;
      /** The matrix that the whole table is; null: it is frozen. */
      readonly trained: string | null;
      readonly lora: EngineLora | null;
      /** Tokens whose rows are trained, each once; null: none. */
      readonly tokenRows: Int32Array | null;
      /** A token whose row of the table, or of A, is not trained (padding_idx); -1: none. */
      readonly padding: number;
    }
  | {
      readonly kind: "block";
      readonly index: number;
      /** null: none. */
      readonly attnNorm: string | null;
      readonly attnPostNorm: string | null;
      readonly mlpNorm: string | null;
      readonly mlpPostNorm: string | null;
      readonly qNorm: string | null;
      readonly kNorm: string | null;
      /** Norms of q and k without weights. */
      readonly plainHeadNorms: boolean;
      /** Number of arch.rotary; -1: none. */
      readonly rotary: number;
      /** 0: no window. */
      readonly slidingWindow: number;
      /** A token sees those of its own chunk alone, arch.attentionChunk positions. */
      readonly chunked: boolean;
      /** A score of each head that has no value; absent: none. */
      readonly sinks?: string;
      /** q's product holds, a head each, its query and a gate on its output. */
      readonly gated: boolean;
      /** At most one of the two is there; neither: softmax attention over q, k and v. */
      readonly delta: EngineDeltaNet | null;
      readonly latent: EngineLatent | null;
      /** With experts, the MLP's are those that every token goes through. */
      readonly linears: readonly EngineLinear[];
      readonly experts?: EngineExperts;
    }
  | { readonly kind: "norm"; readonly weight: string }
  | {
      readonly kind: "head";
      readonly weight: string;
      readonly lora: EngineLora | null;
      readonly name: string;
      /** The matrix that the whole weight is; null: it is frozen. */
      readonly trained: string | null;
      /** Tokens whose rows are trained, each once, of a weight that is the embedding's; null: none. */
      readonly tokenRows: Int32Array | null;
    };

/** A gated delta net: sizes, and the names of its weights beside linears. */
export interface EngineDeltaNet {
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Of the convolution. */
  readonly taps: number;
  /** [2 keyHeads keyDim + valueHeads valueDim, 1, taps] */
  readonly conv: string;
  /** [valueHeads] */
  readonly aLog: string;
  readonly dtBias: string;
  /** [valueDim] */
  readonly norm: string;
}

/** Multi-head latent attention. A head of q and k has `plain` columns without positions, then `turning` ones with. */
export interface EngineLatent {
  readonly heads: number;
  readonly plain: number;
  readonly turning: number;
  /** Columns of a head of v. */
  readonly value: number;
  /** 0: q comes from the input, not over a latent vector. */
  readonly qRank: number;
  readonly kvRank: number;
  readonly qNorm: string | null;
  readonly kvNorm: string;
  readonly normEps: number;
}

export interface EngineLinear {
  readonly role:
    | ("qkv" | "q" | "k" | "v" | "o" | "gate_up" | "gate" | "up" | "down" | "router" | "shared_gate")
    | ("delta_qkv" | "delta_z" | "delta_b" | "delta_a" | "delta_qkvz" | "delta_ba")
    | ("q_a" | "q_b" | "kv_a" | "kv_b");
  readonly name: string;
  readonly in: number;
  readonly out: number;
  readonly bias: boolean;
  readonly lora: EngineLora | null;
  /** The matrix that the bias is; absent: it is frozen. */
  readonly trainedBias?: string;
}

/** A mixture of experts. */
export interface EngineExperts {
  readonly route: {
    readonly experts: number;
    readonly chosen: number;
    readonly score: "softmax" | "sigmoid" | "softmax_of_chosen" | "sigmoid_of_chosen";
    readonly normalise: boolean;
    /** Experts stand in groups, of which the best are chosen from: by each one's best score, or the sum of its two best. */
    readonly groups: number;
    readonly chosenGroups: number;
    readonly twoBest: boolean;
    readonly factor: number;
  };
  readonly router: EngineLinear;
  /** [N], added to scores when experts are chosen; null: none. */
  readonly correction: string | null;
  readonly activation: EngineArch["activation"];
  /** gate_up's rows are gate's and up's in turn. */
  readonly interleaved: boolean;
  /** Routing weights stand on what gate and up take, else on what down takes. */
  readonly weightBefore: boolean;
  /** Of gate and up, with alpha in the gate's sigmoid (gpt-oss); 0: none. */
  readonly limit: number;
  readonly alpha: number;
  /** Of one expert; "*" in names stands for its number. */
  readonly linears: readonly EngineLinear[];
  /** Pairs of all experts at once; r is that of all together. */
  readonly gateUpLora: EngineExpertLora | null;
  readonly downLora: EngineExpertLora | null;
}

export interface EngineExpertLora extends EngineLora {
  readonly name: string;
  /** lora_A is [N r, out], lora_B [in, r N]. */
  readonly crossed: boolean;
}

export interface EngineLora {
  readonly r: number;
  /** alpha / r, or alpha / sqrt(r) with rsLoRA. */
  readonly scale: number;
  readonly dropout: number;
  /** Position of this pair among all pairs of the whole model: the dropout generator's `module` key, independent of placement. */
  readonly moduleId: number;
  /** DoRA. Absent: no. */
  readonly dora?: boolean;
}

export interface SegmentDescription {
  /** Consecutive layers of the model. */
  readonly layers: readonly EngineLayer[];
  /** How many of its blocks, evenly spread (j of B where j k mod B < k), leave their activations in the host's memory; absent: 0. */
  readonly offloadedBlocks?: number;
  /** Of the others, how many (the first ones) keep only their input, on the host too if any is offloaded, and recompute in the backward pass. */
  readonly checkpointedBlocks: number;
  /** How many of its blocks (the first ones) keep their quantised weights in the compute dtype too: same results, no dequantisation. */
  readonly cachedBlocks: number;
  /** GPUs: the blocks' products multiply e4m3 numbers where their widths suit; absent: no. */
  readonly fp8?: boolean;
  /** Whether backward must produce the gradient of the segment's input (something trainable lies before it). */
  readonly needsInputGrad: boolean;
}
