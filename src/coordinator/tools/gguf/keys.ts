import { bool, float32, list, type MetadataValue, uint32 } from "../../../formats/gguf/metadata.ts";
import type { BlockLayer, ModelSpec } from "../../../models/spec.ts";
import { type Architecture, blocksOf } from "./architectures.ts";
import { deltaInterval } from "./fit.ts";

type Keys = readonly (readonly [string, MetadataValue])[];

/** llama_expert_gating_func_type */
const GATING = { softmax: 1, sigmoid: 2, softmax_of_chosen: 3, sigmoid_of_chosen: 2 } as const;

/** A model's numbers as metadata, keys without the architecture's prefix. Rotary's keys are in rope.ts. */
export function modelKeys(spec: ModelSpec, architecture: Architecture): Keys {
  const { shape, rules } = spec;
  const blocks = blocksOf(spec);
  const latent = blocks[0]!.attention.kind === "latent" ? blocks[0]!.attention : null;
  const eps = rules.norm.kind === "layer" ? "layer_norm_epsilon" : "layer_norm_rms_epsilon";
  return [
    ["context_length", uint32(spec.maxPositions)],
    ["embedding_length", uint32(shape.hidden)],
    ["block_count", uint32(shape.blocks)],
    ["feed_forward_length", uint32(shape.ffn)],
    ["vocab_size", uint32(shape.vocab)],
    ["attention.head_count", uint32(shape.heads)],
    [`attention.${eps}`, float32(shape.rmsEps)],
    ...(latent === null
      ? ([
          ["attention.head_count_kv", uint32(shape.kvHeads)],
          ["attention.key_length", uint32(shape.headDim)],
          ["attention.value_length", uint32(shape.headDim)],
        ] as const)
      : ([
          // Queries are mapped to the latent vector, so all heads share one key.
          ["attention.head_count_kv", uint32(1)],
          ["attention.key_length", uint32(latent.kvRank + latent.turning)],
          ["attention.value_length", uint32(latent.kvRank)],
          ["attention.key_length_mla", uint32(shape.headDim)],
          ["attention.value_length_mla", uint32(latent.value)],
          ["attention.kv_lora_rank", uint32(latent.kvRank)],
          ...(latent.qRank === null ? [] : ([["attention.q_lora_rank", uint32(latent.qRank)]] as const)),
        ] as const)),
    ...factorKeys(spec, architecture),
    ...windowKeys(blocks, architecture),
    ...deltaKeys(blocks),
    ...expertKeys(blocks, architecture),
    ...Object.entries(architecture.own?.(spec) ?? {}).map(
      ([key, value]) =>
        [key, typeof value === "number" ? uint32(value) : list("int32", value)] as readonly [string, MetadataValue],
    ),
  ];
}

function factorKeys({ rules, shape }: ModelSpec, { factors, caps, queryScale }: Architecture): Keys {
  const { scale, cap } = rules;
  const keys = factors?.keys ?? [];
  const optional = (key: string, asked: boolean, value: number | null): Keys =>
    asked && value !== null ? [[key, float32(value)]] : [];
  const scores = scale.scores ?? shape.headDim ** -0.5;
  return [
    ...optional("embedding_scale", keys.includes("embedding"), scale.embedding),
    ...optional("residual_scale", keys.includes("residual"), scale.residual),
    ...optional(
      "logit_scale",
      keys.includes("logits"),
      factors?.logits === "divisor" ? 1 / scale.logits : scale.logits,
    ),
    ...optional("attention.scale", keys.includes("scores") && scale.scores !== null, scores),
    ...optional("attn_logit_softcapping", caps === true, cap.scores),
    ...optional("final_logit_softcapping", caps === true, cap.logits),
    ...optional("attention.temperature_scale", queryScale === true, rules.queryScale?.beta ?? null),
  ];
}

function windowKeys(blocks: readonly BlockLayer[], { windows }: Architecture): Keys {
  const width = blocks.find(({ slidingWindow }) => slidingWindow !== null)?.slidingWindow ?? null;
  if (windows === undefined || width === null) return [];
  return [
    ["attention.sliding_window", uint32(width)],
    ["attention.sliding_window_pattern", uint32(windows.period)],
  ];
}

/** What is said where the model has windows and the architecture none; null: nothing. */
export function windowWarning(spec: ModelSpec, { name, windows }: Architecture): string | null {
  const widths = blocksOf(spec).flatMap(({ slidingWindow }) => (slidingWindow === null ? [] : [slidingWindow]));
  if (windows !== undefined || widths.length === 0) return null;
  const least = Math.min(...widths);
  return `llama.cpp's ${name} has no attention window: of sequences longer than ${least} tokens it gives other numbers`;
}

function deltaKeys(blocks: readonly BlockLayer[]): Keys {
  const attention = blocks.find((block) => block.attention.kind === "delta")?.attention;
  if (attention?.kind !== "delta") return [];
  return [
    ["ssm.conv_kernel", uint32(attention.taps)],
    ["ssm.state_size", uint32(attention.keyDim)],
    ["ssm.group_count", uint32(attention.keyHeads)],
    ["ssm.time_step_rank", uint32(attention.valueHeads)],
    ["ssm.inner_size", uint32(attention.valueHeads * attention.valueDim)],
    ["full_attention_interval", uint32(deltaInterval(blocks)!)],
  ];
}

function expertKeys(blocks: readonly BlockLayer[], { experts: has }: Architecture): Keys {
  const first = blocks.findIndex(({ experts }) => experts !== undefined);
  const dense: Keys = has?.leadingDense
    ? [["leading_dense_block_count", uint32(first < 0 ? blocks.length : first)]]
    : [];
  if (first < 0) return dense;
  const { linears, experts } = blocks[first]!;
  const { router, count } = experts!;
  const down = experts!.linears.find(({ role }) => role === "down")!;
  const shared = linears.find(({ role }) => role === "up");
  return [
    ...dense,
    ["expert_count", uint32(count)],
    ["expert_used_count", uint32(router.chosen)],
    ...(has?.plainWidth ? [] : ([["expert_feed_forward_length", uint32(down.in)]] as const)),
    ...(shared === undefined
      ? []
      : ([
          ["expert_shared_feed_forward_length", uint32(shared.out)],
          ...(has?.sharedCount ? ([["expert_shared_count", uint32(shared.out / down.in)]] as const) : []),
        ] as const)),
    ...(has?.score === "key" ? ([["expert_gating_func", uint32(GATING[router.score])]] as const) : []),
    ...(has?.normalise === "key" ? ([["expert_weights_norm", bool(router.normalise)]] as const) : []),
    ...(has?.factor ? ([["expert_weights_scale", float32(router.factor)]] as const) : []),
    ...(has?.groups && router.groups !== null
      ? ([
          ["expert_group_count", uint32(router.groups.count)],
          ["expert_group_used_count", uint32(router.groups.chosen)],
        ] as const)
      : []),
  ];
}
