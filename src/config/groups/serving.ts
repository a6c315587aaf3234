import { z } from "zod";
import { fromEnvironment, LISTENS, option, optional, positive, SERVES, text } from "./vocabulary.ts";

/** Commands that continue several sequences at a time. */
const BATCHES = [...SERVES, "generate"] as const;

/** The API over HTTP, and how sequences are batched. Names are vLLM's and TGI's where these have one. */
export const servingOptions = {
  http: option(
    "string",
    "Serving",
    LISTENS,
    optional(text),
    "Address that the API and, for train and ui, the page answer on; none: 127.0.0.1:8000 for serve, 127.0.0.1:8001 for ui, nothing for train, whose API answers between steps with the adapter as it is.",
    "HOST:PORT",
  ),
  api_key: {
    ...fromEnvironment(
      "PIPELORA_API_KEY",
      option(
        "string",
        "Serving",
        LISTENS,
        optional(text),
        "Key that requests must carry as a bearer token; others see it on the command line, so prefer the file or the environment.",
        "KEY",
      ),
    ),
    secret: true as const,
  },
  api_key_file: option("string", "Serving", LISTENS, optional(text), "File that holds the key.", "FILE"),
  http_tls_cert: option(
    "string",
    "Serving",
    LISTENS,
    optional(text),
    "Certificate with which the API speaks TLS (PEM), intermediates after it.",
    "FILE",
  ),
  http_tls_key: option("string", "Serving", LISTENS, optional(text), "The certificate's private key.", "FILE"),
  served_model_name: option(
    "string",
    "Serving",
    SERVES,
    optional(text),
    "Name of the base model in the API; none: the last part of --model. While training: of the adapter as it is; none: the last part of --output-dir.",
    "NAME",
  ),
  max_num_seqs: option(
    "integer",
    "Serving",
    [...BATCHES, "plan"],
    positive.max(256).default(16),
    "Sequences that are continued at a time; others wait.",
  ),
  kv_cache_tokens: option(
    "integer",
    "Serving",
    [...BATCHES, "plan"],
    optional(positive),
    "Tokens of all sequences together that the key/value cache has room for; none: as many as these sequences may need at 4096 each (while training 8192 in all), or what fits of that. plan counts it beside a training step.",
  ),
  max_num_batched_tokens: option(
    "integer",
    "Serving",
    [...BATCHES, "chat"],
    positive.default(512),
    "Most tokens that go through the model together: longer prompts go in pieces.",
  ),
  max_concurrent_requests: option(
    "integer",
    "Serving",
    SERVES,
    positive.default(128),
    "Replies taken on at a time, those that wait included; more get 429 with a time to try again.",
  ),
  request_timeout: option(
    "number",
    "Serving",
    SERVES,
    z.number().positive().default(600),
    "Seconds after which a request that is not answered is given up.",
    "SECONDS",
  ),
  sample_prompts: option(
    "string",
    "Serving",
    ["train"],
    optional(text),
    'A file of prompts, one a line, or JSONL of {"prompt"}, {"messages"} or {"prompt_ids"}: replies to them, greedy, are written at every evaluation to the log, TensorBoard and samples.jsonl.',
    "FILE",
  ),
};
