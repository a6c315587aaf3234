import { type ClientHttp2Session, type ClientHttp2Stream, connect } from "node:http2";

export interface RawCall {
  /** A message as gRPC frames it; marked as compressed where the call's grpc-encoding says more than identity. */
  send(message: Buffer): void;
  /** The answer's grpc-status, null where the connection was cut or the call goes on. */
  readonly status: number | null;
  /** When the server has ended it, or its connection. */
  readonly ended: Promise<void>;
  close(): void;
}

/**
 * A call whose headers and messages are as given, over a connection of its own: gRPC's own client takes a foreign grpc-encoding out. Its
 * errors are nobody's.
 */
export function rawCall(port: number, path: string, headers: Readonly<Record<string, string>> = {}): RawCall {
  const session: ClientHttp2Session = connect(`http://127.0.0.1:${port}`);
  session.on("error", () => {});
  const stream: ClientHttp2Stream = session.request({
    ":method": "POST",
    ":path": path,
    "content-type": "application/grpc",
    te: "trailers",
    ...headers,
  });
  const compressed = (headers["grpc-encoding"] ?? "identity") === "identity" ? 0 : 1;
  let status: number | null = null;
  const heed = (sent: Record<string, unknown>) => {
    if (sent["grpc-status"] !== undefined) status = Number(sent["grpc-status"]);
  };
  stream.on("response", heed);
  stream.on("trailers", heed);
  stream.on("error", () => {});
  stream.resume();
  const ended = new Promise<void>((resolve) => stream.once("close", resolve));
  return {
    send(message) {
      const head = Buffer.alloc(5);
      head[0] = compressed;
      head.writeUInt32BE(message.length, 1);
      if (!stream.destroyed && !stream.closed) stream.write(Buffer.concat([head, message]));
    },
    get status() {
      return status;
    },
    ended,
    close: () => session.destroy(),
  };
}
