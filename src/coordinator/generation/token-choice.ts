import type { Config } from "../../config/options.ts";
import { GREEDY, type TokenChoice } from "../../generation/draws.ts";

/** How tokens are chosen, as the command line says it. */
export type ChoiceSettings = Pick<
  Config,
  "do_sample" | "temperature" | "top_p" | "top_k" | "min_p" | "repetition_penalty" | "seed"
>;

export function tokenChoice(config: ChoiceSettings): TokenChoice {
  return {
    ...GREEDY,
    doSample: config.do_sample,
    temperature: config.temperature,
    topP: config.top_p,
    topK: config.top_k,
    minP: config.min_p,
    repetitionPenalty: config.repetition_penalty,
    seed: config.seed,
  };
}
