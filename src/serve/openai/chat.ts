import { randomUUID } from "node:crypto";
import type { FastifyReply } from "fastify";
import type { DrawnToken } from "../../generation/round.ts";
import type { ServedModel, Service } from "../service.ts";
import { replies, schedulerOf, stopsOf, tokenChoice, type WantedReplies } from "./choices.ts";
import { ApiError } from "./errors.ts";
import { streamAnswer } from "./event-stream.ts";
import { chatLogprobs } from "./log-probabilities.ts";
import { templateMessages } from "./messages.ts";
import type { ChatRequest } from "./requests.ts";
import { type ToolCall, type ToolPiece, type ToolReader, toolReader } from "./tool-calls.ts";
import { fingerprint, usage } from "./usage.ts";

/** POST /v1/chat/completions */
export async function answerChat(
  service: Service,
  model: ServedModel,
  request: ChatRequest,
  { reply, signal }: { readonly reply: FastifyReply; readonly signal: AbortSignal },
): Promise<unknown> {
  const tools = toolsOf(model, request);
  const prompt = promptOf(model, request, tools);
  const wanted: WantedReplies = {
    ...stopsOf(model, request),
    prompts: [prompt],
    n: request.n ?? 1,
    maxTokens: request.max_completion_tokens ?? request.max_tokens ?? defaultTokens(service, prompt.length),
    choice: tokenChoice(
      request,
      request.logprobs === true ? (request.top_logprobs ?? 0) : -1,
      model.tokenizer.vocabSize,
    ),
    specials: tools !== null,
    signal,
  };
  const chat = new ChatChoices(model, wanted, request, () =>
    tools === null ? null : toolReader(model.template!.source!),
  );
  const common = { id: `chatcmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: model.id };
  if (request.stream !== true) {
    const done = await replies(service, model, wanted, (index, piece) => chat.push(index, piece.text, piece.tokens));
    return {
      ...common,
      object: "chat.completion",
      ...fingerprint(model),
      choices: done.map(({ reason }, index) => chat.whole(index, reason)),
      usage: usage([prompt], done),
    };
  }
  const head = () => ({ ...common, object: "chat.completion.chunk", ...fingerprint(model) });
  const includeUsage = request.stream_options?.include_usage === true;
  return streamAnswer(reply, { head, includeUsage }, async (send) => {
    const done = await replies(service, model, wanted, (index, piece) => {
      const delta = chat.push(index, piece.text, piece.tokens);
      if (delta !== null) send([{ index, ...delta, finish_reason: null }]);
    });
    for (const [index, { reason }] of done.entries()) {
      const last = chat.end(index, reason);
      if (last.rest !== null) send([{ index, ...last.rest, finish_reason: null }]);
      send([{ index, delta: {}, logprobs: null, finish_reason: last.reason }]);
    }
    return usage([prompt], done);
  });
}

/** Tools that the model is told of; null: none. */
function toolsOf({ template }: ServedModel, { tools, tool_choice: choice }: ChatRequest): readonly unknown[] | null {
  if (tools == null || tools.length === 0 || choice === "none") return null;
  if (template?.source != null && toolReader(template.source) !== null) return tools;
  throw new ApiError(400, "This model's chat template knows no tools.", { param: "tools" });
}

function promptOf(
  { id, template }: ServedModel,
  { messages, chat_template_kwargs: variables }: ChatRequest,
  tools: readonly unknown[] | null,
): number[] {
  if (template?.source == null) {
    throw new ApiError(400, `The model \`${id}\` has no chat template. Use /v1/completions.`, { param: "model" });
  }
  return template.encodePrompt(templateMessages(messages), { tools, ...(variables == null ? {} : { variables }) });
}

function defaultTokens(service: Service, prompt: number): number {
  return Math.max(1, Math.min(service.defaultTokens, schedulerOf(service).mostTokens - prompt));
}

interface Delta {
  readonly delta: Readonly<Record<string, unknown>>;
  readonly logprobs: unknown;
}

/** The choices of one answer as their text comes. */
class ChatChoices {
  readonly #model: ServedModel;
  readonly #wanted: WantedReplies;
  readonly #request: ChatRequest;
  readonly #choices: {
    readonly tools: ToolReader | null;
    readonly calls: ToolCall[];
    readonly tokens: DrawnToken[];
    content: string;
    begun: boolean;
  }[];

  constructor(model: ServedModel, wanted: WantedReplies, request: ChatRequest, reader: () => ToolReader | null) {
    this.#model = model;
    this.#wanted = wanted;
    this.#request = request;
    this.#choices = Array.from({ length: wanted.n }, () => ({
      tools: reader(),
      calls: [],
      tokens: [],
      content: "",
      begun: false,
    }));
  }

  /** The stream's next delta; null: nothing yet. */
  push(index: number, text: string, tokens: readonly DrawnToken[]): Delta | null {
    const choice = this.#choices[index]!;
    const shown = tokens.filter(({ id }) => !this.#wanted.stopIds.has(id));
    choice.tokens.push(...shown);
    return this.#add(index, choice.tools?.push(text) ?? { content: text, calls: [] }, shown);
  }

  /** What was held back until the end, and the reason as clients know it. */
  end(index: number, reason: "stop" | "length"): { rest: Delta | null; reason: string } {
    const choice = this.#choices[index]!;
    const rest = this.#add(index, choice.tools?.end() ?? { content: "", calls: [] }, []);
    return { rest, reason: choice.calls.length > 0 && reason === "stop" ? "tool_calls" : reason };
  }

  whole(index: number, ended: "stop" | "length"): unknown {
    const { reason } = this.end(index, ended);
    const { content, calls, tokens } = this.#choices[index]!;
    return {
      index,
      message: {
        role: "assistant",
        content: calls.length > 0 && content === "" ? null : content,
        refusal: null,
        ...(calls.length > 0 ? { tool_calls: calls.map(callMessage) } : {}),
      },
      logprobs: this.#logprobs(tokens),
      finish_reason: reason,
    };
  }

  #add(index: number, { content, calls }: ToolPiece, tokens: readonly DrawnToken[]): Delta | null {
    const choice = this.#choices[index]!;
    const room = this.#request.parallel_tool_calls === false ? 1 - choice.calls.length : calls.length;
    const taken = calls.slice(0, Math.max(0, room));
    const first = choice.calls.length;
    choice.content += content;
    choice.calls.push(...taken);
    const logprobs = tokens.length === 0 ? null : this.#logprobs(tokens);
    if (content === "" && taken.length === 0 && logprobs === null && choice.begun) return null;
    const role = choice.begun ? {} : { role: "assistant" };
    choice.begun = true;
    return {
      delta: {
        ...role,
        ...(content !== "" || taken.length === 0 ? { content } : {}),
        ...(taken.length > 0
          ? { tool_calls: taken.map((call, at) => ({ index: first + at, ...callMessage(call) })) }
          : {}),
      },
      logprobs,
    };
  }

  #logprobs(tokens: readonly DrawnToken[]): unknown {
    return this.#request.logprobs === true ? chatLogprobs(this.#model.tokenizer, tokens) : null;
  }
}

function callMessage({ id, name, arguments: given }: ToolCall) {
  return { id, type: "function", function: { name, arguments: given } };
}
