import type { FastifyReply } from "fastify";
import { toApiError } from "./errors.ts";

/**
 * Server-sent events of one request. Nothing is sent before the first event: what fails until then gets a status of its own, what fails
 * later an event with the error.
 */
export class EventStream {
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
