import { PipeloraError } from "../common/errors.ts";
import type { NativeAddon } from "../engine/index.ts";
import { GrpcReceiver } from "../links/grpc-receiver.ts";
import { GrpcSender } from "../links/grpc-sender.ts";
import type { IncomingTensor, OutgoingTensor } from "../links/link.ts";
import { Mailbox } from "../links/mailbox.ts";
import { type CarrierOptions, NcclReceivingCarrier, NcclSendingCarrier } from "../links/nccl-carrier.ts";
import { NcclGroup } from "../links/nccl-group.ts";
import { ShmReceiver } from "../links/shm-receiver.ts";
import { ShmSender } from "../links/shm-sender.ts";
import type { Peer__Output } from "../rpc/generated/pipelora/v1/Peer.ts";
import type { Trust } from "../rpc/trust.ts";

/** This rank and its session. */
export interface Place {
  readonly session: string;
  readonly rank: number;
}

interface Ends {
  readonly session: string;
  readonly fromRank: number;
  readonly toRank: number;
}

export interface RankLinksOptions {
  readonly addon: NativeAddon;
  /** This worker's device, whose memory NCCL moves. */
  readonly device: string;
  readonly trust: Trust;
  /** Takes a sentence for the log about a fault that a link has recovered from. */
  readonly note: (text: string) => void;
}

/** This rank's links to its peers, and the mailbox that received tensors fill. NCCL links open at once, others when they are first used. */
export class RankLinks {
  readonly #options: RankLinksOptions;
  #session = "";
  #rank = 0;
  #timeoutMs = 0;
  #mailbox = new Mailbox(0, 0);
  #peers = new Map<number, Peer__Output>();
  #replicaGroup: NcclGroup | null = null;
  readonly #senders = new Map<number, GrpcSender | ShmSender>();
  readonly #receivers = new Map<number, GrpcReceiver | ShmReceiver>();

  constructor(options: RankLinksOptions) {
    this.#options = options;
  }

  /** The sending end that a peer asks for; null if this rank has not joined that session yet, or has left it. */
  senderFor({ session, fromRank, toRank }: Ends): GrpcSender | ShmSender | null {
    return session === this.#session && fromRank === this.#rank && this.#peers.has(toRank)
      ? this.#sender(toRank)
      : null;
  }

  /**
   * Joins a session. `replicas`: the ranks with which this one adds up gradients; without an id they have no communicator. Errors:
   * PL_PROTOCOL_MISMATCH; NCCL's PL_LINK_FAILED, PL_DEVICE_UNAVAILABLE and PL_OUT_OF_MEMORY.
   */
  join(
    { session, rank }: Place,
    peers: readonly Peer__Output[],
    timeoutMs: number,
    replicas: { readonly ranks: readonly number[]; readonly id: Uint8Array } | null = null,
  ): void {
    this.close();
    const nowhere = peers.find(({ address }) => !/^\S+:\d{1,5}$/.test(address));
    if (nowhere !== undefined) {
      const address = JSON.stringify(nowhere.address.slice(0, 100));
      throw new PipeloraError("PL_PROTOCOL_MISMATCH", `the address of rank ${nowhere.rank} came as ${address}`);
    }
    this.#session = session;
    this.#rank = rank;
    this.#timeoutMs = timeoutMs;
    this.#mailbox = new Mailbox(rank, timeoutMs);
    this.#peers = new Map(peers.map((peer) => [peer.rank, peer]));
    // Both ends must open a communicator at the same time.
    for (const { rank: peer, ncclTo, ncclFrom } of peers) {
      if (ncclTo.length > 0) this.#sender(peer);
      if (ncclFrom.length > 0) this.#receiver(peer);
    }
    const carrier = replicas && this.#carrierOptions(replicas.id);
    if (!carrier) return;
    const { ranks } = replicas!;
    const mailbox = this.#mailbox;
    const onFailed = (error: PipeloraError) => mailbox.fail(error);
    this.#replicaGroup = new NcclGroup({ ...carrier, ranks, position: ranks.indexOf(rank), onFailed });
  }

  /** The replicas' communicator. Null: they add up over links between pairs. */
  get replicaGroup(): NcclGroup | null {
    return this.#replicaGroup;
  }

  /** Resolves when NCCL's links are open. Errors: PL_LINK_FAILED. */
  async opened(): Promise<void> {
    const ends = [...this.#senders.values(), ...this.#receivers.values()];
    await this.#replicaGroup?.opened;
    await Promise.all(
      ends.map((end) => (end instanceof GrpcSender || end instanceof GrpcReceiver ? end.opened() : null)),
    );
  }

  joined(session: string): boolean {
    return this.#session === session;
  }

  /**
   * Resolves when the link has room for the tensor and its copy out of device memory is queued. `sent` resolves when it has left device memory.
   * Errors of both: PL_LINK_FAILED.
   */
  async send(toRank: number, key: string, tensor: OutgoingTensor): Promise<{ sent: Promise<void> }> {
    const link = this.#sender(toRank);
    for (let room = link.room(); room !== null; room = link.room()) await room;
    return { sent: link.send(key, tensor) };
  }

  /** Sends a tensor and resolves when it has left its memory. */
  async sendWhole(toRank: number, key: string, tensor: OutgoingTensor): Promise<void> {
    const { sent } = await this.send(toRank, key, tensor);
    await sent;
  }

  receive(fromRank: number, key: string): Promise<IncomingTensor> {
    // Fails here, not by waiting, if that rank is no peer.
    const receiver = this.#receiver(fromRank);
    const tensor = this.#mailbox.take(key, fromRank);
    receiver.awaited();
    return tensor;
  }

  /** Receives a small tensor, as a copy of its bytes. */
  async receiveBytes(fromRank: number, key: string): Promise<Buffer> {
    return copyOf(await this.receive(fromRank, key));
  }

  /** The same without a deadline, for what may come at any time. reset() does not end this wait. */
  async receiveBytesWhenever(fromRank: number, key: string): Promise<Buffer> {
    this.#receiver(fromRank);
    return copyOf(await this.#mailbox.takeWhenever(key, fromRank));
  }

  /** Ends an aborted step: pending receives reject, and tensors that come late are dropped. */
  reset(): void {
    this.#mailbox.clear();
  }

  close(): void {
    this.#session = "";
    for (const ends of [this.#senders, this.#receivers]) {
      for (const end of ends.values()) end.close();
      ends.clear();
    }
    this.#replicaGroup?.close();
    this.#replicaGroup = null;
    this.#mailbox.fail(new PipeloraError("PL_LINK_FAILED", "the links were closed"));
  }

  #sender(toRank: number): GrpcSender | ShmSender {
    const open = this.#senders.get(toRank);
    if (open !== undefined) return open;
    const { addon } = this.#options;
    const options = this.#ends(this.#rank, toRank);
    const { link, ncclTo } = this.#peer(toRank);
    const carrier = this.#carrierOptions(ncclTo);
    const sender =
      link === "shm"
        ? new ShmSender(options, addon)
        : new GrpcSender(
            options,
            addon.crc32c,
            carrier && ((onFailed: (reason: string) => void) => new NcclSendingCarrier(carrier, onFailed)),
          );
    this.#senders.set(toRank, sender);
    return sender;
  }

  #receiver(fromRank: number): GrpcReceiver | ShmReceiver {
    const open = this.#receivers.get(fromRank);
    if (open !== undefined) return open;
    const { addon } = this.#options;
    const { address, link, ncclFrom } = this.#peer(fromRank);
    const carrier = this.#carrierOptions(ncclFrom);
    const mailbox = this.#mailbox;
    const options = {
      ...this.#ends(fromRank, this.#rank),
      address,
      trust: this.#options.trust,
      deliver: (key: string, tensor: IncomingTensor) => mailbox.deliver(key, tensor),
      isAwaited: () => mailbox.awaits(fromRank),
    };
    const receiver =
      link === "shm"
        ? new ShmReceiver(options, addon)
        : new GrpcReceiver(
            options,
            addon.crc32c,
            carrier && ((onFailed: (reason: string) => void) => new NcclReceivingCarrier(carrier, onFailed)),
          );
    this.#receivers.set(fromRank, receiver);
    return receiver;
  }

  /** Null if the link has no communicator. */
  #carrierOptions(id: Uint8Array): CarrierOptions | null {
    const { addon, device } = this.#options;
    return id.length === 0 ? null : { addon, device, id, timeoutMs: this.#timeoutMs };
  }

  #peer(rank: number): Peer__Output {
    const peer = this.#peers.get(rank);
    if (peer === undefined) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `rank ${this.#rank} knows no rank ${rank}`);
    return peer;
  }

  #ends(fromRank: number, toRank: number) {
    const mailbox = this.#mailbox;
    return {
      ends: { session: this.#session, fromRank, toRank },
      timeoutMs: this.#timeoutMs,
      onFailed: (error: PipeloraError) => mailbox.fail(error),
      note: this.#options.note,
    };
  }
}

function copyOf(tensor: IncomingTensor): Buffer {
  const bytes = Buffer.concat(tensor.pieces);
  tensor.release();
  return bytes;
}
