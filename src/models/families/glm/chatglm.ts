import { z } from "zod";
import { extent, nullish, parseConfig, unsupported, width } from "../../config.ts";
import { decoderSpec } from "../../decoder.ts";
import { decoderConfig } from "../../decoder-config.ts";
import { inverseFrequencies } from "../../rope.ts";
import type { ModelSpec } from "../../spec.ts";

const chatglmConfig = z.looseObject({
  num_layers: extent(4096),
  ffn_hidden_size: width,
  padded_vocab_size: extent(1 << 26),
  kv_channels: nullish(width),
  num_attention_heads: extent(4096),
  multi_query_attention: nullish(z.boolean()),
  multi_query_group_num: nullish(width),
  layernorm_epsilon: nullish(z.number().positive().max(1)),
  rmsnorm: nullish(z.boolean()),
  add_bias_linear: nullish(z.boolean()),
  add_qkv_bias: nullish(z.boolean()),
  seq_length: nullish(extent(2 ** 31)),
  rope_ratio: nullish(z.number().positive().max(1e9)),
  post_layer_norm: nullish(z.boolean()),
});

/**
 * ChatGLM2, ChatGLM3 and GLM-4-9B in their first layout, whose code came with the checkpoint: fused query_key_value and
 * dense_h_to_4h; neighbours turn together in half of each head. Their config.json has names of its own.
 */
export function chatglmSpec(config: unknown, generation: unknown): ModelSpec {
  const own = parseConfig(chatglmConfig, config);
  if (own.rmsnorm === false) unsupported("rmsnorm", false, "true");
  const bias = own.add_bias_linear ?? false;
  const headDim = own.kv_channels ?? 128;
  const parsed = parseConfig(decoderConfig, {
    ...own,
    intermediate_size: own.ffn_hidden_size,
    num_hidden_layers: own.num_layers,
    vocab_size: own.padded_vocab_size,
    // It has dropout's names too, which its code does not read.
    ...{ attention_dropout: null, hidden_dropout: null },
  });
  const base = 10000 * (own.rope_ratio ?? 1);
  const turning = headDim / 2;
  if (turning % 2 !== 0) unsupported("kv_channels", headDim, "a multiple of 4");
  return decoderSpec(parsed, generation, {
    padsEmbedding: false,
    family: "chatglm",
    prefix: "ChatGLM",
    bias: { qkv: bias || (own.add_qkv_bias ?? false), output: bias, gateUp: bias, down: bias },
    headDim,
    kvHeads: (own.multi_query_attention ?? false) ? (own.multi_query_group_num ?? 1) : own.num_attention_heads,
    eps: own.layernorm_epsilon ?? 1e-5,
    maxPositions: own.seq_length ?? 2048,
    tied: parsed.tie_word_embeddings ?? false,
    rotary: [{ base, invFreq: inverseFrequencies(base, turning), attentionScaling: 1, long: null, dynamic: null }],
    names: {
      embedding: "transformer.embedding.word_embeddings",
      layers: "transformer.encoder.layers",
      norm: "transformer.encoder.final_layernorm",
      head: "transformer.output_layer",
      rotary: null,
      attention: "self_attention",
      qkv: "query_key_value",
      output: "dense",
      gateUp: "dense_h_to_4h",
      down: "dense_4h_to_h",
      activation: null,
      classes: { model: "Transformer", causal: "Model", layer: "Block", norm: "RMSNorm" },
    },
    rules: { rotaryInterleaved: true },
  });
}
