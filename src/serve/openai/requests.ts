import { z } from "zod";

/** Bodies of requests. Fields that OpenAI has and that would change the answer in ways this server can't are refused by name. */

const probability = z.number().min(0).max(1);
const count = z.number().int().min(0);
const seed = z.number().int();
const optional = <T extends z.ZodType>(schema: T) => schema.nullish();
/** Fields that are accepted because they do not change the answer. */
const without_effect = z.unknown();

/** Accepted if the value asks for what is done anyway. */
function only<T extends z.ZodType>(schema: T, why: string) {
  return optional(z.unknown().refine((value) => value === null || schema.safeParse(value).success, why));
}

const stop = optional(z.union([z.string().min(1), z.array(z.string().min(1)).max(16)]));

/** Fields that both kinds of completions have. Names that are not OpenAI's are vLLM's. */
const common = {
  model: z.string(),
  stream: optional(z.boolean()),
  stream_options: optional(
    z.strictObject({ include_usage: optional(z.boolean()), include_obfuscation: optional(z.literal(false)) }),
  ),
  temperature: optional(z.number().min(0).max(100)),
  top_p: optional(z.number().gt(0).max(1)),
  top_k: optional(z.number().int().min(-1)),
  min_p: optional(probability),
  frequency_penalty: optional(z.number().min(-2).max(2)),
  presence_penalty: optional(z.number().min(-2).max(2)),
  repetition_penalty: optional(z.number().positive()),
  logit_bias: optional(z.record(z.string().regex(/^\d+$/, "expected ids as keys"), z.number().min(-100).max(100))),
  seed: optional(seed),
  stop,
  stop_token_ids: optional(z.array(count)),
  n: optional(z.number().int().min(1).max(128)),
  user: optional(without_effect),
  metadata: optional(without_effect),
  store: optional(without_effect),
  service_tier: optional(without_effect),
  safety_identifier: optional(without_effect),
  prompt_cache_key: optional(without_effect),
  prompt_cache_retention: optional(without_effect),
};

const textPart = z.strictObject({ type: z.literal("text"), text: z.string() });
const refusalPart = z.strictObject({ type: z.literal("refusal"), refusal: z.string() });
const content = z.union(
  [z.string(), z.array(z.union([textPart, refusalPart])).min(1)],
  "expected text, or parts of text",
);

const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal("function"),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
});

const message = z.discriminatedUnion("role", [
  z.strictObject({ role: z.enum(["system", "developer", "user"]), content, name: optional(z.string()) }),
  z.strictObject({
    role: z.literal("assistant"),
    content: content.nullish(),
    name: optional(z.string()),
    reasoning_content: optional(z.string()),
    refusal: optional(z.string()),
    tool_calls: optional(z.array(toolCall)),
    audio: z.null().optional(),
    annotations: optional(without_effect),
    function_call: z.null().optional(),
  }),
  z.strictObject({ role: z.literal("tool"), content, tool_call_id: z.string(), name: optional(z.string()) }),
]);

const tool = z.strictObject({
  type: z.literal("function"),
  function: z.strictObject({
    name: z.string().regex(/^[\w.-]{1,64}$/, "expected letters, digits, underscores, dots and dashes, at most 64"),
    description: optional(z.string()),
    parameters: optional(z.record(z.string(), z.unknown())),
    strict: optional(z.literal(false, "replies are not held to a schema")),
  }),
});

export const chatRequest = z
  .strictObject({
    ...common,
    messages: z.array(message).min(1),
    max_tokens: optional(z.number().int().min(1)),
    max_completion_tokens: optional(z.number().int().min(1)),
    logprobs: optional(z.boolean()),
    top_logprobs: optional(count.max(20)),
    tools: optional(z.array(tool)),
    tool_choice: only(z.enum(["auto", "none"]), 'only "auto" and "none": a call can\'t be forced'),
    parallel_tool_calls: optional(z.boolean()),
    chat_template_kwargs: optional(z.record(z.string(), z.unknown())),
    response_format: only(z.looseObject({ type: z.literal("text") }), "only text: replies are not held to a schema"),
    modalities: only(z.tuple([z.literal("text")]), "only text"),
    reasoning_effort: only(z.null(), "not supported"),
    verbosity: only(z.null(), "not supported"),
    prediction: only(z.null(), "not supported"),
    audio: only(z.null(), "not supported"),
    web_search_options: only(z.null(), "not supported"),
    functions: only(z.null(), "deprecated: use tools"),
    function_call: only(z.null(), "deprecated: use tool_choice"),
  })
  .refine(({ logprobs, top_logprobs }) => logprobs === true || (top_logprobs ?? 0) === 0, {
    path: ["top_logprobs"],
    message: "needs logprobs: true",
  });

const ids = z.array(count).min(1);

export const completionRequest = z.strictObject({
  ...common,
  prompt: z.union(
    [z.string(), z.array(z.string()).min(1), ids, z.array(ids).min(1)],
    "expected text, ids, or a list of either",
  ),
  max_tokens: optional(z.number().int().min(1)),
  logprobs: optional(count.max(5)),
  echo: optional(z.boolean()),
  best_of: only(z.literal(1), "only 1"),
  suffix: only(z.null(), "not supported"),
});

export type CommonRequest = Pick<ChatRequest & CompletionRequest, keyof typeof common>;
export type ChatRequest = z.infer<typeof chatRequest>;
export type CompletionRequest = z.infer<typeof completionRequest>;
export type RequestMessage = z.infer<typeof message>;
