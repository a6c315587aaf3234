import { connect as connectPlain, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { connect as connectTls } from "node:tls";
import { splitAddress } from "../common/address.ts";
import { PipeloraError } from "../common/errors.ts";
import { TLS_SETTINGS } from "../common/tls.ts";
import type { Trust } from "./trust.ts";

/** How long one attempt may take until the peer greets. */
const ATTEMPT_MS = 5_000;
const LONGEST_PAUSE_MS = 2_000;

/**
 * Waits until a gRPC server at the address accepts this process: resolves its name, connects and makes the handshake, again and again until
 * the deadline. A channel that is opened afterwards will work, and a failure is known with its reason. `onWait` gets each new reason once.
 * Returns the local address from which the peer was reached. Errors: PL_PEER_UNTRUSTED as soon as a handshake fails for its certificates;
 * PL_WORKER_MISSING after the deadline.
 */
export async function reach(
  address: string,
  trust: Trust,
  deadlineMs: number,
  onWait: (reason: string) => void,
): Promise<string> {
  const deadline = Date.now() + deadlineMs;
  let reason = "";
  let closedAfterHandshake = 0;
  for (let pause = 250; ; pause = Math.min(LONGEST_PAUSE_MS, pause * 1.5)) {
    try {
      return await attempt(address, trust, Math.max(1_000, Math.min(ATTEMPT_MS, deadline - Date.now())));
    } catch (thrown) {
      const error = thrown as Error & { code?: string };
      closedAfterHandshake = error instanceof ClosedAfterHandshake ? closedAfterHandshake + 1 : 0;
      if (isDistrust(error) || closedAfterHandshake === 3) throw untrusted(address, error);
      if (error.message !== reason) onWait(error.message);
      reason = error.message;
    }
    if (Date.now() + pause > deadline) {
      throw new PipeloraError(
        "PL_WORKER_MISSING",
        `no coordinator answered at ${address} within ${deadlineMs / 1000} s: ${reason}`,
        { hint: "Check --coordinator HOST:PORT, and that the coordinator runs with --listen." },
      );
    }
    await sleep(pause);
  }
}

/** One connection, up to the first bytes of the server: a server that refuses a certificate says so only after the handshake. */
function attempt(address: string, trust: Trust, patienceMs: number): Promise<string> {
  const target = splitAddress(address);
  const { tls } = trust;
  const socket: Socket =
    tls === null
      ? connectPlain(target)
      : connectTls({ ...target, ...tls.current(), ...TLS_SETTINGS, servername: tls.name, ALPNProtocols: ["h2"] });
  let shaken = false;
  return new Promise<string>((resolve, reject) => {
    const timer = setTimeout(
      () =>
        reject(
          new Error(
            socket.connecting
              ? `no connection within ${patienceMs / 1000} s`
              : tls === null
                ? "it took the connection and did not greet: does it expect TLS (--tls-ca, --tls-cert, --tls-key)?"
                : "it took the connection and made no TLS handshake: does it listen without TLS?",
          ),
        ),
      patienceMs,
    );
    socket.once("data", () => resolve(socket.localAddress!));
    socket.once("error", reject);
    socket.once("secureConnect", () => {
      shaken = true;
    });
    socket.once("close", () => reject(shaken ? new ClosedAfterHandshake() : new Error(CLOSED)));
    socket.once("close", () => clearTimeout(timer));
  }).finally(() => socket.destroy());
}

const CLOSED = "it closed the connection without a greeting";

/** How a server refuses a certificate: in TLS 1.3 the client's own handshake is complete by then. */
class ClosedAfterHandshake extends Error {
  constructor() {
    super(`${CLOSED}: it refuses this process's certificate, and its log says why`);
  }
}

/** OpenSSL's verification results and alerts, as node names them. */
function isDistrust({ code = "" }: { code?: string }): boolean {
  return /^(ERR_SSL|ERR_TLS|CERT_|UNABLE_TO_|SELF_SIGNED|DEPTH_ZERO|EPROTO|INVALID_CA|HOSTNAME_MISMATCH)/.test(code);
}

function untrusted(address: string, cause: Error & { code?: string; reason?: string }): PipeloraError {
  return new PipeloraError(
    "PL_PEER_UNTRUSTED",
    `${address} and this process do not trust each other: ${cause.reason ?? cause.message}`,
    { cause, hint: "Both need certificates of an authority in the other's --tls-ca, with the name of --tls-name." },
  );
}
