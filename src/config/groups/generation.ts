import { z } from "zod";
import { count, flag, oneOrMore, option, optional, positive, SAMPLES, SERVES, text } from "./vocabulary.ts";

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
  output: option(
    "string",
    "Generation",
    ["generate"],
    optional(text),
    "Where the answers to --input go, one JSON line a prompt in their order; what was answered before stays, so that it can be run again.",
    "FILE",
  ),
  raw: option(
    "boolean",
    "Generation",
    ["generate"],
    flag(),
    "Continue the prompt's text itself, without the template.",
  ),
  max_new_tokens: option(
    "integer",
    "Generation",
    [...SAMPLES, ...SERVES],
    positive.default(512),
    "Most tokens to generate; over HTTP where a chat's request does not say.",
  ),
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
  min_p: option(
    "number",
    "Generation",
    SAMPLES,
    z.number().min(0).max(1).default(0),
    "Only tokens at least so likely as this share of the likeliest.",
  ),
  stop: option("list", "Generation", SAMPLES, optional(oneOrMore), "Texts that end a reply and are left out of it."),
  stop_ids: option(
    "json",
    "Generation",
    SAMPLES,
    optional(z.array(count)),
    "Token ids that end generation; none: the model's.",
  ),
};
