import { formatBytes } from "../../common/bytes.ts";
import type { LoraSettings } from "../../common/lora-settings.ts";

/** The contents of a repository's README.md for an adapter. */
export interface CardFacts {
  readonly title: string;
  /** The base as adapter_config.json names it; null: not named. */
  readonly base: string | null;
  readonly lora: Pick<LoraSettings, "r" | "alpha" | "dropout" | "useRslora"> & { readonly modules: readonly string[] };
  /** The run's training_args.json; empty if there is none. */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly results: CardResults | null;
  /** Of the files pushed. */
  readonly bytes: number;
}

export interface CardResults {
  readonly steps: number;
  readonly epochs: number;
  readonly loss: number | null;
  readonly evalLoss: number | null;
  readonly best: { readonly metric: number; readonly step: number } | null;
}

/** Settings that a reader needs to repeat the run, in this order, under the names of transformers and peft. */
const TOLD = [
  ...["learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_train_epochs", "max_steps"],
  ...["per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "weight_decay", "max_grad_norm"],
  ...["adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha", "seed"],
  ...[
    "torch_dtype",
    "compute_dtype",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
  ],
] as const;

/** A hub's name gets a link. Of a local path only the last part is shown. */
const hubName = (text: string) => (/^[\w.-]+\/[\w.-]+$/.test(text) && !text.startsWith(".") ? text : null);
const lastPart = (text: string) => text.replace(/\/+$/, "").split(/[\\/]/).at(-1) ?? text;

/** README.md: metadata that the hub reads, then base, data, settings and results. */
export function modelCard({ title, base, lora, settings, results, bytes }: CardFacts): string {
  const sets = datasetsOf(settings["dataset"]);
  const named = sets.flatMap((set) => hubName(set.replace(/[:@].*$/, "")) ?? []);
  const known = base === null ? null : hubName(base.replace(/@.*$/, ""));
  const rows = TOLD.flatMap((key) => {
    const value = settings[key];
    return value === undefined || value === null || value === false ? [] : [`| ${key} | ${shown(value)} |`];
  });
  return [
    "---",
    ...(known === null ? [] : [`base_model: ${JSON.stringify(known)}`]),
    ...(named.length === 0 ? [] : ["datasets:", ...named.map((set) => `- ${JSON.stringify(set)}`)]),
    "library_name: peft",
    "pipeline_tag: text-generation",
    "tags:",
    "- lora",
    "- pipelora",
    "---",
    "",
    `# ${title}`,
    "",
    `A LoRA adapter of rank ${lora.r}, alpha ${lora.alpha}, dropout ${lora.dropout}${lora.useRslora ? ", rank-stabilised," : ""} on ${lora.modules.map((name) => `\`${name}\``).join(", ")}; ${formatBytes(bytes)}.`,
    "",
    "## Base",
    "",
    base === null
      ? "Not said."
      : known === null
        ? `\`${lastPart(base)}\`, a folder.`
        : `[${known}](https://huggingface.co/${known})`,
    "",
    "## Data",
    "",
    ...(sets.length === 0
      ? ["Not said."]
      : sets.map(
          (set) => `- ${hubName(set.replace(/[:@].*$/, "")) === null ? `\`${lastPart(set)}\`, a file` : `\`${set}\``}`,
        )),
    "",
    "## Settings",
    "",
    ...(rows.length === 0 ? ["Not said."] : ["| setting | value |", "|---|---|", ...rows]),
    "",
    "## Results",
    "",
    ...resultLines(results),
    "",
    "## Use",
    "",
    "```python",
    "from peft import AutoPeftModelForCausalLM",
    "",
    `model = AutoPeftModelForCausalLM.from_pretrained(${JSON.stringify(title)})`,
    "```",
    "",
  ].join("\n");
}

function resultLines(results: CardResults | null): string[] {
  if (results === null) return ["Not said."];
  const { steps, epochs, loss, evalLoss, best } = results;
  const row = (name: string, value: number | null) => (value === null ? [] : [`| ${name} | ${shown(value)} |`]);
  return [
    "| result | value |",
    "|---|---|",
    ...row("steps", steps),
    ...row("epochs", epochs),
    ...row("loss at the last log", loss),
    ...row("loss at the last evaluation", evalLoss),
    ...(best === null ? [] : [`| best metric | ${shown(best.metric)} (step ${best.step}) |`]),
  ];
}

function datasetsOf(value: unknown): string[] {
  return [value].flat().filter((one): one is string => typeof one === "string");
}

function shown(value: unknown): string {
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return (typeof value === "string" ? value : JSON.stringify(value)).replaceAll("|", "\\|");
}
