import { randomInt } from "node:crypto";
import type { TokenChoice } from "../../generation/draws.ts";
import { type Reply, type ReplyPiece, reply } from "../../generation/reply.ts";
import type { Scheduler } from "../../generation/scheduler.ts";
import type { ServedModel, Service } from "../service.ts";
import { ApiError } from "./errors.ts";
import type { CommonRequest } from "./requests.ts";

/** Retry-After, in seconds, while the model is being loaded. */
const LOADING_S = 5;
const MOST_SEED = 2 ** 48 - 1;

/** How a request wants tokens sampled. Defaults are OpenAI's: temperature 1, no truncation. */
export function tokenChoice(request: CommonRequest, likeliest: number, vocabSize: number): TokenChoice {
  const temperature = request.temperature ?? 1;
  const logitBias = new Map(Object.entries(request.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias]));
  for (const id of logitBias.keys()) {
    if (id >= vocabSize) throw new ApiError(400, `Id ${id} is outside the vocabulary.`, { param: "logit_bias" });
  }
  return {
    doSample: temperature > 0,
    temperature: temperature > 0 ? temperature : 1,
    topP: request.top_p ?? 1,
    topK: Math.max(0, request.top_k ?? 0),
    minP: request.min_p ?? 0,
    repetitionPenalty: request.repetition_penalty ?? 1,
    frequencyPenalty: request.frequency_penalty ?? 0,
    presencePenalty: request.presence_penalty ?? 0,
    logitBias,
    seed: seedOf(request.seed ?? randomInt(MOST_SEED)),
    likeliest,
  };
}

/** What the replies of one request have in common. */
export interface WantedReplies {
  readonly prompts: readonly (readonly number[])[];
  /** Replies to each prompt. */
  readonly n: number;
  readonly maxTokens: number;
  readonly choice: TokenChoice;
  readonly stopIds: ReadonlySet<number>;
  readonly stops: readonly string[];
  /** Whether special tokens show in the text. */
  readonly specials: boolean;
  readonly signal: AbortSignal;
}

export function stopsOf(model: ServedModel, request: CommonRequest): Pick<WantedReplies, "stopIds" | "stops"> {
  const { stop, stop_token_ids: ids } = request;
  return {
    stopIds: new Set([...model.stopIds, ...(ids ?? [])]),
    stops: typeof stop === "string" ? [stop] : (stop ?? []),
  };
}

/**
 * All replies of a request at the same time; `onPiece` hears of each as it comes. The replies to one prompt differ in their seeds alone:
 * the first has the request's. Errors: ApiError, the scheduler's.
 */
export async function replies(
  service: Service,
  { tokenizer, adapter }: ServedModel,
  wanted: WantedReplies,
  onPiece: (index: number, piece: ReplyPiece) => void,
): Promise<Reply[]> {
  const scheduler = schedulerOf(service);
  const { prompts, n, maxTokens, choice, stopIds, stops, specials, signal } = wanted;
  const all = prompts.flatMap((prompt) => Array.from({ length: n }, (_, own) => ({ prompt, own })));
  for (const prompt of prompts) expectFits(prompt.length, maxTokens, scheduler.mostTokens);
  if (all.length > scheduler.mostSequences) {
    const most = `At most ${scheduler.mostSequences} replies can be made at a time, and this request asks for ${all.length}.`;
    throw new ApiError(400, most, { param: n > 1 ? "n" : "prompt" });
  }
  scheduler.expectRoom(all.length);
  // One that fails ends them all.
  const failed = new AbortController();
  const begun = all.map(({ prompt, own }, index) =>
    reply(
      scheduler,
      tokenizer,
      {
        prompt,
        maxNewTokens: maxTokens,
        stopIds,
        stops,
        specials,
        adapter,
        choice: { ...choice, seed: seedOf(choice.seed + own) },
        signal: AbortSignal.any([signal, failed.signal]),
      },
      (piece) => onPiece(index, piece),
    ),
  );
  try {
    return await Promise.all(begun);
  } catch (error) {
    failed.abort(error);
    await Promise.allSettled(begun);
    throw error;
  }
}

/** Error: 503 while there is none. */
export function schedulerOf(service: Service): Scheduler {
  const scheduler = service.scheduler();
  if (scheduler !== null) return scheduler;
  throw new ApiError(503, "The model is being loaded.", { code: "loading", retryAfterS: LOADING_S });
}

function seedOf(value: number): number {
  return ((value % MOST_SEED) + MOST_SEED) % MOST_SEED;
}

/** The error in OpenAI's words, which its clients recognise. */
function expectFits(prompt: number, reply: number, most: number): void {
  if (prompt + reply <= most) return;
  throw new ApiError(
    400,
    `This model's maximum context length is ${most} tokens. However, you requested ${prompt + reply} tokens (${prompt} in the messages, ${reply} in the completion). Please reduce the length of the messages or completion.`,
    { param: "messages", code: "context_length_exceeded" },
  );
}
