import { createServer as createPlainServer, type Socket, type Server as TcpServer } from "node:net";
import { createServer, type TLSSocket } from "node:tls";
import { type ChannelOptions, Server, ServerCredentials } from "@grpc/grpc-js";
import { joinAddress, splitAddress } from "../common/address.ts";
import { PipeloraError } from "../common/errors.ts";
import { TLS_SETTINGS, type TlsIdentity } from "../common/tls.ts";
import { CHANNEL_OPTIONS } from "./protocol.ts";
import { Refusals } from "./refusals.ts";
import { type Trust, tokenGuard } from "./trust.ts";
import { Visitors } from "./visitors.ts";

/** Seconds for a TLS handshake: a client that says nothing keeps no socket longer. */
const HANDSHAKE_MS = 10_000;

/** What peers may send. */
export interface MessageLimits {
  /** Largest message of a member. */
  readonly memberBytes: number;
  /** Bytes that a connection may send in plaintext and without a token, until `believe` is called for it. */
  readonly strangerBytes: number;
}

/** Requests for tensors are short; the tensors go the other way. */
const REQUESTS_ALONE: MessageLimits = { memberBytes: 64 * 1024, strangerBytes: Number.POSITIVE_INFINITY };
/** Streams of one connection at a time: a rank has a few towards each other rank. */
const MOST_STREAMS = 256;

export interface ListeningServer {
  /** The port bound (the address may have asked for port 0). */
  readonly port: number;
  /** Marks this peer (as a call names it) as a member of the cluster, where neither token nor certificate proved it. */
  believe(peer: string): void;
  /** Cuts every connection. */
  close(): void;
  /** Accepts no more calls, and cuts connections once their calls have ended or after a time limit. */
  drain(mostMs: number): Promise<void>;
}

/**
 * Binds a gRPC server after `register` has added its services. Peers prove membership as `trust` asks. `onRefused` gets the address and the
 * reason of refused peers; of many refusals it gets a part. Connections are accepted here and then handed to gRPC, so that a peer that has
 * proved nothing is limited in time and bytes (docs/decisions/data/hostile-input.md). Errors: PL_PORT_UNAVAILABLE if the address can't be
 * bound.
 */
export async function listen(
  address: string,
  trust: Trust,
  onRefused: (peer: string, reason: string) => void,
  register: (server: Server) => void,
  { memberBytes, strangerBytes }: MessageLimits = REQUESTS_ALONE,
): Promise<ListeningServer> {
  const refusals = new Refusals(onRefused);
  const refuse = (peer: string, reason: string) => refusals.add(peer, reason);
  const visitors = new Visitors(strangerBytes, refuse);
  const proves = trust.tls !== null || trust.token() !== null;
  const guard = tokenGuard(trust, {
    onAccepted: (peer) => (proves ? visitors.believe(peer) : visitors.greet(peer)),
    onRefused: (peer, reason) => {
      refuse(peer, reason);
      visitors.dismiss(peer);
    },
  });
  const server = new Server({
    ...CHANNEL_OPTIONS,
    "grpc.max_receive_message_length": memberBytes,
    "grpc.max_concurrent_streams": MOST_STREAMS,
    interceptors: [guard],
  });
  register(server);
  const behind = server.createConnectionInjector(ServerCredentials.createInsecure());
  const take = (socket: Socket) => {
    if (!visitors.admit(socket)) return;
    socket.setNoDelay(true);
    behind.injectConnection(socket);
  };
  try {
    const front = trust.tls === null ? plainFront(take) : tlsFront(trust.tls, take, refuse);
    await bind(front, address);
    const stop = () => {
      front.close();
      visitors.close();
      refusals.flush();
    };
    return listening(server, (front.address() as { port: number }).port, stop, (peer) => visitors.believe(peer));
  } catch (cause) {
    throw unavailable(address, cause as Error);
  }
}

function listening(
  server: Server,
  port: number,
  stopAccepting: () => void,
  believe: (peer: string) => void,
): ListeningServer {
  const close = () => {
    stopAccepting();
    server.forceShutdown();
  };
  return {
    port,
    believe,
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
 * Binds a plaintext gRPC server without authentication, with limits of its own. Errors: PL_PORT_UNAVAILABLE if the address can't be bound.
 */
export async function listenToAnyone(
  address: string,
  limits: ChannelOptions,
  register: (server: Server) => void,
): Promise<ListeningServer> {
  const server = new Server(limits);
  register(server);
  try {
    return listening(
      server,
      await bindPlain(server, address),
      () => {},
      () => {},
    );
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

function plainFront(take: (socket: Socket) => void): TcpServer {
  return createPlainServer((socket) => {
    // What goes wrong with it is gRPC's to notice.
    socket.on("error", () => {});
    take(socket);
  });
}

/**
 * Makes the TLS handshake and hands the connection to gRPC after it. So every refusal is seen, a peer's name is checked before anything is
 * sent to it, and each new connection uses the files' current certificates.
 */
function tlsFront(
  identity: TlsIdentity,
  take: (socket: Socket) => void,
  onRefused: (peer: string, reason: string) => void,
): TcpServer {
  let material = identity.current();
  const front = createServer({
    ...material,
    ...TLS_SETTINGS,
    requestCert: true,
    // The certificate is checked below, where a refusal can be reported with the peer's address.
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
    take(socket);
  });
  return front;
}

function bind(front: TcpServer, address: string): Promise<void> {
  const { host, port } = splitAddress(address);
  return new Promise((resolve, reject) => {
    front.once("error", reject);
    front.listen({ host, port }, () => resolve());
  });
}

function nameOf({ remoteAddress, remotePort }: TLSSocket): string {
  return remoteAddress === undefined ? "a client that is gone" : joinAddress(remoteAddress, remotePort ?? 0);
}

function describe(error: Error & { code?: string; reason?: string }): string {
  return error.reason ?? error.code ?? error.message;
}
