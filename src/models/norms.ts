import type { BlockLayer, ModelSpec } from "./spec.ts";

/** The norm weights of a block that there are, with their elements. */
export function blockNorms({ shape, rules }: ModelSpec, block: BlockLayer): { name: string; width: number }[] {
  const { hidden, heads, kvHeads, headDim } = shape;
  const { whole } = rules.headNorm;
  const all: [string | null, number][] = [
    ...[block.attnNorm, block.attnPostNorm, block.mlpNorm, block.mlpPostNorm].map((name): [string | null, number] => [
      name,
      hidden,
    ]),
    [block.qNorm, whole ? heads * headDim : headDim],
    [block.kNorm, whole ? kvHeads * headDim : headDim],
  ];
  return all.flatMap(([name, width]) => (name === null ? [] : [{ name, width }]));
}
