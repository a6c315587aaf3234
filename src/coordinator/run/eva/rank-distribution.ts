/** An input that one or several modules share, and that is decomposed once. */
export interface SharedInput {
  /** The modules in the model's order. The first one names the input. */
  readonly modules: readonly string[];
  /** The most components that each of them may get. */
  readonly components: number;
}

/** The share of an input's variance that each component explains, by input. Inputs without rows so far are absent. */
export type Explained = ReadonlyMap<string, Float64Array>;

/**
 * The rank of each module, as in peft's EVA: each of the `budget` largest explained shares of all modules gives its module one rank. Of equal
 * shares the module that comes first wins, so of modules with one input the first has the most.
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
  // peft lists the decomposed modules first, then those that share their inputs.
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
