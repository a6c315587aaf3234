import type { ComputeRules, RopeSpec } from "./spec.ts";

/** Llama's rules, and what a family has in their place. */
export function computeRules(
  rotary: readonly RopeSpec[],
  own: Partial<Omit<ComputeRules, "rotary">> = {},
): ComputeRules {
  return {
    activation: "silu",
    norm: { kind: "rms", offset: 0 },
    headNorm: { whole: false, afterRotary: false },
    parallel: false,
    qkvByKvHead: false,
    scale: PLAIN_SCALE,
    cap: { scores: null, logits: null },
    queryScale: null,
    attentionChunk: null,
    rotaryInterleaved: false,
    qwenLong: null,
    ...own,
    rotary,
  };
}

export const PLAIN_SCALE: ComputeRules["scale"] = {
  embedding: 1,
  embeddingRounded: false,
  residual: 1,
  logits: 1,
  scores: null,
};
