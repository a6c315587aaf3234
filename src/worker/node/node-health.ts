import type { ChildProcess } from "node:child_process";
import { Health, listenForProbes } from "../../rpc/health.ts";

interface ReadyMessage {
  readonly ready: boolean;
}

/**
 * One rank's health. It is served with the rank's tensor service, and sent to the parent process of a node's workers, which answers probes for
 * all of them.
 */
export class RankHealth {
  readonly health = new Health();

  set ready(ready: boolean) {
    this.health.ready = ready;
    // A failed send is ignored: the end of the parent is noticed elsewhere.
    if (process.connected) process.send?.({ ready } satisfies ReadyMessage, undefined, undefined, () => {});
  }
}

/** A node's health. The node is ready when all its ranks are. */
export class NodeHealth {
  readonly #health = new Health();
  readonly #ready: boolean[];

  constructor(children: readonly ChildProcess[]) {
    this.#ready = children.map(() => false);
    children.forEach((child, index) => {
      child.on("message", (message: ReadyMessage) => this.#set(index, message.ready));
      child.on("exit", () => this.#set(index, false));
    });
  }

  listen(address: string): Promise<{ close(): void }> {
    return listenForProbes(address, this.#health);
  }

  #set(index: number, ready: boolean): void {
    this.#ready[index] = ready;
    this.#health.ready = this.#ready.every(Boolean);
  }
}
