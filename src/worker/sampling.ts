/** Settings of transformers' GenerationConfig that act here. */
export interface SamplingSettings {
  readonly doSample: boolean;
  readonly temperature: number;
  readonly topP: number;
  /** 0: all. */
  readonly topK: number;
  readonly repetitionPenalty: number;
}

/**
 * Chooses the next token from logits [V] (changed in place), in transformers' order of processors: repetition penalty
 * over the tokens seen, temperature, top-k, top-p. `uniform` in [0, 1) decides when sampling; greedy takes the largest
 * logit, the lowest id on a tie.
 */
export function chooseToken(
  logits: Float32Array,
  seen: ReadonlySet<number>,
  settings: SamplingSettings,
  uniform: number,
): number {
  if (settings.repetitionPenalty !== 1) {
    for (const id of seen) {
      const logit = logits[id];
      if (logit !== undefined) {
        logits[id] = logit > 0 ? logit / settings.repetitionPenalty : logit * settings.repetitionPenalty;
      }
    }
  }
  return settings.doSample ? sample(logits, settings, uniform) : argmax(logits);
}

function argmax(logits: Float32Array): number {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id;
  return best;
}

function sample(logits: Float32Array, { temperature, topK, topP }: SamplingSettings, uniform: number): number {
  const order = Uint32Array.from(logits.keys());
  // A stable order, so that equal logits fall the same way everywhere.
  order.sort((a, b) => logits[b]! - logits[a]! || a - b);
  let kept = topK > 0 ? Math.min(topK, order.length) : order.length;
  const largest = logits[order[0]!]!;
  const weights = new Float64Array(kept);
  let total = 0;
  for (let i = 0; i < kept; i++) {
    weights[i] = Math.exp((logits[order[i]!]! - largest) / temperature);
    total += weights[i]!;
  }
  if (topP < 1) {
    // The smallest set whose mass reaches top_p; the most likely token always stays.
    let mass = 0;
    let nucleus = 0;
    while (nucleus < kept && (nucleus === 0 || mass < topP * total)) mass += weights[nucleus++]!;
    kept = nucleus;
    total = mass;
  }
  let threshold = uniform * total;
  for (let i = 0; i < kept - 1; i++) {
    threshold -= weights[i]!;
    if (threshold < 0) return order[i]!;
  }
  return order[kept - 1]!;
}
