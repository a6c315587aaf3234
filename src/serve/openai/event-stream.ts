import type { FastifyReply } from "fastify";
import { toApiError } from "./errors.ts";

/**
 * Server-sent events of one request. The status is sent with the first event: an earlier failure gets a status of its own, a later one an
 * event with the error.
 */
class EventStream {
  readonly #reply: FastifyReply;
  #begun = false;

  constructor(reply: FastifyReply) {
    this.#reply = reply;
  }

  get begun(): boolean {
    return this.#begun;
  }

  send(event: unknown): void {
    this.#begin();
    this.#reply.raw.write(`data: ${JSON.stringify(event)}\n\n`);
  }

  done(): void {
    this.#begin();
    this.#reply.raw.end("data: [DONE]\n\n");
  }

  fail(error: unknown): void {
    this.#reply.raw.end(`data: ${JSON.stringify(toApiError(error).body)}\n\n`);
  }

  #begin(): void {
    if (this.#begun) return;
    this.#begun = true;
    this.#reply.hijack();
    this.#reply.raw.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      connection: "keep-alive",
      // Proxies that would collect events.
      "x-accel-buffering": "no",
    });
  }
}

/**
 * An answer in chunks: those that `write` sends, each with the current `head`; usage at the end if it is wanted; and the end mark. Failures
 * are reported as the stream does.
 */
export async function streamAnswer(
  reply: FastifyReply,
  { head, includeUsage }: { readonly head: () => object; readonly includeUsage: boolean },
  write: (send: (choices: readonly unknown[]) => void) => Promise<object>,
): Promise<FastifyReply> {
  const stream = new EventStream(reply);
  const send = (choices: readonly unknown[], counted: object | null) =>
    stream.send({ ...head(), choices, ...(includeUsage ? { usage: counted } : {}) });
  try {
    const counted = await write((choices) => send(choices, null));
    if (includeUsage) send([], counted);
    stream.done();
  } catch (error) {
    if (stream.begun) stream.fail(error);
    throw error;
  }
  return reply;
}
