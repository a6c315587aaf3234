import { randomUUID } from "node:crypto";
import type { FastifyReply } from "fastify";
import type { DrawnToken } from "../../generation/round.ts";
import type { ServedModel, Service } from "../service.ts";
import { replies, stopsOf, tokenChoice, type WantedReplies } from "./choices.ts";
import { ApiError } from "./errors.ts";
import { streamAnswer } from "./event-stream.ts";
import { completionLogprobs } from "./log-probabilities.ts";
import type { CompletionRequest } from "./requests.ts";
import { fingerprint, usage } from "./usage.ts";

/** OpenAI's default for this endpoint. */
const DEFAULT_TOKENS = 16;

/** POST /v1/completions */
export async function answerCompletion(
  service: Service,
  model: ServedModel,
  request: CompletionRequest,
  { reply, signal }: { readonly reply: FastifyReply; readonly signal: AbortSignal },
): Promise<unknown> {
  const prompts = promptsOf(model, request);
  const n = request.n ?? 1;
  if (request.echo === true && request.logprobs != null) {
    throw new ApiError(400, "'echo' with 'logprobs': a prompt's own log-probabilities are not computed.", {
      param: "echo",
    });
  }
  const wanted: WantedReplies = {
    ...stopsOf(model, request),
    prompts: prompts.map(({ ids }) => ids),
    n,
    maxTokens: request.max_tokens ?? DEFAULT_TOKENS,
    choice: tokenChoice(request, request.logprobs ?? -1, model.tokenizer.vocabSize),
    specials: false,
    signal,
  };
  const choices = prompts.flatMap(({ text }) =>
    Array.from({ length: n }, () => ({
      text: request.echo === true ? text() : "",
      tokens: [] as DrawnToken[],
      offset: 0,
    })),
  );
  const logprobs = (tokens: readonly DrawnToken[], offset: number) =>
    request.logprobs == null ? null : completionLogprobs(model.tokenizer, tokens, offset);
  const shown = (tokens: readonly DrawnToken[]) => tokens.filter(({ id }) => !wanted.stopIds.has(id));
  const common = {
    id: `cmpl-${randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: model.id,
    object: "text_completion",
  };
  if (request.stream !== true) {
    const done = await replies(service, model, wanted, (index, piece) => {
      choices[index]!.text += piece.text;
      choices[index]!.tokens.push(...shown(piece.tokens));
    });
    return {
      ...common,
      ...fingerprint(model),
      choices: done.map(({ reason }, index) => {
        const { text, tokens } = choices[index]!;
        return { index, text, logprobs: logprobs(tokens, 0), finish_reason: reason };
      }),
      usage: usage(wanted.prompts, done),
    };
  }
  const head = () => ({ ...common, ...fingerprint(model) });
  const includeUsage = request.stream_options?.include_usage === true;
  return streamAnswer(reply, { head, includeUsage }, async (send) => {
    const done = await replies(service, model, wanted, (index, piece) => {
      const choice = choices[index]!;
      const tokens = shown(piece.tokens);
      const text = choice.text + piece.text;
      choice.text = "";
      send([
        { index, text, logprobs: tokens.length === 0 ? null : logprobs(tokens, choice.offset), finish_reason: null },
      ]);
      choice.offset += text.length;
    });
    for (const [index, { reason }] of done.entries()) {
      send([{ index, text: choices[index]!.text, logprobs: null, finish_reason: reason }]);
    }
    return usage(wanted.prompts, done);
  });
}

interface Prompt {
  readonly ids: readonly number[];
  readonly text: () => string;
}

function promptsOf({ tokenizer }: ServedModel, { prompt }: CompletionRequest): Prompt[] {
  const one = (given: string | readonly number[]): Prompt => {
    if (typeof given === "string") {
      const ids = tokenizer.encode(given, { addSpecials: true });
      // An empty prompt begins as texts do.
      const begun = ids.length > 0 ? ids : [tokenizer.bosId ?? tokenizer.eosId].filter((id) => id !== null);
      if (begun.length === 0) throw new ApiError(400, "The prompt is empty.", { param: "prompt" });
      return { ids: begun, text: () => given };
    }
    const wrong = given.find((id) => id >= tokenizer.vocabSize);
    if (wrong !== undefined) throw new ApiError(400, `Id ${wrong} is outside the vocabulary.`, { param: "prompt" });
    return { ids: given, text: () => tokenizer.decode(given) };
  };
  if (typeof prompt === "string") return [one(prompt)];
  return typeof prompt[0] === "number" ? [one(prompt as number[])] : (prompt as (string | number[])[]).map(one);
}
