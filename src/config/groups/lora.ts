import { z } from "zod";
import { choice, count, flag, names, oneOrMore, option, optional, positive, text } from "./vocabulary.ts";

const INITS = "expected gaussian, orthogonal, pissa, pissa_niter_N, olora, loftq or eva";

/** A bare name is a list of one, as for every list: as a regular expression it would have to match a whole path. */
const moduleNames = z.union([names, text.transform((one) => (/^\w+(\.\w+)*$/.test(one) ? [one] : one))]);

export const loraOptions = {
  adapters: option(
    "string",
    "LoRA",
    ["train", "plan"],
    optional(z.record(z.string(), z.union([z.record(z.string(), z.unknown()), z.null()]))),
    "Several adapters over one base: a YAML file of NAME: {settings}, each trained as by a run alone, into output_dir/NAME; other settings hold for all.",
    "FILE",
  ),
  target_modules: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(moduleNames),
    "Linear layers that get LoRA: names or suffixes, one regular expression, or all-linear; none: all-linear.",
  ),
  target_parameters: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(oneOrMore),
    "Parameters that get LoRA, experts' mlp.experts.gate_up_proj and mlp.experts.down_proj: names or suffixes; then none: no modules.",
  ),
  exclude_modules: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(moduleNames),
    "Layers left out again: names or suffixes, or one regular expression.",
  ),
  lora_r: option("integer", "LoRA", ["train", "plan", "parameters"], positive.default(8), "Rank of the adapters."),
  lora_alpha: option(
    "number",
    "LoRA",
    ["train", "plan", "parameters"],
    z.number().positive().default(8),
    "Numerator of the scaling alpha / r.",
  ),
  lora_dropout: option(
    "number",
    "LoRA",
    ["train", "plan", "parameters"],
    z.number().min(0).lt(1).default(0),
    "Dropout on the input of lora_A in training.",
  ),
  use_rslora: option("boolean", "LoRA", ["train", "plan", "parameters"], flag(), "Scale by alpha / sqrt(r)."),
  use_dora: option(
    "boolean",
    "LoRA",
    ["train", "plan", "parameters"],
    flag(),
    "DoRA: the lengths of the weight's rows are trained beside their directions, on quantised bases too.",
  ),
  modules_to_save: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(oneOrMore),
    "Modules that are trained whole and saved with the adapter: the embedding, the output head, by the ends of their names.",
  ),
  bias: option(
    "string",
    "LoRA",
    ["train", "plan", "parameters"],
    choice(["none", "all", "lora_only"]).default("none"),
    "Biases of the model's linears that are trained: all, or those of layers that get LoRA.",
    "WHICH",
  ),
  trainable_token_indices: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([z.array(count).min(1), z.record(z.string(), z.array(count).min(1))])),
    'Rows of the embedding that are trained instead of all of it: token ids, or {"embed_tokens": ids}.',
  ),
  init_lora_weights: option(
    "boolean-or-string",
    "LoRA",
    ["train"],
    z
      .union([z.boolean(), z.string().regex(/^(gaussian|orthogonal|pissa(_niter_\d{1,3})?|olora|loftq|eva)$/, INITS)])
      .default(true),
    "true: kaiming-uniform A and zero B; gaussian: normal A of deviation 1 / r and zero B; false: B random too; orthogonal; of the base's weights: pissa, pissa_niter_N, olora, and of what 4 bits lose of them: loftq; of what layers take in the rows to train on: eva.",
  ),
  eva_config: option(
    "json",
    "LoRA",
    ["train"],
    optional(
      z.strictObject({
        rho: z.number().min(1).optional(),
        tau: z.number().min(0).max(1).optional(),
        use_label_mask: z.boolean().optional(),
        label_mask_value: z.number().int().optional(),
        whiten: z.boolean().optional(),
        adjust_scaling_factors: z.boolean().optional(),
      }),
    ),
    'With --init-lora-weights eva: {"rho": 2.0, "tau": 0.99, "use_label_mask": true, "label_mask_value": -100, "whiten": false, "adjust_scaling_factors": true}, as peft\'s EvaConfig.',
  ),
  layers_to_transform: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([count, z.array(count).min(1)])),
    "Block numbers that get LoRA; none: all.",
  ),
  layers_pattern: option(
    "list",
    "LoRA",
    ["train", "plan", "parameters"],
    optional(z.union([names, text])),
    "Name of the module list that layers_to_transform counts in.",
  ),
  rank_pattern: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    z.record(z.string(), positive).default({}),
    "Ranks of single layers: {name or pattern: r}.",
  ),
  alpha_pattern: option(
    "json",
    "LoRA",
    ["train", "plan", "parameters"],
    z.record(z.string(), z.number().positive()).default({}),
    "alpha of single layers: {name or pattern: alpha}.",
  ),
};
