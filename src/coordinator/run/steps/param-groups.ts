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

/** peft's default learning rate for embeddings with LoRA+. */
const EMBEDDING_RATE = 1e-6;

/** Matrices that the optimizer treats alike, as torch's parameter groups. */
export interface ParamGroup {
  /** The learning rate before the schedule's factor. */
  readonly peak: number;
  readonly weightDecay: number;
}

export interface ParamGroups {
  /** The log shows the rate of the first. */
  readonly groups: readonly ParamGroup[];
  /** The group of each matrix. */
  readonly of: readonly number[];
}

/**
 * The optimizer's groups. As in the Trainer: matrices with weight decay and those without (biases). With loraplus_lr_ratio, as in peft's
 * create_loraplus_optimizer: A, embeddings, B and vectors, biases. lr_groups give a learning rate to parameters by parts of their names, as in
 * Axolotl; the first that matches counts, and LoRA+'s ratio applies too. Errors: PL_CONFIG_INVALID if a group of lr_groups matches nothing.
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

/** The learning rate and weight decay of each group for the update after `done` updates. */
export function groupRates(rate: LearningRateSettings, groups: readonly ParamGroup[], done: number): UpdateGroup[] {
  const main = learningRate(rate, done);
  // The schedule's formula uses one rate. Other groups scale its result by the ratio of the rates.
  const unit = rate.peak > 0 ? main / rate.peak : learningRate({ ...rate, peak: 1 }, done);
  return groups.map(({ peak, weightDecay }) => ({
    learningRate: peak === rate.peak ? main : peak * unit,
    weightDecay,
  }));
}
