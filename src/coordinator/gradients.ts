import type { StepResult__Output } from "../rpc/generated/pipelora/v1/StepResult.ts";

/**
 * Global gradient norm over all stages. Squares are summed in the order of the model's LoRA pairs, whoever held them,
 * so the sum has the same bits on any placement. Replicas hold the same sums: each pair counts once.
 */
export function gradientNorm(results: readonly Pick<StepResult__Output, "moduleIds" | "gradSquares">[]): number {
  const pairs = new Map<number, readonly [a: number, b: number]>();
  for (const { moduleIds, gradSquares } of results) {
    for (let i = 0; i < moduleIds.length; i++) pairs.set(moduleIds[i]!, [gradSquares[2 * i]!, gradSquares[2 * i + 1]!]);
  }
  let sum = 0;
  for (const moduleId of [...pairs.keys()].sort((a, b) => a - b)) {
    const [a, b] = pairs.get(moduleId)!;
    sum = sum + a + b;
  }
  return Math.sqrt(sum);
}

/** torch.nn.utils.clip_grad_norm_: the factor that brings the norm to at most `maxNorm`; 0 means no clipping. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm === 0 ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
}
