import { float64Of, int32Of } from "../../../common/bytes.ts";
import type { AdapterSums__Output } from "../../../rpc/generated/pipelora/v1/AdapterSums.ts";

/**
 * The global gradient norm over all stages. Squares are added in the order of the model's matrices, so the sum has the same bits on any
 * placement. Replicas hold the same sums, so each matrix counts once.
 */
export function gradientNorm(results: readonly Pick<AdapterSums__Output, "matrixIds" | "gradSquares">[]): number {
  const squares: number[] = [];
  for (const { matrixIds, gradSquares } of results) {
    const held = float64Of(gradSquares);
    int32Of(matrixIds).forEach((matrix, i) => {
      squares[matrix] = held[i]!;
    });
  }
  return Math.sqrt(squares.reduce((sum, square) => sum + square, 0));
}

/** torch.nn.utils.clip_grad_norm_: the factor that brings the norm to at most `maxNorm`; 0 means no clipping. */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm === 0 ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
}
