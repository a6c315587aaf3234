import { z } from "zod";
import { tracedSteps } from "../../common/traced-steps.ts";
import { choice, flag, option, optional, positive, STRATEGIES, text } from "./vocabulary.ts";

/** Names of evaluation metrics, with and without the Trainer's prefix. */
const EVALUATION_METRICS = [
  "loss",
  "runtime",
  "samples_per_second",
  "steps_per_second",
  "eval_loss",
  "eval_runtime",
  "eval_samples_per_second",
  "eval_steps_per_second",
] as const;

/** A number of steps, or a share of all of them. */
const stepsOrShare = z.union([positive, z.number().gt(0).lt(1)]);

export const TRACKERS = ["none", "tensorboard", "mlflow"] as const;

export const savingOptions = {
  output_dir: option(
    "string",
    "Logging and saving",
    ["train", "ui", "merge", "export", "quantize", "add-tokens", "init-model", "certs", "demo", "doctor", "worker"],
    optional(text),
    "Folder for the adapter, checkpoints and logs; for ui a run's, or one that holds several runs'; a worker's own with --save-on-each-node, none: the coordinator's path. The demo's, none: pipelora-demo; doctor looks at its disk.",
    "DIR",
  ),
  overwrite_output_dir: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Start anew in a folder that holds checkpoints.",
  ),
  logging_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(STRATEGIES).default("steps"),
    "When to log.",
    "WHEN",
  ),
  logging_steps: option(
    "number",
    "Logging and saving",
    ["train"],
    stepsOrShare.default(500),
    "Steps between log entries; below 1: a share of all steps.",
  ),
  logging_first_step: option("boolean", "Logging and saving", ["train"], flag(), "Log the first step too."),
  eval_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(STRATEGIES).default("no"),
    "When to evaluate.",
    "WHEN",
  ),
  eval_steps: option(
    "number",
    "Logging and saving",
    ["train"],
    optional(stepsOrShare),
    "Steps between evaluations; below 1: a share of all steps; none: logging_steps.",
  ),
  save_strategy: option(
    "string",
    "Logging and saving",
    ["train"],
    choice([...STRATEGIES, "best"]).default("steps"),
    "When to save; best: whenever an evaluation is the best so far.",
    "WHEN",
  ),
  save_steps: option(
    "number",
    "Logging and saving",
    ["train"],
    stepsOrShare.default(500),
    "Steps between checkpoints; below 1: a share of all steps.",
  ),
  save_total_limit: option(
    "integer",
    "Logging and saving",
    ["train"],
    optional(positive),
    "Checkpoints kept; older ones are deleted.",
  ),
  load_best_model_at_end: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "End with the adapter of the best checkpoint, which save_total_limit never deletes.",
  ),
  metric_for_best_model: option(
    "string",
    "Logging and saving",
    ["train"],
    optional(choice(EVALUATION_METRICS)),
    "What an evaluation is judged by; eval_ may be left out; none: loss, where a best model is asked for.",
    "METRIC",
  ),
  greater_is_better: option(
    "boolean",
    "Logging and saving",
    ["train"],
    optional(z.boolean()),
    "Whether more of the metric is better; none: unless it ends in loss or runtime.",
  ),
  early_stopping_patience: option(
    "integer",
    "Logging and saving",
    ["train"],
    optional(positive),
    "Stop after so many evaluations in a row that are no better than the best before; none: never.",
  ),
  early_stopping_threshold: option(
    "number",
    "Logging and saving",
    ["train"],
    z.number().nonnegative().default(0),
    "How much better an evaluation must be to count as better for early stopping.",
  ),
  save_only_model: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Leave optimizer and scheduler out of checkpoints.",
  ),
  save_on_each_node: option(
    "boolean",
    "Logging and saving",
    ["train"],
    flag(),
    "Every node writes checkpoints and the adapter to its own output_dir.",
  ),
  save_failure: option(
    "string",
    "Logging and saving",
    ["train"],
    choice(["warn", "fail"]).default("warn"),
    "What a node that can't write its own output_dir does to the run.",
    "HOW",
  ),
  resume_from_checkpoint: option(
    "boolean-or-string",
    "Logging and saving",
    ["train"],
    optional(z.union([z.boolean(), text])),
    "Continue from this checkpoint folder; without a value: from the newest complete one in output_dir, with --save-on-each-node on any node; auto: from that, or from the start where there is no checkpoint yet.",
    "[DIR|auto]",
  ),
  report_to: option(
    "list",
    "Logging and saving",
    ["train"],
    z.union([z.array(choice(TRACKERS)), choice(TRACKERS)]).default("none"),
    "tensorboard: event files in logging_dir. mlflow: the server of $MLFLOW_TRACKING_URI. metrics.jsonl is written in any case.",
  ),
  logging_dir: option(
    "string",
    "Logging and saving",
    ["train"],
    optional(text),
    "Folder of event files; none: output_dir/runs.",
    "DIR",
  ),
  trace: option(
    "string",
    "Logging and saving",
    ["train"],
    optional(text),
    "Write what every rank did in --trace-steps, on one clock, for Perfetto or chrome://tracing.",
    "FILE",
  ),
  trace_steps: option(
    "string",
    "Logging and saving",
    ["train"],
    z
      .union([text, positive.transform(String)])
      .superRefine((given, context) => {
        try {
          tracedSteps(given);
        } catch (error) {
          context.addIssue({ code: "custom", message: (error as Error).message });
        }
      })
      .default("3-5"),
    "Steps that --trace tells of: 3-5, or 1,10-12.",
    "STEPS",
  ),
};
