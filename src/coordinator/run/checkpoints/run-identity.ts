import { createHash } from "node:crypto";
import { bytesOf } from "../../../common/bytes.ts";
import { changesBase } from "../../../common/lora-settings.ts";
import { Turns } from "../../../common/slices.ts";
import { HELD_AS } from "../../../config/held-as.ts";
import type { Config } from "../../../config/options.ts";
import type { Dataset } from "../../../data/dataset.ts";

/** Settings that decide a run's numbers. Placement, logging and saving do not, and a resumed run may be longer. */
const DECISIVE = [
  "lora_r",
  "lora_alpha",
  "lora_dropout",
  "use_rslora",
  "target_modules",
  "target_parameters",
  "exclude_modules",
  "layers_to_transform",
  "layers_pattern",
  "rank_pattern",
  "alpha_pattern",
  "use_dora",
  "modules_to_save",
  "bias",
  "trainable_token_indices",
  "init_lora_weights",
  ...HELD_AS,
  "link_dtype",
  "per_device_train_batch_size",
  "gradient_accumulation_steps",
  "replicas",
  "micro_batch_tokens",
  "lr_scheduler_type",
  "lr_scheduler_kwargs",
  "warmup_steps",
  "warmup_ratio",
  "weight_decay",
  "loraplus_lr_ratio",
  "loraplus_lr_embedding",
  "loraplus_weight_decay",
  "lr_groups",
  "adam_beta1",
  "adam_beta2",
  "adam_epsilon",
  "max_grad_norm",
  "label_smoothing_factor",
  "neftune_noise_alpha",
  "seed",
  "data_seed",
  "train_sampling_strategy",
  "dataloader_drop_last",
] as const satisfies readonly (keyof Config)[];

/** Those of them that older checkpoints do not have. They count only if they have an effect, so older checkpoints can still be resumed. */
const LATER: readonly string[] = [
  "lr_scheduler_kwargs",
  "label_smoothing_factor",
  "neftune_noise_alpha",
  "fp8",
  "link_dtype",
  "loraplus_lr_ratio",
  "loraplus_lr_embedding",
  "loraplus_weight_decay",
  "lr_groups",
  "use_dora",
  "modules_to_save",
  "bias",
  "trainable_token_indices",
  "init_lora_weights",
];
const idle = (value: unknown) =>
  value === 0 ||
  value === "none" ||
  value === "auto" ||
  value === false ||
  value === null ||
  (typeof value === "object" && Object.keys(value).length === 0);

/** Settings that a resumed run may change. The change is reported. */
const FREE = ["learning_rate"] as const satisfies readonly (keyof Config)[];

export type DecisiveSettings = Pick<Config, (typeof DECISIVE)[number]>;
export type FreeSettings = Pick<Config, (typeof FREE)[number]>;

/** A hash of a run's model, its encoded rows and the settings that decide its numbers. Works in slices, because there may be gigabytes of rows. */
export async function runFingerprint(
  config: DecisiveSettings,
  modelFingerprint: string,
  rows: Dataset,
): Promise<string> {
  const turns = new Turns();
  const hash = createHash("sha256").update(modelFingerprint);
  // For a resumed run, the initialisation of A and B matters only if it changed the base.
  const init = changesBase(config.init_lora_weights) ? config.init_lora_weights : null;
  const settings = { ...config, replicas: config.replicas ?? 1, init_lora_weights: init };
  const hashed = DECISIVE.filter((key) => !LATER.includes(key) || !idle(settings[key]));
  for (const key of hashed) hash.update(`\n${key}=${JSON.stringify(settings[key])}`);
  for (let index = 0; index < rows.size; index++) {
    const { tokens, labels, weights } = rows.row(index);
    hash.update(bytesOf(tokens)).update(bytesOf(labels));
    if (weights?.some((weight) => weight !== 1)) hash.update(bytesOf(weights));
    await turns.take();
  }
  return hash.digest("hex").slice(0, 16);
}

/** The decisive settings that differ from those of a checkpoint, with both values. */
export function changedSettings(config: DecisiveSettings, written: Readonly<Record<string, unknown>>): string[] {
  return changed(config, DECISIVE, written);
}

/** The changeable settings that differ from those of a checkpoint, with both values. */
export function changedFreely(config: FreeSettings, written: Readonly<Record<string, unknown>>): string[] {
  return changed(config, FREE, written);
}

function changed<K extends string>(
  config: Readonly<Record<K, unknown>>,
  keys: readonly K[],
  written: Readonly<Record<string, unknown>>,
): string[] {
  const shown = (value: unknown) => JSON.stringify(value ?? null);
  return keys
    .filter((key) => key in written && shown(written[key]) !== shown(config[key]))
    .map((key) => `${key} is ${shown(config[key])}, was ${shown(written[key])}`);
}
