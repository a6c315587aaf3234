import type { Socket } from "node:net";

/** Time until the first accepted call. A client that sends nothing keeps no socket longer. */
const GREETING_MS = 10_000;
/** Connections at one time whose peers are still unknown. */
const MOST_UNKNOWN = 256;
const LOOK_MS = 20;

interface Visitor {
  readonly socket: Socket;
  readonly since: number;
  /** A call of it was let in. */
  greeted: boolean;
}

/**
 * Limits connections that have not proved to belong to the cluster: how long they may be silent, and how much they may send. Byte counters
 * are read at intervals, so a member's data does not pass through here.
 */
export class Visitors {
  readonly #unknown = new Map<string, Visitor>();
  readonly #mostBytes: number;
  readonly #onRefused: (peer: string, reason: string) => void;
  #looking: NodeJS.Timeout | null = null;

  /** `mostBytes`: what a connection may send before it is believed. */
  constructor(mostBytes: number, onRefused: (peer: string, reason: string) => void) {
    this.#mostBytes = mostBytes;
    this.#onRefused = onRefused;
  }

  /** Called for a new connection. False if there are too many: it is closed. */
  admit(socket: Socket): boolean {
    const peer = peerOf(socket);
    if (peer === null || this.#unknown.size >= MOST_UNKNOWN) {
      if (peer !== null) this.#onRefused(peer, `${MOST_UNKNOWN} connections have not proven who they are yet`);
      socket.destroy();
      return false;
    }
    this.#unknown.set(peer, { socket, since: performance.now(), greeted: false });
    socket.once("close", () => this.#forget(peer));
    this.#looking ??= setInterval(() => this.#look(), LOOK_MS);
    return true;
  }

  /** Called when a call of this peer was accepted; `peer` as ServerCall's getPeer() gives it. */
  greet(peer: string): void {
    const visitor = this.#unknown.get(peer);
    if (visitor !== undefined) visitor.greeted = true;
    if (this.#mostBytes === Number.POSITIVE_INFINITY) this.#forget(peer);
  }

  /** The visitor belongs to the cluster: limits no longer apply to it. */
  believe(peer: string): void {
    this.#forget(peer);
  }

  /** A call of the visitor was refused: the connection is closed without waiting for more. */
  dismiss(peer: string): void {
    const visitor = this.#unknown.get(peer);
    // The refusal itself must get through first.
    if (visitor !== undefined) setTimeout(() => visitor.socket.destroy(), 10 * LOOK_MS).unref();
  }

  close(): void {
    for (const { socket } of this.#unknown.values()) socket.destroy();
    this.#unknown.clear();
    this.#stopLooking();
  }

  #look(): void {
    const now = performance.now();
    for (const [peer, { socket, since, greeted }] of this.#unknown) {
      if (socket.bytesRead > this.#mostBytes) {
        this.#refuse(peer, socket, `it sent over ${this.#mostBytes} bytes without saying who it is`);
      } else if (!greeted && now - since > GREETING_MS) {
        this.#refuse(peer, socket, `it asked for nothing within ${GREETING_MS / 1000} s`);
      }
    }
  }

  #refuse(peer: string, socket: Socket, reason: string): void {
    this.#onRefused(peer, reason);
    this.#forget(peer);
    socket.destroy();
  }

  #forget(peer: string): void {
    this.#unknown.delete(peer);
    if (this.#unknown.size === 0) this.#stopLooking();
  }

  #stopLooking(): void {
    if (this.#looking !== null) clearInterval(this.#looking);
    this.#looking = null;
  }
}

/** As ServerCall's getPeer() writes it; null for a connection that is gone. */
function peerOf({ remoteAddress, remotePort }: Socket): string | null {
  return remoteAddress === undefined ? null : `${remoteAddress}:${remotePort}`;
}
