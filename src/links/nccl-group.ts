import { PipeloraError } from "../common/errors.ts";
import type { Communicator, DevicePlace, Transfer } from "../engine/index.ts";
import { type CarrierOptions, NCCL_HINT } from "./nccl-carrier.ts";

export interface GroupOptions extends CarrierOptions {
  /** Its members' ranks in the run, and this one's position among them. */
  readonly ranks: readonly number[];
  readonly position: number;
  /** Once, when it has failed for good. */
  readonly onFailed: (error: PipeloraError) => void;
}

const FIRST_BYTES = 4;

/** A communicator of ranks that exchange device memory all with all: the replicas of a pipeline's stage. */
export class NcclGroup {
  /** Resolves when each rank has had a message from each. Errors: PL_LINK_FAILED. A rejection of it is always handled. */
  readonly opened: Promise<void>;
  readonly #communicator: Communicator;
  readonly #name: string;
  #failure: PipeloraError | null = null;

  constructor({ addon, device, id, timeoutMs, ranks, position, onFailed }: GroupOptions) {
    this.#name = `the communicator of ranks ${ranks.join(", ")} (nccl)`;
    const options = { device, id, timeoutMs, rank: position, ranks: ranks.length };
    this.#communicator = new addon.Communicator(options, (reason) => {
      this.#failure = this.#broken(reason);
      onFailed(this.#failure);
    });
    const place = this.place(FIRST_BYTES);
    const from = this.place(FIRST_BYTES * ranks.length);
    const first = ranks.flatMap((_, peer): Transfer[] => [
      { sends: true, peer, place, offset: 0, bytes: FIRST_BYTES },
      { sends: false, peer, place: from, offset: FIRST_BYTES * peer, bytes: FIRST_BYTES },
    ]);
    this.opened = this.exchange(first).finally(() => {
      place.free();
      from.free();
    });
    this.opened.catch(() => {});
  }

  /** Error: PL_OUT_OF_MEMORY. */
  place(bytes: number): DevicePlace {
    return this.#communicator.place(Math.max(bytes, FIRST_BYTES));
  }

  /** Messages of all ranks that move together; peers are positions. Rejects with PL_LINK_FAILED. */
  async exchange(transfers: readonly Transfer[]): Promise<void> {
    try {
      await this.#communicator.exchange(
        transfers.filter(({ bytes }) => bytes > 0),
        null,
      );
    } catch (error) {
      throw this.#failure ?? this.#broken((error as Error).message);
    }
  }

  close(): void {
    this.#communicator.close();
  }

  #broken(reason: string): PipeloraError {
    return new PipeloraError("PL_LINK_FAILED", `${this.#name} broke: ${reason}`, { hint: NCCL_HINT });
  }
}
