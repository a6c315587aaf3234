import { EventSourceParserStream } from "eventsource-parser/stream";
import type { Change, Cursor } from "../src/serve/page/wire.ts";

const KEPT = "pipelora.key";

/** An answer other than 2xx; 0: none came. */
export class ServerError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Also kept beyond this page, until the tab is closed, where the browser keeps anything. */
let known: string | null = storedKey();

function storedKey(): string | null {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

export function keepKey(key: string): void {
  known = key;
  try {
    sessionStorage.setItem(KEPT, key);
  } catch {}
}

export function hasKey(): boolean {
  return known !== null;
}

/** A path below this page's own. Errors: ServerError, and the signal's reason. */
export async function request(
  path: string,
  { signal, body }: { signal?: AbortSignal; body?: object } = {},
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, {
      headers: {
        ...(known === null ? {} : { authorization: `Bearer ${known}` }),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (error) {
    signal?.throwIfAborted();
    throw new ServerError(0, (error as Error).message);
  }
  if (response.ok) return response;
  const told = (await response.json().catch(() => null)) as { error?: { message?: string } } | null;
  throw new ServerError(response.status, told?.error?.message ?? response.statusText);
}

export async function ask<T>(
  path: string,
  query: Readonly<Record<string, string | number>>,
  signal?: AbortSignal,
): Promise<T> {
  const parameters = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)]));
  const text = parameters.size === 0 ? path : `${path}?${parameters}`;
  return (await request(text, signal === undefined ? {} : { signal })).json() as Promise<T>;
}

/** What a run tells from `cursor` on, until the connection ends. Errors: those of request. */
export async function* changes(run: string, { generation, rows }: Cursor, signal: AbortSignal): AsyncGenerator<Change> {
  const query = new URLSearchParams({ run, generation: String(generation), rows: String(rows) });
  for await (const { data } of events(await request(`page/live?${query}`, { signal })))
    yield JSON.parse(data) as Change;
}

/** The server-sent events of a response. */
export async function* events(response: Response): AsyncGenerator<{ readonly data: string }> {
  const stream = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  const reader = stream.getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    await reader.cancel().catch(() => {});
  }
}
