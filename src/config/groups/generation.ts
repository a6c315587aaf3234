import { z } from "zod";
import { count, flag, option, optional, positive, SAMPLES } from "./vocabulary.ts";

export const generationOptions = {
  prompt: option(
    "string",
    "Generation",
    ["generate"],
    optional(z.string()),
    "The user's message, put into the template.",
  ),
  prompt_ids: option(
    "json",
    "Generation",
    ["generate"],
    optional(z.array(count).min(1)),
    "Token ids to continue, as they are.",
  ),
  raw: option(
    "boolean",
    "Generation",
    ["generate"],
    flag(),
    "Continue the prompt's text itself, without the template.",
  ),
  max_new_tokens: option("integer", "Generation", SAMPLES, positive.default(512), "Most tokens to generate."),
  do_sample: option("boolean", "Generation", SAMPLES, flag(), "Sample; otherwise greedy."),
  temperature: option("number", "Generation", SAMPLES, z.number().positive().default(1), "Divides the logits."),
  top_p: option("number", "Generation", SAMPLES, z.number().gt(0).max(1).default(1), "Nucleus sampling."),
  top_k: option("integer", "Generation", SAMPLES, count.default(50), "Only the k likeliest tokens; 0: all."),
  repetition_penalty: option(
    "number",
    "Generation",
    SAMPLES,
    z.number().positive().default(1),
    "Above 1: seen tokens become less likely.",
  ),
  stop_ids: option(
    "json",
    "Generation",
    SAMPLES,
    optional(z.array(count)),
    "Token ids that end generation; none: the model's.",
  ),
};
