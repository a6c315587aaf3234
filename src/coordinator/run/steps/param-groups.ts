import { PipeloraError } from "../../../common/errors.ts";
import type { Config } from "../../../config/options.ts";
import type { NamedMatrix } from "../../../models/kinds/named-matrix.ts";
import type { UpdateGroup } from "../../../rpc/generated/pipelora/v1/UpdateGroup.ts";
import { type LearningRateSettings, learningRate } from "./learning-rate.ts";

export type GroupSettings = Pick<
  Config,
  | "learning_rate"
  | "weight_decay"
  | "loraplus_lr_ratio"
  | "loraplus_lr_embedding"
  | "loraplus_weight_decay"
  | "lr_groups"
>;

/** peft's. */
const EMBEDDING_RATE = 1e-6;

/** Matrices that the optimizer treats alike: a parameter group of torch's. */
export interface ParamGroup {
  /** The learning rate that the schedule's factor multiplies. */
  readonly peak: number;
  readonly weightDecay: number;
}

export interface ParamGroups {
  /** The first one's rate is what is logged. */
  readonly groups: readonly ParamGroup[];
  /** Of each matrix, its group. */
  readonly of: readonly number[];
}

/**
 * The Trainer's groups: what decays and what does not (biases); with loraplus_lr_ratio peft's create_loraplus_optimizer's: A, embeddings,
 * B and vectors, biases. lr_groups give what they name a learning rate of its own, as Axolotl's: by parts of parameters' names, the first
 * that fits; LoRA+'s ratio counts there too. Error: PL_CONFIG_INVALID for a group that fits nothing.
 */
export function paramGroups(matrices: readonly NamedMatrix[], settings: GroupSettings): ParamGroups {
  const groups: ParamGroup[] = [];
  const numberOf = (group: ParamGroup) => {
    const known = groups.findIndex(({ peak, weightDecay }) => peak === group.peak && weightDecay === group.weightDecay);
    return known >= 0 ? known : groups.push(group) - 1;
  };
  numberOf({ peak: settings.learning_rate, weightDecay: decayOf(settings) });
  const met = new Set<number>();
  const of = matrices.map((matrix) => {
    const own = (settings.lr_groups ?? []).findIndex(({ modules }) =>
      modules.some((part) => matrix.parameter.includes(part)),
    );
    if (own >= 0) met.add(own);
    const base = own >= 0 ? settings.lr_groups![own]!.lr : settings.learning_rate;
    return numberOf(groupOf(matrix, base, settings));
  });
  const unmet = (settings.lr_groups ?? []).find((_, index) => !met.has(index));
  if (unmet !== undefined) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `lr_groups: ${unmet.modules.join(", ")} (${unmet.name}) are in the name of no trained matrix that an earlier group leaves.`,
      { hint: `Trained matrices have names such as ${matrices[0]?.parameter ?? "none: nothing is trained"}.` },
    );
  }
  return { groups, of };
}

function decayOf({ weight_decay, loraplus_lr_ratio, loraplus_weight_decay }: GroupSettings): number {
  return loraplus_lr_ratio === null ? weight_decay : loraplus_weight_decay;
}

function groupOf({ name, shape }: NamedMatrix, base: number, settings: GroupSettings): ParamGroup {
  const isBias = name.endsWith(".bias");
  const weightDecay = isBias ? 0 : decayOf(settings);
  const { loraplus_lr_ratio: ratio } = settings;
  if (ratio === null) return { peak: base, weightDecay };
  if (name.includes("lora_embedding_")) {
    return { peak: settings.loraplus_lr_embedding ?? EMBEDDING_RATE, weightDecay };
  }
  return { peak: name.includes("lora_B") || shape.length === 1 ? base * ratio : base, weightDecay };
}

/** What each group's update uses after `done` finished updates. */
export function groupRates(rate: LearningRateSettings, groups: readonly ParamGroup[], done: number): UpdateGroup[] {
  const main = learningRate(rate, done);
  // The schedules' formulas know the one rate that the optimizer was made with; other groups take their share of theirs.
  const unit = rate.peak > 0 ? main / rate.peak : learningRate({ ...rate, peak: 1 }, done);
  return groups.map(({ peak, weightDecay }) => ({
    learningRate: peak === rate.peak ? main : peak * unit,
    weightDecay,
  }));
}
