import { createServer, request as httpRequest, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { connect } from "node:net";

/** An HTTP proxy on loopback: plain requests as they are, TLS through CONNECT to port 443 or one of `tunnels`. */
export class LoopbackProxy {
  /** "GET http://host/path", "CONNECT host:port". */
  readonly seen: string[] = [];
  readonly authorizations = new Set<string>();
  readonly #server: Server;

  private constructor(tunnels: readonly number[]) {
    this.#server = createServer((request, response) => {
      this.#note(`${request.method} ${request.url}`, request.headers["proxy-authorization"]);
      const { "proxy-authorization": _, ...headers } = request.headers;
      const onward = httpRequest(request.url!, { method: request.method!, headers }, (reply) => {
        response.writeHead(reply.statusCode!, reply.headers);
        reply.pipe(response);
      });
      onward.on("error", () => response.destroy());
      request.pipe(onward);
    });
    this.#server.on("connect", (request, socket) => {
      this.#note(`CONNECT ${request.url}`, request.headers["proxy-authorization"]);
      const [host, port] = request.url!.split(":");
      if (Number(port) !== 443 && !tunnels.includes(Number(port))) {
        socket.end("HTTP/1.1 403 Forbidden\r\n\r\n");
        return;
      }
      const onward = connect(Number(port), host, () => {
        socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
        onward.pipe(socket);
        socket.pipe(onward);
      });
      for (const [end, other] of [
        [onward, socket],
        [socket, onward],
      ] as const) {
        end.on("error", () => other.destroy());
      }
    });
  }

  static async start(test: { after(fn: () => void): void }, tunnels: readonly number[] = []): Promise<LoopbackProxy> {
    const proxy = new LoopbackProxy(tunnels);
    await new Promise<void>((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    test.after(() => {
      proxy.#server.closeAllConnections();
      proxy.#server.close();
    });
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  #note(line: string, authorization: string | undefined): void {
    this.seen.push(line);
    if (authorization !== undefined) this.authorizations.add(authorization);
  }
}
