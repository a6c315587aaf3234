import type { Server } from "@grpc/grpc-js";
import { PipeloraError } from "../common/errors.ts";
import { GrpcLink, receiveGrpcTensors } from "../links/grpc-link.ts";
import type { Link, TensorMessage } from "../links/link.ts";
import { Mailbox } from "../links/mailbox.ts";
import type { Peer__Output } from "../rpc/generated/pipelora/v1/Peer.ts";
import type { Trust } from "../rpc/trust.ts";

/** This rank's links to its peers, opened when first used, and the mailbox all of them fill. */
export class RankLinks {
  readonly #trust: Trust;
  #session = "";
  #rank = 0;
  #mailbox = new Mailbox(0);
  #addresses = new Map<number, string>();
  readonly #open = new Map<number, Link>();

  constructor(trust: Trust) {
    this.#trust = trust;
  }

  /** Adds the receiving end to this rank's server; before any peer sends. */
  serve(server: Server): void {
    receiveGrpcTensors(
      server,
      () => this.#session,
      (key, tensor, onTaken) => this.#mailbox.deliver(key, tensor, onTaken),
      (error) => this.#mailbox.fail(error),
    );
  }

  join(session: string, rank: number, peers: readonly Peer__Output[], timeoutMs: number): void {
    this.close();
    this.#session = session;
    this.#rank = rank;
    this.#mailbox = new Mailbox(timeoutMs);
    this.#addresses = new Map(peers.map((peer) => [peer.rank, peer.address]));
  }

  joined(session: string): boolean {
    return this.#session === session;
  }

  send(toRank: number, key: string, tensor: TensorMessage): Promise<void> {
    return this.#link(toRank).send(key, tensor);
  }

  receive(fromRank: number, key: string): Promise<TensorMessage> {
    return this.#mailbox.take(key, `rank ${fromRank}`);
  }

  /** Ends an aborted step: what is still awaited rejects, what came late is dropped. */
  reset(): void {
    this.#mailbox.clear();
  }

  close(): void {
    for (const link of this.#open.values()) link.close();
    this.#open.clear();
    this.#mailbox.fail(new PipeloraError("PL_LINK_FAILED", "the links were closed"));
  }

  #link(toRank: number): Link {
    const open = this.#open.get(toRank);
    if (open !== undefined) return open;
    const address = this.#addresses.get(toRank);
    if (address === undefined)
      throw new PipeloraError("PL_INTERNAL", `rank ${this.#rank} knows no address of rank ${toRank}`);
    const link = new GrpcLink({
      address,
      trust: this.#trust,
      session: this.#session,
      fromRank: this.#rank,
      toRank,
      onBroken: (error) => this.#mailbox.fail(error),
    });
    this.#open.set(toRank, link);
    return link;
  }
}
