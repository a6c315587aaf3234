import type { StepResult__Output } from "../rpc/generated/pipelora/v1/StepResult.ts";

/**
 * Global gradient norm over all stages. Squares are summed in the order of the model's LoRA pairs, whoever held them,
 * so the sum has the same bits on any placement. Replicas hold the same sums: each pair counts once.
 */
export function gradientNorm(results: readonly StepResult__Output[]): number {
  const byModule = new Map(
    results.flatMap(({ gradSquares }) => gradSquares.map((pair) => [pair.moduleId, pair] as const)),
  );
  const pairs = [...byModule.values()].sort((a, b) => a.moduleId - b.moduleId);
  return Math.sqrt(pairs.reduce((sum, { a, b }) => sum + a + b, 0));
}

/** torch.nn.utils.clip_grad_norm_: the factor that brings the norm to at most `maxNorm`; 0 means no clipping. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm === 0 ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
}
