import { z } from "zod";
import { type AttentionParts, type AttentionPlace, deltaParts } from "../../attention-parts.ts";
import { contradiction, extent, nullish, parseConfig, unsupported, width } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { typesOfLayers } from "../../decoder-config.ts";
import type { FamilyExperts } from "../../decoder-experts.ts";
import { decoderShape } from "../../decoder-shape.ts";
import type { ModelSpec } from "../../spec.ts";
import { expertCounts, MOE_KEYS, moeConfig, sparseBlocks } from "../moe-config.ts";
import { type TextPart, textPartSpec } from "../text-part.ts";

const config = moeConfig.extend({
  num_experts: nullish(z.number().int().nonnegative().max(1024)),
  full_attention_interval: nullish(extent(4096)),
  linear_conv_kernel_dim: nullish(z.number().int().min(2).max(16)),
  linear_key_head_dim: nullish(width),
  linear_value_head_dim: nullish(width),
  linear_num_key_heads: nullish(extent(4096)),
  linear_num_value_heads: nullish(extent(4096)),
});
type Config = z.infer<typeof config>;

/** What tells the two generations apart. */
interface Generation extends TextPart {
  readonly kvHeads: number;
  /** in_proj_qkvz and in_proj_ba, else four projections. */
  readonly fused: boolean;
  readonly experts?: MoeDefaults;
}

interface MoeDefaults {
  readonly count: number;
  readonly chosen: number;
  /** norm_topk_prob, decoder_sparse_step and mlp_only_layers are read; else weights are always divided by their sum, in every block. */
  readonly asked: boolean;
  readonly storedAtOnce: boolean;
}

/** Qwen3-Next (defaults of transformers' Qwen3NextConfig). */
export function qwen3NextSpec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "qwen3_next", prefix: "Qwen3Next", kvHeads: 2, fused: true };
  const experts = { count: 512, chosen: 10, asked: true, storedAtOnce: false };
  return gatedDeltaSpec(given, generation, { ...own, experts });
}

const TEXT_NAMES = { classes: { model: "TextModel", causal: "ForCausalLM", layer: "DecoderLayer", norm: "RMSNorm" } };
const ALONE: TextPart = { family: "qwen3_5_text", prefix: "Qwen3_5", names: TEXT_NAMES };
const MOE_ALONE: TextPart = { family: "qwen3_5_moe_text", prefix: "Qwen3_5Moe", names: TEXT_NAMES };

/** Qwen3.5's dense text model (defaults of transformers' Qwen3_5TextConfig). */
export function qwen35TextSpec(given: unknown, generation: unknown, part: TextPart = ALONE): ModelSpec {
  return gatedDeltaSpec(given, generation, { ...part, kvHeads: 4, fused: false });
}

/** Qwen3.5's text model with experts (defaults of transformers' Qwen3_5MoeTextConfig), which are stored at once. */
export function qwen35MoeTextSpec(given: unknown, generation: unknown, part: TextPart = MOE_ALONE): ModelSpec {
  const experts = { count: 256, chosen: 8, asked: false, storedAtOnce: true };
  // No block has an MLP alone: the width of one is not written out.
  const config = { intermediate_size: 1, ...Object(given) };
  return gatedDeltaSpec(config, generation, { ...part, kvHeads: 2, fused: false, experts });
}

/** Qwen3.5 with experts and its vision tower. */
export function qwen35MoeSpec(given: unknown, generation: unknown): ModelSpec {
  const own = { family: "qwen3_5_moe", prefix: "Qwen3_5Moe" };
  return textPartSpec(given, generation, own, { qwen3_5_moe_text: qwen35MoeTextSpec });
}

/** Qwen3.5 with its vision tower, of which the text model is trained: text stands at one position in all of mrope's three parts. */
export function qwen35Spec(given: unknown, generation: unknown): ModelSpec {
  const readers = { qwen3_5_text: qwen35TextSpec };
  return textPartSpec(given, generation, { family: "qwen3_5", prefix: "Qwen3_5" }, readers);
}

/** Three gated delta nets to one full attention with a gate on its output, norms times 1 + weight, a quarter of each head turning. */
function gatedDeltaSpec(given: unknown, generation: unknown, own: Generation): ModelSpec {
  const parsed = parseConfig(config, given);
  if (parsed["attn_output_gate"] === false) unsupported("attn_output_gate", false, "true");
  const act = parsed["hidden_act"] ?? "silu";
  if (act !== "silu" && act !== "swish") unsupported("hidden_act", act, "silu");
  const { kvHeads, fused, experts: defaults, ...part } = own;
  const experts = defaults === undefined || parsed.num_experts === 0 ? null : nextExperts(parsed, defaults);
  // Qwen3.5 has experts in every block.
  const sparse = defaults?.asked === true ? sparseBlocks(parsed) : () => true;
  const bias = parsed.attention_bias ?? false;
  const interval = parsed.full_attention_interval ?? 4;
  const types = typesOfLayers(parsed, ["linear_attention", "full_attention"], (block) =>
    (block + 1) % interval === 0 ? "full_attention" : "linear_attention",
  );
  return decoderSpec(parsed, generation, {
    ...part,
    bias: { qkv: bias, output: bias },
    ...decoderShape(given, parsed, {
      headDim: 256,
      kvHeads,
      eps: 1e-6,
      maxPositions: 32768,
      tied: false,
      rope: { base: 10000, partial: 0.25 },
    }),
    attention: (block, place) => (types[block] === "linear_attention" ? deltaNet(parsed, place, fused) : null),
    gatedAttention: true,
    ...(experts === null ? {} : { experts: (block: number) => (sparse(block) ? experts : null) }),
    names: { headNorms: ["q_norm", "k_norm"], ...part.names },
    rules: { norm: { kind: "rms", offset: 1 } },
    skipped: part.skipped ?? ["mtp."],
    reads: [...(defaults === undefined ? [] : MOE_KEYS), "partial_rotary_factor", "attn_output_gate"],
  });
}

/** Qwen2-MoE's experts beside a shared one with a gate of its own. */
function nextExperts(parsed: Config, { asked, storedAtOnce, ...defaults }: MoeDefaults): FamilyExperts {
  const { count, chosen } = expertCounts(parsed, defaults);
  const normalise = asked ? (parsed.norm_topk_prob ?? true) : true;
  if (parsed.norm_topk_prob === false && !asked) unsupported("norm_topk_prob", false, "true");
  return {
    count,
    ffn: parsed.moe_intermediate_size ?? 512,
    router: "gate",
    route: { chosen, score: "softmax", normalise },
    shared: {
      name: "shared_expert",
      ffn: parsed.shared_expert_intermediate_size ?? 512,
      gate: "shared_expert_gate",
    },
    storedAtOnce,
    routerFirst: true,
  };
}

function deltaNet(parsed: Config, place: AttentionPlace, fused: boolean): AttentionParts {
  const keyHeads = parsed.linear_num_key_heads ?? 16;
  const valueHeads = parsed.linear_num_value_heads ?? 32;
  if (valueHeads % keyHeads !== 0) {
    contradiction(`linear_num_value_heads ${valueHeads} is no multiple of linear_num_key_heads ${keyHeads}`);
  }
  return deltaParts(place, {
    keyHeads,
    valueHeads,
    keyDim: parsed.linear_key_head_dim ?? 128,
    valueDim: parsed.linear_value_head_dim ?? 128,
    taps: parsed.linear_conv_kernel_dim ?? 4,
    fused,
  });
}
