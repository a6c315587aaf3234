/**
 * Every number of the GPU time model that is measured and not counted, but for the cards' own rates (rates.ts): what a step's products
 * reach, and the memory's bandwidth. gpu-time.ts puts them together.
 *
 * To calibrate anew, say after kernels changed: measure the rows of tests/unit/plan/assumed-times.test.ts on a hot card and put their
 * tokens/s there; set these by the formulas below, from top to bottom. The test prints predicted beside measured when run with
 * PIPELORA_SHOW=1, and holds every row to 5 %.
 */
export const GPU = {
  /**
   * Tokens at which a product reaches half its card's rate. From a block's eight products run hot at two numbers of tokens a < b at
   * rates A and B: a b (B − A) / (A b − B a). An H200: 636 TFLOP/s at 1,120 and 672 at 3,072.
   */
  halfRateTokens: 103,
  /**
   * How many times as fast products of e4m3 numbers are as those in 16 bits, with a scale a row: an H200, hot, 1,253 beside 672 TFLOP/s at
   * 3,072 tokens, 1,173 and 636 at 1,120. The vendor's peaks are twice as high everywhere.
   */
  e4m3Factor: 1.86,
  /**
   * Share of the card's rate that LoRA's own products reach in the fused kernels (ranks up to 16): inner vectors, and back the
   * gradients of A, B and x. From steps of ranks r < R, everything else alike:
   * 2 T (R − r) Σ (3 in + 2 out) / (seconds at R − seconds at r) / the card's rate.
   */
  loraShare: 0.0335,
  /**
   * What a rank from the ninth to the sixteenth costs there beside one of the first eight, as operands are rounded to the compute dtype then:
   * Qwen2.5-7B nf4 cached, 8 x 384, r = 8 and 16: 163.7 and 168.3 ms, of which eight unrounded ranks would be 11.8.
   */
  loraRounded: 0.39,
  /** The same without dropout, whose masks the kernels make on the way: ranks 8 and 16 of Qwen2.5-7B in bf16, 2 x 4096. */
  loraUnmaskedShare: 0.06,
  /** The same where they run through cuBLASLt: ranks 64 and 256 of Qwen2.5-7B, 8 x 384. */
  loraProductsShare: 0.55,
  /** Tokens of a row at which attention reaches half its rate, and its shares of the card's rate forward and back, from the profiler at rows of 2,048 and 8,192. */
  attentionHalfRow: 700,
  attentionForwardShare: 0.78,
  attentionBackwardShare: 0.56,
  /**
   * The gated delta rule with heads of 128 columns: seconds that a token of a row takes forward, and back beside that, and the heads (of all rows)
   * that run at a time for that. Counted, not measured: forward some 350 dependent cycles a token and warp, sixteen warps a head of which a
   * multiprocessor carries eight; back 8.5 MFLOP a chunk of 32 tokens at a third of a multiprocessor's float32 rate, a head each.
   */
  deltaToken: 0.4e-6,
  deltaHeads: 64,
  deltaTokenBack: 1.5e-6,
  deltaHeadsBack: 132,
  /** Share of the memory's bandwidth that kernels reach which only move bytes: expansion of weights, norms, rotary, SwiGLU, LoRA's reads. */
  memoryShare: 0.82,
  /** Bytes a logit that cross entropy moves: written by the product, read for its statistics, turned into its gradient in place, read by the product back. */
  logitBytes: 16,
  /** Seconds a pass over a block of what no other term counts: launches and tails of some 25 kernels. */
  blockPass: 60e-6,
  /**
   * Experts' products in one launch: the share of the card's rate that they reach, and the rows of an expert at which half of that is lost to
   * tiles that it does not fill. Measured on an H200: 464 TFLOP/s at 192 rows an expert (Qwen3-30B-A3B, 3,072 tokens).
   */
  expertsShare: 0.84,
  expertsHalfRows: 64,
  /** Seconds that an expert's product takes beside its arithmetic where each has launches of its own. Not measured. */
  expertProduct: 8e-6,
  /** Bytes a LoRA parameter that a step's end moves: the gradient's norm, AdamW, and zeroes for the next step. */
  updateBytes: 40,
} as const;
