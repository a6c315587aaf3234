import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import {
  ChannelCredentials,
  type ChannelOptions,
  credentials,
  Metadata,
  ServerInterceptingCall,
  type ServerInterceptingCallInterface,
  type ServerInterceptor,
  status,
} from "@grpc/grpc-js";
import { PipeloraError } from "../common/errors.ts";
import { TLS_SETTINGS, TlsIdentity } from "../common/tls.ts";
import { CHANNEL_OPTIONS } from "./protocol.ts";

/** The flags that say whom to trust, under their configuration keys. */
export interface TrustSettings {
  readonly tls_ca: string | null;
  readonly tls_cert: string | null;
  readonly tls_key: string | null;
  readonly tls_name: string;
  readonly join_token: string | null;
  readonly join_token_file: string | null;
}

/** How all processes of a cluster authenticate, on the control and the tensor plane alike. */
export interface Trust {
  /** null: plaintext. */
  readonly tls: TlsIdentity | null;
  /** The current join token; null: none is required. */
  readonly token: () => string | null;
}

export const NO_TRUST: Trust = { tls: null, token: () => null };

/**
 * Reads certificates and token. `warn` is called when files are later replaced by unusable ones. Errors: PL_TLS_INVALID, PL_CONFIG_INVALID
 * for an empty or unreadable token file.
 */
export function openTrust(settings: TrustSettings, warn: (problem: string) => void): Trust {
  const { tls_ca: ca, tls_cert: cert, tls_key: key, join_token, join_token_file: file } = settings;
  const tls =
    ca !== null && cert !== null && key !== null ? new TlsIdentity({ ca, cert, key }, settings.tls_name, warn) : null;
  const token = file === null ? () => join_token : () => readToken(file);
  token();
  return { tls, token };
}

function readToken(path: string): string {
  let token: string;
  try {
    token = readFileSync(path, "utf8").trim();
  } catch (cause) {
    throw new PipeloraError("PL_CONFIG_INVALID", `--join-token-file: can't read ${path}`, { cause });
  }
  if (token === "") throw new PipeloraError("PL_CONFIG_INVALID", `--join-token-file: ${path} is empty`);
  return token;
}

/** How to open a channel to a peer now; a new channel takes replaced certificates. */
export function channelTo(trust: Trust): { credentials: ChannelCredentials; options: ChannelOptions } {
  const { tls } = trust;
  if (tls === null) return { credentials: credentials.createInsecure(), options: CHANNEL_OPTIONS };
  return {
    credentials: ChannelCredentials.createFromSecureContext(createSecureContext({ ...tls.current(), ...TLS_SETTINGS })),
    options: { ...CHANNEL_OPTIONS, "grpc.ssl_target_name_override": tls.name },
  };
}

/** Goes with every call. */
export function callMetadata(trust: Trust): Metadata {
  const metadata = new Metadata();
  const token = trust.token();
  if (token !== null) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

export interface GuardEvents {
  readonly onAccepted: (peer: string) => void;
  readonly onRefused: (peer: string, reason: string) => void;
}

/**
 * Ends calls without the join token before a service sees them and before a byte of their messages is read. Also ends calls with compressed
 * messages, which none of our processes sends: a small one may expand to any size.
 */
export function tokenGuard(trust: Trust, { onAccepted, onRefused }: GuardEvents): ServerInterceptor {
  return (_method, call) =>
    new ServerInterceptingCall(call, {
      start: (next) =>
        next({
          onReceiveMetadata: (metadata, forward) => {
            const problem = judged(trust, metadata) ?? compression(call);
            if (problem === null) {
              onAccepted(call.getPeer());
              return forward(metadata);
            }
            onRefused(call.getPeer(), problem);
            call.sendStatus({ code: status.UNAUTHENTICATED, details: problem, metadata: null });
          },
        }),
    });
}

/** gRPC removes this header from the metadata and keeps it here. A test sends compressed messages to check that it still does. */
function compression(call: ServerInterceptingCallInterface): string | null {
  const { incomingEncoding = "identity" } = call as { incomingEncoding?: string };
  return incomingEncoding === "identity" ? null : "its messages are compressed";
}

/** While a token file is missing or empty, every call is refused; no process ends. */
function judged(trust: Trust, metadata: Metadata): string | null {
  try {
    return tokenProblem(trust, metadata);
  } catch (error) {
    return `no join token can be checked now: ${(error as Error).message}`;
  }
}

function tokenProblem(trust: Trust, metadata: Metadata): string | null {
  const expected = trust.token();
  if (expected === null) return null;
  const [sent] = metadata.get("authorization");
  if (sent === undefined) return "it sent no join token, and one is asked for";
  // Digests have one length, so comparing them takes constant time.
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(String(sent)), digest(`Bearer ${expected}`)) ? null : "its join token is another";
}
