import { createServer, type TLSSocket, type Server as TlsServer } from "node:tls";
import { type ChannelOptions, Server, ServerCredentials } from "@grpc/grpc-js";
import { joinAddress, splitAddress } from "../common/address.ts";
import { PipeloraError } from "../common/errors.ts";
import { TLS_SETTINGS, type TlsIdentity } from "../common/tls.ts";
import { CHANNEL_OPTIONS } from "./protocol.ts";
import { type Trust, tokenGuard } from "./trust.ts";

/** Seconds for a TLS handshake: a client that says nothing keeps no socket longer. */
const HANDSHAKE_MS = 10_000;

export interface ListeningServer {
  /** The port bound (the address may have asked for port 0). */
  readonly port: number;
  /** Cuts every connection. */
  close(): void;
  /** Takes no more calls; cuts what is left once the calls have ended, or after so long. */
  drain(mostMs: number): Promise<void>;
}

/**
 * Binds a gRPC server after `register` has added its services. Peers prove membership as `trust` asks; `onRefused` hears of those
 * that can't (their address, and why).
 * Errors: PL_PORT_UNAVAILABLE if the address can't be bound.
 */
export async function listen(
  address: string,
  trust: Trust,
  onRefused: (peer: string, reason: string) => void,
  register: (server: Server) => void,
): Promise<ListeningServer> {
  const server = new Server({ ...CHANNEL_OPTIONS, interceptors: [tokenGuard(trust, onRefused)] });
  register(server);
  try {
    if (trust.tls === null) return listening(server, await bindPlain(server, address), () => {});
    const front = await bindTls(server, address, trust.tls, onRefused);
    return listening(server, (front.address() as { port: number }).port, () => front.close());
  } catch (cause) {
    throw unavailable(address, cause as Error);
  }
}

function listening(server: Server, port: number, stopAccepting: () => void): ListeningServer {
  const close = () => {
    stopAccepting();
    server.forceShutdown();
  };
  return {
    port,
    close,
    drain: async (mostMs) => {
      stopAccepting();
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, mostMs);
        server.tryShutdown(() => {
          clearTimeout(timer);
          resolve();
        });
      });
      close();
    },
  };
}

/**
 * Binds a gRPC server that asks nobody for proof, in plaintext and with limits of its own.
 * Errors: PL_PORT_UNAVAILABLE if the address can't be bound.
 */
export async function listenToAnyone(
  address: string,
  limits: ChannelOptions,
  register: (server: Server) => void,
): Promise<ListeningServer> {
  const server = new Server(limits);
  register(server);
  try {
    return listening(server, await bindPlain(server, address), () => {});
  } catch (cause) {
    throw unavailable(address, cause as Error);
  }
}

function unavailable(address: string, cause: Error): PipeloraError {
  return new PipeloraError("PL_PORT_UNAVAILABLE", `can't listen on ${address}: ${cause.message}`, {
    cause,
    hint: "Choose another port, or port 0 for any free one.",
  });
}

function bindPlain(server: Server, address: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, port) =>
      error === null ? resolve(port) : reject(error),
    );
  });
}

/**
 * The handshake is made here and gRPC gets the connection behind it: so every refusal is heard, a peer's name is checked before it
 * is spoken to, and each connection takes the certificates of its time.
 */
async function bindTls(
  server: Server,
  address: string,
  identity: TlsIdentity,
  onRefused: (peer: string, reason: string) => void,
): Promise<TlsServer> {
  const behind = server.createConnectionInjector(ServerCredentials.createInsecure());
  let material = identity.current();
  const front = createServer({
    ...material,
    ...TLS_SETTINGS,
    requestCert: true,
    // Judged below, where the verdict can still be told with the peer's address.
    rejectUnauthorized: false,
    ALPNProtocols: ["h2"],
    handshakeTimeout: HANDSHAKE_MS,
  });
  front.prependListener("connection", () => {
    const newest = identity.current();
    if (newest !== material) front.setSecureContext({ ...newest, ...TLS_SETTINGS });
    material = newest;
  });
  front.on("tlsClientError", (error, socket) => {
    onRefused(nameOf(socket), describe(error));
    socket.destroy();
  });
  front.on("secureConnection", (socket) => {
    const problem = socket.authorized
      ? identity.refuses(socket.getPeerCertificate())?.message
      : `its certificate: ${socket.authorizationError}`;
    if (problem !== undefined) {
      onRefused(nameOf(socket), problem);
      socket.destroy();
      return;
    }
    socket.setNoDelay(true);
    behind.injectConnection(socket);
  });
  const { host, port } = splitAddress(address);
  await new Promise<void>((resolve, reject) => {
    front.once("error", reject);
    front.listen({ host, port }, () => resolve());
  });
  return front;
}

function nameOf({ remoteAddress, remotePort }: TLSSocket): string {
  return remoteAddress === undefined ? "a client that is gone" : joinAddress(remoteAddress, remotePort ?? 0);
}

function describe(error: Error & { code?: string; reason?: string }): string {
  return error.reason ?? error.code ?? error.message;
}
