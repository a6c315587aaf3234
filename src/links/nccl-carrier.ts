import type { Communicator, DevicePlace, NativeAddon } from "../engine/index.ts";
import type { OutgoingTensor } from "./link.ts";

export interface CarrierOptions {
  readonly addon: NativeAddon;
  /** Whose memory is moved: "cuda:0". */
  readonly device: string;
  /** Of a communicator of the link's two ends alone. */
  readonly id: Uint8Array;
  readonly timeoutMs: number;
}

/** What to do when NCCL fails. */
export const NCCL_HINT =
  "NCCL_DEBUG=WARN in the workers' environment tells more; --link shm or --link grpc does without NCCL.";

const FIRST_BYTES = 4;

/**
 * One end of a communicator that carries the device tensors of one direction of a pair. The link's stream announces each, so
 * that no rank waits on its device for a message that the other has not begun.
 */
abstract class NcclCarrier {
  /** Resolves when a first message has gone through: NCCL has opened its connections. A rejection of it is always handled. */
  readonly opened: Promise<void>;
  protected readonly communicator: Communicator;
  readonly #sends: boolean;

  constructor(options: CarrierOptions, sends: boolean, onFailed: (reason: string) => void) {
    const { addon, device, id, timeoutMs } = options;
    this.#sends = sends;
    this.communicator = new addon.Communicator({ device, id, timeoutMs, rank: sends ? 0 : 1, ranks: 2 }, onFailed);
    const place = this.communicator.place(FIRST_BYTES);
    this.opened = this.move(place, null).finally(() => place.free());
    this.opened.catch(() => {});
  }

  close(): void {
    this.communicator.close();
  }

  protected move(place: DevicePlace, onReady: (() => void) | null): Promise<void> {
    const { bytes } = place;
    const peer = this.#sends ? 1 : 0;
    return this.communicator.exchange([{ sends: this.#sends, peer, place, offset: 0, bytes }], onReady);
  }
}

export class NcclSendingCarrier extends NcclCarrier {
  #posted: Promise<void> = Promise.resolve();

  constructor(options: CarrierOptions, onFailed: (reason: string) => void) {
    super(options, true, onFailed);
  }

  /** `announce` is called as the bytes leave, in the order of calls. Resolves when they have left. Rejects with PL_LINK_FAILED. */
  async send(
    tensor: Required<Pick<OutgoingTensor, "byteLength" | "copyToPlace">>,
    announce: () => void,
  ): Promise<void> {
    const place = this.communicator.place(tensor.byteLength);
    try {
      const copied = tensor.copyToPlace(place);
      const before = this.#posted;
      const turn = copied.then(() => before);
      this.#posted = turn.catch(() => {});
      await turn;
      await this.move(place, announce);
    } finally {
      place.free();
    }
  }
}

export class NcclReceivingCarrier extends NcclCarrier {
  constructor(options: CarrierOptions, onFailed: (reason: string) => void) {
    super(options, false, onFailed);
  }

  /** The next message, whose taker frees it. Rejects with PL_LINK_FAILED. */
  async receive(bytes: number): Promise<DevicePlace> {
    const place = this.communicator.place(bytes);
    try {
      await this.move(place, null);
      return place;
    } catch (error) {
      place.free();
      throw error;
    }
  }
}
