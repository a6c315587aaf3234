import { connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** "up": from who dialled to who listens. */
export type Direction = "up" | "down";

type Target = () => { readonly host: string; readonly port: number };

/** Less than this is the protocol's own traffic: acknowledgements, windows, heartbeats. */
const DATA_BYTES = 512;

/** A TCP proxy between two processes, which can cut, slow down, hold and change what goes through it. */
export class LinkProxy {
  readonly #server: Server;
  readonly #target: Target;
  readonly #gate: () => Promise<void>;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  readonly #listeners = new Set<(direction: Direction) => void>();
  #refusing = false;
  #delayMs = 0;
  #flip: { readonly direction: Direction; readonly place: number; readonly done: () => void } | null = null;

  private constructor(target: Target, gate: () => Promise<void>) {
    this.#target = target;
    this.#gate = gate;
    // A side that has said all it has to say still hears the other.
    this.#server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => void this.#accept(socket));
  }

  get port(): number {
    return (this.#server.address() as { port: number }).port;
  }

  /** `port` 0: a free one. `target` is asked for every connection, after `gate` has let it through. */
  static async open(host: string, port: number, target: Target, gate = async () => {}): Promise<LinkProxy> {
    const proxy = new LinkProxy(target, gate);
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once("error", reject);
      proxy.#server.listen(port, host, resolve);
    });
    return proxy;
  }

  /** Resolves when bytes of a message, not of the protocol alone, go through. */
  traffic(direction: Direction, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const hear = (found: Direction) => {
        if (found !== direction) return;
        this.#listeners.delete(hear);
        resolve();
      };
      this.#listeners.add(hear);
      signal.addEventListener("abort", () => this.#listeners.delete(hear));
    });
  }

  /** Breaks every connection, and takes no new one for so long. */
  cut(forMs: number): void {
    for (const pair of [...this.#pairs]) this.#end(pair);
    if (forMs === 0) return;
    this.#refusing = true;
    setTimeout(() => {
      this.#refusing = false;
    }, forMs).unref();
  }

  /** Everything is so late, for so long. */
  slow(delayMs: number, forMs: number): void {
    this.#delayMs = delayMs;
    setTimeout(() => {
      this.#delayMs = 0;
    }, forMs).unref();
  }

  /** Changes one bit of the next bytes. `place`: the share of them in front of it. Resolves once that is done; never after spare(). */
  flip(direction: Direction, place: number): Promise<void> {
    return new Promise((done) => {
      this.#flip = { direction, place, done };
    });
  }

  /** Takes back a change that has not come to pass. */
  spare(): void {
    this.#flip = null;
  }

  close(): void {
    this.#server.close();
    for (const pair of [...this.#pairs]) this.#end(pair);
  }

  async #accept(near: Socket): Promise<void> {
    near.on("error", () => near.destroy());
    if (!this.#refusing) await this.#gate();
    if (this.#refusing || near.destroyed) {
      near.destroy();
      return;
    }
    const far = connect({ ...this.#target(), allowHalfOpen: true, noDelay: true });
    const pair = [near, far] as const;
    this.#pairs.add(pair);
    for (const socket of pair) {
      socket.on("error", () => this.#end(pair));
      socket.on("close", () => this.#end(pair));
    }
    this.#pass(near, far, "up");
    this.#pass(far, near, "down");
  }

  #end(pair: readonly [Socket, Socket]): void {
    this.#pairs.delete(pair);
    for (const socket of pair) socket.destroy();
  }

  #pass(from: Socket, to: Socket, direction: Direction): void {
    // In order, however late each part is.
    let before: Promise<unknown> = Promise.resolve();
    from.on("data", (chunk: Buffer) => {
      if (chunk.length >= DATA_BYTES) for (const hear of [...this.#listeners]) hear(direction);
      const delay = this.#delayMs;
      from.pause();
      before = before.then(async () => {
        if (delay > 0) await sleep(delay);
        this.#change(chunk, direction);
        if (to.destroyed) return;
        if (!to.write(chunk)) await new Promise<void>((resolve) => to.once("drain", resolve).once("close", resolve));
        from.resume();
      });
    });
    from.on("end", () => {
      before = before.then(() => to.end());
    });
  }

  #change(chunk: Buffer, direction: Direction): void {
    const flip = this.#flip;
    if (flip === null || flip.direction !== direction) return;
    this.#flip = null;
    const bit = Math.floor(flip.place * chunk.length * 8);
    chunk[bit >> 3]! ^= 1 << (bit & 7);
    flip.done();
  }
}
