/** The ends of links that the native addon makes: shared memory between processes of one host, NCCL between GPUs. */

/** Where a receiver finds a sender's memory: the file /proc/pid/fd/fd, which holds the token. */
export interface SharedAddress {
  readonly pid: number;
  readonly fd: number;
  /** A 64-bit number in decimal. */
  readonly token: string;
}

/** The end of a link through shared memory that sends: gives out places in memory that the receiver reads. */
export interface SharedSender {
  readonly address: SharedAddress;
  readonly memory: ArrayBuffer;
  /** Offset of so many bytes in `memory`, at a multiple of 64; null while there is no such place. */
  reserve(bytes: number): number | null;
  /** Hands a reserved place to the receiver; places arrive in this order. */
  publish(offset: number): void;
  /** What the receiver granted last. */
  granted(): number;
  /** Asks for one onProgress; what is looked at after this call can't have been missed. */
  waitForProgress(): void;
  close(): void;
}

export interface SharedReceiver {
  readonly memory: ArrayBuffer;
  /** Gives a place back, once, in any order; also after close(). */
  release(offset: number): void;
  grant(bytes: number): void;
  close(): void;
}

export interface CommunicatorOptions {
  /** "cuda:N"; any with a library that moves host memory. */
  readonly device: string;
  readonly id: Uint8Array;
  readonly rank: number;
  readonly ranks: number;
  /** For opening, and for each group from when NCCL got it. */
  readonly timeoutMs: number;
}

/** Moves device memory between ranks over NCCL, on a stream of its own. */
export interface Communicator {
  /** Error: PL_OUT_OF_MEMORY. */
  place(bytes: number): DevicePlace;
  /**
   * Queues messages that move together; all ranks give matching groups in the same order. `onReady`: the device is through with
   * the copies queued before (Engine.readTo), and the group is on its way. Resolves when all has moved. Rejects with PL_LINK_FAILED.
   */
  exchange(group: readonly Transfer[], onReady: (() => void) | null): Promise<void>;
  /** Aborts what is under way. */
  close(): void;
}

export interface Transfer {
  readonly sends: boolean;
  /** The rank at the other end; this rank's own too. */
  readonly peer: number;
  readonly place: DevicePlace;
  readonly offset: number;
  readonly bytes: number;
}

/** Device memory of a communicator, outside the engine's arena. */
export interface DevicePlace {
  readonly bytes: number;
  /** What lies in it, with a library that moves host memory; else null. */
  readonly memory: ArrayBuffer | null;
  /** It is used again when what was queued for it is done. At the latest when collected. */
  free(): void;
}
