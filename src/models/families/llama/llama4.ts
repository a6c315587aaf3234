import { z } from "zod";
import { type AttentionParts, type AttentionPlace, softmaxParts } from "../../attention-parts.ts";
import { contradiction, extent, nullish, parseConfig, unsupported, width } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { type DecoderConfig, typesOfLayers } from "../../decoder-config.ts";
import type { FamilyExperts } from "../../decoder-experts.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig } from "../moe-config.ts";
import { type TextPart, textPartSpec } from "../text-part.ts";

const blockNumbers = nullish(z.array(z.number().int().nonnegative()).max(4096));

const config = moeConfig.extend({
  // Without blocks of experts (Llama Guard 4) it says 0.
  num_local_experts: nullish(z.number().int().nonnegative().max(1024)),
  intermediate_size_mlp: nullish(width),
  moe_layers: blockNumbers,
  interleave_moe_layer_step: nullish(z.number().int().nonnegative().max(4096)),
  use_qk_norm: nullish(z.boolean()),
  no_rope_layers: nullish(z.array(z.number().int().min(0).max(1)).max(4096)),
  no_rope_layer_interval: nullish(extent(4096)),
  attention_chunk_size: nullish(extent(2 ** 31 - 1)),
  // The first files have 4 for true.
  attn_temperature_tuning: nullish(z.union([z.boolean(), z.number()])),
  floor_scale: nullish(extent(2 ** 31 - 1)),
  attn_scale: nullish(z.number().min(-1e6).max(1e6)),
});
type Config = z.infer<typeof config>;

const READS = [
  ...MOE_KEYS,
  ...["use_qk_norm", "no_rope_layers", "attention_chunk_size"],
  ...["attn_temperature_tuning", "moe_layers", "interleave_moe_layer_step"],
];

const CLASSES = { model: "TextModel", causal: "ForCausalLM", layer: "TextDecoderLayer", norm: "TextRMSNorm" } as const;

const ALONE: TextPart = { family: "llama4_text", prefix: "Llama4" };

/** Llama 4 with its vision tower, of which the text model is trained: a whole Llama4ForCausalLM lies under language_model. */
export function llama4Spec(given: unknown, generation: unknown): ModelSpec {
  return textPartSpec(
    given,
    generation,
    { family: "llama4", prefix: "Llama4" },
    { llama4_text: llama4TextSpec },
    {
      root: "language_model.model",
      head: "language_model.lm_head",
      skipped: ["vision_model.", "multi_modal_projector."],
      headOutside: false,
    },
  );
}

/**
 * Llama 4's text model (defaults of transformers' Llama4TextConfig): blocks with positions attend within chunks, the others know none and
 * scale their queries by place; experts of which a token's own is chosen by logit and weighed by its sigmoid, beside a shared one.
 */
export function llama4TextSpec(given: unknown, generation: unknown, part: TextPart = ALONE): ModelSpec {
  const parsed = parseConfig(config, given);
  const turns = turningBlocks(parsed);
  const types = typesOfLayers(parsed, ["full_attention", "chunked_attention"], (block) =>
    turns(block) ? "chunked_attention" : "full_attention",
  );
  const chunk = parsed.attention_chunk_size === undefined ? 8192 : parsed.attention_chunk_size;
  if (chunk === null && types.includes("chunked_attention")) {
    contradiction("layer_types has chunked_attention but attention_chunk_size is null");
  }
  const { headDim, ...shape } = decoderShape(given, parsed, {
    headDim: 128,
    kvHeads: 8,
    eps: 1e-5,
    maxPositions: 131072,
    tied: false,
    rope: { base: 500000 },
  });
  const bias = parsed.attention_bias ?? false;
  const normed = parsed.use_qk_norm ?? true;
  const beta = (parsed.attn_temperature_tuning ?? true) ? (parsed.attn_scale ?? 0.1) : 0;
  const dense: DecoderConfig = { ...parsed, intermediate_size: parsed.intermediate_size_mlp ?? 16384 };
  return decoderSpec(dense, generation, {
    ...part,
    ...shape,
    headDim,
    bias: { output: bias },
    blockRotary: (block) => (turns(block) ? 0 : null),
    chunked: (block) => types[block] === "chunked_attention",
    attention: (block, place) =>
      attention(
        place,
        { heads: parsed.num_attention_heads, kvHeads: shape.kvHeads, headDim, bias },
        normed && turns(block),
      ),
    names: {
      mlp: "feed_forward",
      activation: "activation_fn",
      ...part.names,
      classes: { ...CLASSES, ...causal(part) },
    },
    rules: {
      rotaryInterleaved: true,
      headNorm: { whole: false, afterRotary: true },
      queryScale: beta === 0 ? null : { beta, length: parsed.floor_scale ?? 8192, first: 1, blocks: "unturned" },
      attentionChunk: types.includes("chunked_attention") ? chunk : null,
    },
    experts: expertsOf(parsed),
    reads: READS,
  });
}

const causal = ({ names }: TextPart) => (names?.classes === undefined ? {} : { causal: names.classes.causal });

/** no_rope_layers has 1 where a block turns, whatever its name says. */
function turningBlocks(parsed: Config): (block: number) => boolean {
  const given = parsed.no_rope_layers ?? [];
  if (given.length === 0) {
    const interval = parsed.no_rope_layer_interval ?? 4;
    return (block) => (block + 1) % interval !== 0;
  }
  if (given.length < parsed.num_hidden_layers) {
    contradiction(`no_rope_layers has ${given.length} entries for num_hidden_layers ${parsed.num_hidden_layers}`);
  }
  return (block) => given[block] === 1;
}

function attention(
  place: AttentionPlace,
  sizes: { readonly heads: number; readonly kvHeads: number; readonly headDim: number; readonly bias: boolean },
  normed: boolean,
): AttentionParts {
  const parts = softmaxParts(place, { ...sizes, outputBias: sizes.bias, gated: false });
  const own = { ...parts, className: "TextAttention" };
  if (!normed) return own;
  const norm = { name: `${place.block}.${parts.leaf}.qk_norm`, className: "Llama4TextL2Norm" };
  return { ...own, plainHeadNorms: true, modules: [...parts.modules, norm] };
}

function expertsOf(parsed: Config): (block: number) => FamilyExperts | null {
  const { num_hidden_layers: blocks, moe_layers: given } = parsed;
  const step = parsed.interleave_moe_layer_step ?? 1;
  const named = given ?? null;
  if (named === null && step === 0) unsupported("interleave_moe_layer_step", 0, "1 or more, without moe_layers");
  const sparse = new Set(named ?? Array.from({ length: Math.floor(blocks / step) }, (_, i) => (i + 1) * step - 1));
  if (![...sparse].some((block) => block < blocks)) return () => null;
  const local =
    parsed.num_local_experts === 0
      ? contradiction("num_local_experts is 0 beside blocks of experts")
      : parsed.num_local_experts;
  const { count, chosen } = expertCounts(
    { ...parsed, num_experts: null, n_routed_experts: null, num_local_experts: local },
    { count: 16, chosen: 1 },
  );
  const experts: FamilyExperts = {
    count,
    ffn: parsed.intermediate_size,
    router: "router",
    route: { chosen, score: "sigmoid_of_chosen", normalise: false },
    shared: { name: "shared_expert", ffn: parsed.intermediate_size },
    leaves: ["gate_up_proj", "down_proj"],
    transposed: true,
    storedAtOnce: true,
    weighsInput: true,
    crossedPairs: true,
    routerFirst: false,
  };
  return (block) => (sparse.has(block) ? experts : null);
}
