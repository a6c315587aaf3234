/** Inputs that one decomposition stands for: those of modules that take the same. */
export interface SharedInput {
  /** In the model's order; the first names it. */
  readonly modules: readonly string[];
  /** Components that each of them may get at most. */
  readonly components: number;
}

/** Of an input, as far as rows have been seen: the share of its variance that each component explains. */
export type Explained = ReadonlyMap<string, Float64Array>;

/**
 * Ranks by module, as peft's EVA gives them out: the `budget` largest explained shares of all modules win, a rank each. Of modules with
 * one input the first has the most. Equal shares: the module that comes first.
 */
export function rankDistribution(
  inputs: readonly SharedInput[],
  explained: Explained,
  budget: number,
): Map<string, number> {
  const shares = inputs.flatMap(({ modules, components }, input) =>
    modules.flatMap((module, place) =>
      Array.from(explained.get(modules[0]!)!.subarray(0, components), (share) => ({ module, share, input, place })),
    ),
  );
  // peft lists what is decomposed first, then the modules that share it.
  const listed = [...shares.filter(({ place }) => place === 0), ...shares.filter(({ place }) => place > 0)];
  const ranks = new Map(inputs.flatMap(({ modules }) => modules.map((module) => [module, 0])));
  for (const { module } of listed.sort((a, b) => b.share - a.share).slice(0, budget)) {
    ranks.set(module, ranks.get(module)! + 1);
  }
  for (const { modules } of inputs) {
    const [first, ...others] = modules;
    for (const other of others) {
      const [own, most] = [ranks.get(other)!, ranks.get(first!)!];
      if (own > most) ranks.set(first!, own).set(other, most);
    }
  }
  return ranks;
}
