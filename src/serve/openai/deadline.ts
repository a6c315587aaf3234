import type { FastifyReply, FastifyRequest } from "fastify";
import { PipeloraError } from "../../common/errors.ts";

/** Runs a request's work until it is done, its client has left, or its time is up: the signal's reason says which. */
export async function untilLeft<T>(
  request: FastifyRequest,
  reply: FastifyReply,
  timeoutMs: number,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const ending = new AbortController();
  const late = setTimeout(
    () =>
      ending.abort(new PipeloraError("PL_REQUEST_LATE", `the request was not answered within ${timeoutMs / 1000} s`)),
    timeoutMs,
  );
  const left = () => {
    if (!reply.raw.writableFinished) ending.abort(new ClientLeft());
  };
  reply.raw.on("close", left);
  if (request.raw.destroyed && request.raw.readableAborted) left();
  try {
    return await work(ending.signal);
  } finally {
    clearTimeout(late);
    reply.raw.off("close", left);
  }
}

/** Nobody is there to be told. */
export class ClientLeft extends Error {
  constructor() {
    super("the client left");
  }
}
