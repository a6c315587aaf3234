/**
 * The measured numbers of the GPU time model: shares of a card's rates that kernels reach. The rates themselves are in rates.ts; gpu-time.ts
 * uses both.
 *
 * To calibrate again, for instance after kernels have changed: measure the rows of tests/unit/plan/assumed-times.test.ts on a hot card, put
 * their tokens/s there, and set the numbers below from top to bottom by their formulas. With PIPELORA_SHOW=1 that test prints predicted beside
 * measured values. It allows 5 % on every row.
 */
export const GPU = {
  /**
   * Tokens at which a product reaches half its card's rate. From a block's eight products run hot at two numbers of tokens a < b at
   * rates A and B: a b (B − A) / (A b − B a). An H200: 636 TFLOP/s at 1,120 and 672 at 3,072.
   */
  halfRateTokens: 103,
  /**
   * Rate of e4m3 products, with a scale for each row, over that of products in 16 bits. A hot H200: 1,253 and 672 TFLOP/s at 3,072 tokens,
   * 1,173 and 636 at 1,120. The vendor's peaks differ by a factor of 2.
   */
  e4m3Factor: 1.86,
  /**
   * Share of the card's rate that LoRA's own products reach in the fused kernels (ranks up to 16): inner vectors, and the gradients of A, B and
   * x. Found from two steps that differ only in their ranks r < R:
   * 2 T (R − r) Σ (3 in + 2 out) / (seconds at R − seconds at r) / the card's rate.
   */
  loraShare: 0.0335,
  /**
   * Cost there of each rank from the ninth to the sixteenth, over that of one of the first eight: operands are then rounded to the compute
   * dtype. Qwen2.5-7B nf4 cached, 8 x 384: 163.7 ms with r = 8 and 168.3 with r = 16; eight more unrounded ranks would take 11.8 ms.
   */
  loraRounded: 0.39,
  /** `loraShare` without dropout, whose masks the kernels would make: ranks 8 and 16 of Qwen2.5-7B in bf16, 2 x 4096. */
  loraUnmaskedShare: 0.06,
  /** The same share where these products run in cuBLASLt: ranks 64 and 256 of Qwen2.5-7B, 8 x 384. */
  loraProductsShare: 0.55,
  /**
   * Attention reaches half its rate at rows of this many tokens; then its shares of the card's rate in both passes. Profiled at rows of
   * 2,048 and 8,192.
   */
  attentionHalfRow: 700,
  attentionForwardShare: 0.78,
  attentionBackwardShare: 0.56,
  /**
   * The gated delta rule with heads of 128 columns: seconds for a token of a row in the forward pass, further seconds in the backward pass, and
   * how many heads (of all rows) run at once. These are counted, not measured. Forward: some 350 dependent cycles for a token in each warp,
   * sixteen warps a head, of which a multiprocessor runs eight. Backward: 8.5 MFLOP for a chunk of 32 tokens, at a third of a multiprocessor's
   * float32 rate, with one head on each.
   */
  deltaToken: 0.4e-6,
  deltaHeads: 64,
  deltaTokenBack: 1.5e-6,
  deltaHeadsBack: 132,
  /** Share of the memory's bandwidth that memory-bound kernels reach: expansion of weights, norms, rotary, SwiGLU, LoRA's reads. */
  memoryShare: 0.82,
  /**
   * Bytes that cross entropy moves for each logit: the product writes it, the statistics read it, its gradient replaces it, the backward
   * product reads that.
   */
  logitBytes: 16,
  /** Seconds of a pass over a block that no other term counts: launches and tails of some 25 kernels. */
  blockPass: 60e-6,
  /**
   * Experts' products in one launch: the share of the card's rate that they reach, and the rows of an expert at which half of that is lost to
   * partly filled tiles. Measured on an H200: 464 TFLOP/s at 192 rows an expert (Qwen3-30B-A3B, 3,072 tokens).
   */
  expertsShare: 0.84,
  expertsHalfRows: 64,
  /** Seconds that each expert's product takes beside its arithmetic if experts have separate launches. Not measured. */
  expertProduct: 8e-6,
  /** Bytes that the end of a step moves for each LoRA parameter: the gradient's norm, AdamW, and clearing the gradient. */
  updateBytes: 40,
} as const;
