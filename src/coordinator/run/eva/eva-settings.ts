import { PipeloraError } from "../../../common/errors.ts";
import type { EvaConfig, LoraSettings } from "../../../common/lora-settings.ts";
import { minimalSuffixes } from "../../../models/lora-names.ts";
import type { LoraTarget, ResolvedLora } from "../../../models/lora-targets.ts";
import { sharedInputs } from "../../../models/shared-inputs.ts";
import type { ModelSpec } from "../../../models/spec.ts";
import type { SharedInput } from "./rank-distribution.ts";

/** Above this rho, a module's number of components is bounded by the model's largest dimension, as in peft. */
const LARGE_RHO = 1000;

/** Python's round(): a half goes to the even neighbour. */
function roundHalfEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * The inputs that EVA decomposes, and the number of components of each: rho times the rank of its module, or the most of its modules. Errors:
 * PL_CONFIG_INVALID if an input has fewer columns than that.
 */
export function evaInputs(spec: ModelSpec, { targets, settings }: ResolvedLora, eva: EvaConfig): SharedInput[] {
  const largest = Math.max(...spec.tensors.flatMap(({ shape }) => shape));
  const rho = eva.rho > LARGE_RHO ? Math.min(eva.rho, Math.floor(largest / settings.r)) : eva.rho;
  return sharedInputs(spec, targets).map((shared) => {
    const components = Math.max(...shared.map(({ r }) => roundHalfEven(r * rho)));
    const [first] = shared;
    if (components > first!.in) {
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `init_lora_weights eva: rho ${eva.rho} asks for ${components} components of ${first!.name}, whose input has ${first!.in} columns.`,
        { hint: "Lower rho in --eva-config, or lora_r." },
      );
    }
    return { modules: shared.map(({ name }) => name), components };
  });
}

/** The sum of all ranks, which EVA distributes among the modules. */
export function rankBudget({ targets }: Pick<ResolvedLora, "targets">): number {
  return targets.reduce((sum, { r }) => sum + r, 0);
}

/**
 * The settings of an adapter with these ranks, as peft writes them: rank patterns with whole names, alpha patterns if EVA scales alpha with the
 * rank, and no module with rank 0. Errors: PL_CONFIG_INVALID if all ranks are 0.
 */
export function evaSettings(
  spec: ModelSpec,
  { targets, settings }: Pick<ResolvedLora, "targets" | "settings">,
  ranks: ReadonlyMap<string, number>,
): LoraSettings {
  const kept = targets.filter(({ name }) => ranks.get(name)! > 0);
  const rankOf = ({ name }: LoraTarget) => ranks.get(name)!;
  const alphaOf = (target: LoraTarget) =>
    settings.evaConfig!.adjustScalingFactors ? (target.alpha * rankOf(target)) / target.r : target.alpha;
  const pattern = (value: (target: LoraTarget) => number, usual: number) =>
    Object.fromEntries(kept.filter((one) => value(one) !== usual).map((one) => [one.name, value(one)]));
  const names = spec.modules.map(({ name }) => name).filter((name) => name !== "");
  return {
    ...settings,
    targetModules: minimalSuffixes(
      kept.map(({ name }) => name),
      names,
    ),
    rankPattern: pattern(rankOf, settings.r),
    alphaPattern: pattern(alphaOf, settings.alpha),
  };
}
