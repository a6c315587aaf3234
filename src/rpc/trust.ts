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

/** What all processes of a cluster prove to each other, on the control and the tensor plane alike. */
export interface Trust {
  /** null: plaintext. */
  readonly tls: TlsIdentity | null;
  /** The join token as it is now; null: none is asked for. */
  readonly token: () => string | null;
}

export const NO_TRUST: Trust = { tls: null, token: () => null };

/**
 * Reads certificates and token. `warn` hears of files that were replaced by unusable ones later on.
 * Errors: PL_TLS_INVALID, PL_CONFIG_INVALID for an empty or unreadable token file.
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
 * Ends calls without the join token before a service sees them and before a byte of their messages is read; and calls whose messages
 * are compressed, which no process of ours sends: a small one may stand for any size.
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

/** gRPC takes the header out of the metadata and keeps it here; a test sends compressed messages to see that it still does. */
function compression(call: ServerInterceptingCallInterface): string | null {
  const { incomingEncoding = "identity" } = call as { incomingEncoding?: string };
  return incomingEncoding === "identity" ? null : "its messages are compressed";
}

/** A token file that is gone or empty refuses every call until it is back; it ends no process. */
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
  // Digests are of one length, so that the comparison takes one time.
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(String(sent)), digest(`Bearer ${expected}`)) ? null : "its join token is another";
}
