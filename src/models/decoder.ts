import {
  type AttentionParts,
  type AttentionPlace,
  type Projection,
  projections,
  softmaxParts,
} from "./attention-parts.ts";
import { attentionVectors } from "./block-vectors.ts";
import { activationNamed, configDtype, contradiction, endTokenIds, rejectForeignSettings } from "./config.ts";
import type { DecoderConfig } from "./decoder-config.ts";
import { expertModules, expertTensors, type FamilyExperts, familyExperts, sharedLinears } from "./decoder-experts.ts";
import { type DecoderNames, LLAMA_NAMES } from "./decoder-names.ts";
import { checkpointQuantization } from "./quantization.ts";
import { ropeRemarks } from "./rope.ts";
import { computeRules } from "./rules.ts";
import type {
  BlockLayer,
  ComputeRules,
  LayerSpec,
  LinearSpec,
  ModelSpec,
  ModuleSpec,
  RopeSpec,
  TensorSpec,
} from "./spec.ts";
import { linearTensors, parameter } from "./tensors.ts";

/** What one family adds to the shared tree. */
export interface DecoderFamily {
  readonly family: string;
  /** Class names are built from it: `${prefix}ForCausalLM`, `${prefix}DecoderLayer`, … */
  readonly prefix: string;
  /** Biases of q, k and v, of attention's output, of gate and up, and of down; absent: none. */
  readonly bias?: Partial<Record<"qkv" | "output" | "gateUp" | "down", boolean>>;
  readonly headDim: number;
  readonly kvHeads: number;
  readonly eps: number;
  readonly maxPositions: number;
  readonly tied: boolean;
  readonly rotary: readonly RopeSpec[];
  /** Of each block; absent: rule 0 everywhere, no window. */
  readonly blockRotary?: (block: number) => number | null;
  readonly slidingWindow?: (block: number) => number | null;
  /** Blocks in which a token sees its own chunk alone; absent: none. */
  readonly chunked?: (block: number) => boolean;
  /** The attention of each block; null: softmax over q, k and v, as in Llama; absent: that everywhere. */
  readonly attention?: (block: number, place: AttentionPlace) => AttentionParts | null;
  /** q's projection gives a gate on each head's output too. */
  readonly gatedAttention?: boolean;
  /** What is named otherwise than in Llama. */
  readonly names?: Partial<DecoderNames>;
  /** What is computed otherwise than in Llama. The activation is read from hidden_act unless it is said here. */
  readonly rules?: Partial<Omit<ComputeRules, "rotary">>;
  /** Experts of a block; absent or null: an MLP. */
  readonly experts?: (block: number) => FamilyExperts | null;
  /** Whether the embedding has a padding_idx, pad_token_id; absent: yes. */
  readonly padsEmbedding?: boolean;
  /** The leaf of attention's sinks; absent: none. */
  readonly sinks?: string;
  /** Beginnings of names of tensors that belong to other parts of the checkpoint (a vision tower). */
  readonly skipped?: readonly string[];
  /** Number-changing keys of config.json that the family reads (config.ts). */
  readonly reads?: readonly string[];
}

/** Everything that building the spec needs of one family. */
interface Tree {
  readonly config: DecoderConfig;
  readonly family: DecoderFamily;
  readonly names: DecoderNames;
  readonly rules: ComputeRules;
}

export function decoderSpec(config: DecoderConfig, generation: unknown, family: DecoderFamily): ModelSpec {
  rejectForeignSettings(config, family.reads);
  const { headDim, kvHeads } = family;
  const heads = config.num_attention_heads;
  if (heads % kvHeads !== 0) {
    contradiction(`num_attention_heads ${heads} is no multiple of num_key_value_heads ${kvHeads}`);
  }
  if (headDim % 2 !== 0) contradiction(`head_dim ${headDim} is odd, rotary embedding needs pairs`);

  const names = { ...LLAMA_NAMES, ...family.names };
  const activation = activationNamed("hidden_act", config["hidden_act"], "silu");
  const tree: Tree = { config, family, names, rules: computeRules(family.rotary, { activation, ...family.rules }) };
  const parts = Array.from({ length: config.num_hidden_layers }, (_, index) => attentionOf(tree, index));
  const blocks = parts.map((part, index) => decoderBlock(tree, part, index));
  const embedding = `${names.embedding}.weight`;
  const headWeight = `${names.head}.weight`;
  const layers: LayerSpec[] = [
    { kind: "embedding", name: names.embedding, weight: embedding, ...paddingOf(tree) },
    ...blocks,
    { kind: "norm", name: names.norm, weight: `${names.norm}.weight` },
    { kind: "head", name: names.head, weight: family.tied ? embedding : headWeight, tied: family.tied },
  ];
  return {
    family: family.family,
    architecture: `${family.prefix}${names.classes.causal}`,
    shape: {
      hidden: config.hidden_size,
      heads,
      kvHeads,
      headDim,
      ffn: config.intermediate_size,
      vocab: config.vocab_size,
      blocks: blocks.length,
      rmsEps: family.eps,
    },
    rules: tree.rules,
    modules: decoderModules(tree, blocks, parts),
    tensors: decoderTensors(tree, blocks, parts),
    noSplitModuleClasses: [`${family.prefix}${names.classes.layer}`],
    tied: family.tied ? [[headWeight, embedding]] : [],
    skipped: family.skipped ?? [],
    layers,
    dtype: configDtype(config, "float32"),
    quantization: checkpointQuantization(config),
    lossRule: "step-token-mean",
    eosTokenIds: endTokenIds(config, generation),
    maxPositions: family.maxPositions,
    remarks: ropeRemarks(config),
  };
}

/** transformers' decoders make their embedding with pad_token_id as padding_idx; counted from the end where it is negative, as torch does. */
function paddingOf({ config, family }: Tree): { readonly padding?: number } {
  const id = config.pad_token_id ?? null;
  if (id === null || family.padsEmbedding === false) return {};
  const padding = id < 0 ? config.vocab_size + id : id;
  return padding >= 0 && padding < config.vocab_size ? { padding } : {};
}

function attentionOf({ config, family, names }: Tree, index: number): AttentionParts {
  const place = {
    block: `${names.layers}.${index}`,
    prefix: family.prefix,
    hidden: config.hidden_size,
    names,
  };
  const own = family.attention?.(index, place) ?? null;
  if (own !== null) return own;
  return softmaxParts(place, {
    heads: config.num_attention_heads,
    kvHeads: family.kvHeads,
    headDim: family.headDim,
    bias: family.bias?.qkv ?? false,
    outputBias: family.bias?.output ?? false,
    gated: family.gatedAttention ?? false,
  });
}

function decoderBlock({ config, family, names }: Tree, parts: AttentionParts, index: number): BlockLayer {
  const name = `${names.layers}.${index}`;
  const mlp = `${name}.${names.mlp}`;
  const experts = family.experts?.(index) ?? null;
  const norm = (leaf: string | null) => (leaf === null ? null : `${name}.${leaf}.weight`);
  return {
    kind: "block",
    name,
    index,
    attnNorm: norm(names.norms.attn),
    attnPostNorm: norm(names.norms.attnPost),
    mlpNorm: norm(names.norms.mlp),
    mlpPostNorm: norm(names.norms.mlpPost),
    qNorm: parts.headNorms?.[0] ?? null,
    kNorm: parts.headNorms?.[1] ?? null,
    ...(parts.plainHeadNorms === true ? { plainHeadNorms: true } : {}),
    ...(family.sinks === undefined ? {} : { sinks: `${name}.${names.attention}.${family.sinks}` }),
    linears: [
      ...parts.linears,
      ...(experts === null ? mlpLinears(config, family, names, mlp) : sharedLinears(experts, mlp, config.hidden_size)),
    ],
    ...(experts === null ? {} : { experts: familyExperts(experts, mlp, config.hidden_size) }),
    rotary: family.blockRotary === undefined ? 0 : family.blockRotary(index),
    slidingWindow: windowOf(family, index),
    ...(family.chunked?.(index) === true ? { chunked: true } : {}),
    attention: parts.attention,
  };
}

function windowOf({ slidingWindow }: DecoderFamily, index: number): number | null {
  const window = slidingWindow?.(index) ?? null;
  if (window === 0) contradiction(`sliding_window 0 leaves block ${index} no key`);
  return window;
}

function mlpLinears(config: DecoderConfig, family: DecoderFamily, names: DecoderNames, path: string): LinearSpec[] {
  const { hidden_size: hidden, intermediate_size: ffn } = config;
  const { gateUp } = names;
  const widths: readonly Projection[] =
    typeof gateUp === "string"
      ? [["gate_up", gateUp, 2 * ffn]]
      : [
          ["gate", gateUp[0], ffn],
          ["up", gateUp[1], ffn],
        ];
  return [
    ...projections(path, hidden, family.bias?.gateUp ?? false, widths),
    ...projections(path, ffn, family.bias?.down ?? false, [["down", names.down, hidden]]),
  ];
}

const ACTIVATION_CLASSES: Readonly<Record<ComputeRules["activation"], string>> = {
  silu: "SiLUActivation",
  gelu: "GELUActivation",
  gelu_tanh: "GELUTanh",
};

/** Norms in the order that classes of this kind register them. */
function normNames({ norms }: DecoderNames): string[] {
  return [norms.attn, norms.attnPost, norms.mlp, norms.mlpPost].filter((name) => name !== null);
}

/** Modules above `path` that are no list of blocks: "a" and "a.b" of "a.b.c". */
function ancestors(path: string): string[] {
  const parts = path.split(".");
  return parts.slice(0, -1).map((_, index) => parts.slice(0, index + 1).join("."));
}

function decoderModules(
  { family, names, rules }: Tree,
  blocks: readonly BlockLayer[],
  parts: readonly AttentionParts[],
): ModuleSpec[] {
  const { classes } = names;
  const norm = `${family.prefix}${classes.norm}`;
  const module = (name: string, className: string): ModuleSpec => ({ name, className });
  const mlp = (block: BlockLayer, { linears }: AttentionParts) =>
    block.linears.filter((linear) => !linears.includes(linear)).map(({ name }) => module(name, "Linear"));
  const ends = [
    module(names.embedding, "Embedding"),
    module(names.layers, "ModuleList"),
    ...blocks.flatMap((block, index) => [
      module(block.name, `${family.prefix}${classes.layer}`),
      module(`${block.name}.${parts[index]!.leaf}`, `${family.prefix}${parts[index]!.className}`),
      ...parts[index]!.modules,
      ...(block.experts === undefined
        ? [
            module(`${block.name}.${names.mlp}`, `${family.prefix}MLP`),
            ...mlp(block, parts[index]!),
            ...(names.activation === null
              ? []
              : [module(`${block.name}.${names.mlp}.${names.activation}`, ACTIVATION_CLASSES[rules.activation])]),
          ]
        : expertModules(block, `${block.name}.${names.mlp}`, family.prefix, ACTIVATION_CLASSES[rules.activation])),
      ...normNames(names).map((leaf) => module(`${block.name}.${leaf}`, norm)),
    ]),
    module(names.norm, norm),
    ...(names.rotary === null ? [] : [module(names.rotary, `${family.prefix}RotaryEmbedding`)]),
    module(names.head, "Linear"),
  ];
  const listed = new Set(ends.map(({ name }) => name));
  const all = [module("", `${family.prefix}${classes.causal}`)];
  for (const end of ends) {
    for (const name of ancestors(end.name)) {
      if (listed.has(name)) continue;
      listed.add(name);
      all.push(module(name, `${family.prefix}${classes.model}`));
    }
    all.push(end);
  }
  return all;
}

function decoderTensors(
  { config, family, names, rules }: Tree,
  blocks: readonly BlockLayer[],
  parts: readonly AttentionParts[],
): TensorSpec[] {
  const { hidden_size: hidden, vocab_size: vocab } = config;
  return [
    parameter(`${names.embedding}.weight`, [vocab, hidden]),
    ...blocks.flatMap((block, index) => [
      ...attentionTensors({ config, family, names, rules }, parts[index]!),
      ...(block.sinks === undefined ? [] : [parameter(block.sinks, [config.num_attention_heads])]),
      ...(block.experts === undefined ? [] : expertTensors(block.experts)),
      ...block.linears.filter((linear) => !parts[index]!.linears.includes(linear)).flatMap(linearTensors),
      ...normNames(names).map((leaf) => parameter(`${block.name}.${leaf}.weight`, [hidden])),
    ]),
    parameter(`${names.norm}.weight`, [hidden]),
    ...(family.tied ? [] : [parameter(`${names.head}.weight`, [vocab, hidden])]),
    ...rotaryBuffers(names.rotary, rules.rotary),
  ];
}

/** What an attention holds itself, then what its modules hold. */
function attentionTensors({ config, family, rules }: Tree, parts: AttentionParts): TensorSpec[] {
  const { headDim, kvHeads } = family;
  const width = (heads: number) => (rules.headNorm.whole ? heads * headDim : headDim);
  const heads = [config.num_attention_heads, kvHeads];
  const vectors = [
    ...(parts.headNorms ?? []).map((name, index) => ({ name, shape: [width(heads[index]!)] })),
    ...attentionVectors(parts.attention),
  ];
  const inModules = parts.modules.flatMap(({ name }) => [
    ...vectors
      .filter((vector) => vector.name === `${name}.weight`)
      .map((vector) => parameter(vector.name, vector.shape)),
    ...parts.linears.filter((linear) => linear.name === name).flatMap(linearTensors),
  ]);
  const listed = new Set(inModules.map(({ name }) => name));
  const own = vectors.filter(({ name }) => !listed.has(name)).map(({ name, shape }) => parameter(name, shape));
  return [...own, ...inModules];
}

/** Buffers of the module that turns positions, which no checkpoint holds. */
function rotaryBuffers(module: string | null, rotary: readonly RopeSpec[]): TensorSpec[] {
  if (module === null) return [];
  return rotary.flatMap(({ invFreq }, rule) =>
    ["inv_freq", "original_inv_freq"].map(
      (leaf): TensorSpec => ({
        name: `${module}.${rule === 0 ? leaf : `${leaf}_${rule}`}`,
        shape: [invFreq.length],
        kind: "buffer",
        dtype: "float32",
        persistent: false,
      }),
    ),
  );
}
