import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { z } from "zod";
import type { ServedModel, Service } from "../service.ts";
import { answerChat } from "./chat.ts";
import { answerCompletion } from "./completions.ts";
import { ClientLeft, untilLeft } from "./deadline.ts";
import { invalidRequest, modelNotFound } from "./errors.ts";
import { chatRequest, completionRequest } from "./requests.ts";

type Answer<T> = (
  service: Service,
  model: ServedModel,
  request: T,
  to: { readonly reply: FastifyReply; readonly signal: AbortSignal },
) => Promise<unknown>;

/** OpenAI's API over a service, to be registered under /v1. */
export function openaiApi(service: Service): (app: FastifyInstance) => Promise<void> {
  const find = (id: string): ServedModel => {
    const model = service.models().find((one) => one.id === id);
    if (model === undefined) {
      throw modelNotFound(
        id,
        service.models().map((one) => one.id),
      );
    }
    return model;
  };
  const listed = ({ id, parent }: ServedModel) => ({
    id,
    object: "model",
    created: service.created,
    owned_by: "pipelora",
    parent,
    max_model_len: service.scheduler()?.mostTokens ?? null,
  });
  const handle =
    <T extends { readonly model: string }>(schema: z.ZodType<T>, answer: Answer<T>) =>
    async (request: FastifyRequest, reply: FastifyReply): Promise<unknown> => {
      const parsed = schema.safeParse(request.body ?? {});
      if (!parsed.success) throw invalidRequest(parsed.error.issues);
      const model = find(parsed.data.model);
      try {
        return await untilLeft(request, reply, service.timeoutMs, (signal) =>
          answer(service, model, parsed.data, { reply, signal }),
        );
      } catch (error) {
        // The client has left, or the error was sent in the stream already.
        if (error instanceof ClientLeft && !reply.sent) reply.hijack();
        if (reply.sent) return reply;
        throw error;
      }
    };
  return async (app) => {
    app.get("/models", async () => ({ object: "list", data: service.models().map(listed) }));
    app.get<{ Params: { "*": string } }>("/models/*", async ({ params }) => listed(find(params["*"])));
    app.post("/chat/completions", handle(chatRequest, answerChat));
    app.post("/completions", handle(completionRequest, answerCompletion));
  };
}
