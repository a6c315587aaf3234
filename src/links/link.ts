import type { Dtype } from "../common/dtype.ts";
import type { DevicePlace } from "../engine/index.ts";

/** One direction of a pair of ranks. */
export interface LinkEnds {
  readonly session: string;
  readonly fromRank: number;
  readonly toRank: number;
}

/** A tensor to be sent, still in device memory. */
export interface OutgoingTensor {
  readonly shape: readonly number[];
  readonly dtype: Dtype;
  readonly byteLength: number;
  /**
   * Queues a copy into pieces of host memory that make up the tensor's bytes, each of a whole number of elements, behind
   * the work queued so far. Called once, in the call to `send`.
   */
  copyTo(pieces: readonly Uint8Array[]): Promise<void>;
  /** In place of copyTo, for a link that moves device memory: queues a copy into that. Absent: the tensor lies in host memory. */
  readonly copyToPlace?: (place: DevicePlace) => Promise<void>;
}

/** A received tensor, in memory that belongs to the link. */
export interface IncomingTensor {
  readonly shape: readonly number[];
  readonly dtype: Dtype;
  readonly pieces: readonly Uint8Array[];
  /** The device memory that holds it, if it was never in host memory; `pieces` is then empty. */
  readonly place?: DevicePlace;
  /** Called once, when the bytes are no longer needed: their memory is then reused. */
  release(): void;
}

/** The sending end of a link. All kinds work alike: grpc, shared memory, nccl. */
export interface SendingEnd {
  /** null while there is room for another tensor, else a promise of it: back-pressure instead of growth. Rejects with PL_LINK_FAILED. */
  room(): Promise<void> | null;
  /** Sends a tensor under a key, after room was granted. Resolves when it has left device memory. Errors: PL_LINK_FAILED. */
  send(key: string, tensor: OutgoingTensor): Promise<void>;
  close(): void;
}

/** The end that receives: hands tensors to a Mailbox. */
export interface ReceivingEnd {
  /** A caller waits for a tensor that has not arrived: the sender gets room for it, even while other tensors have not been taken. */
  awaited(): void;
  close(): void;
}

/** "the link from rank 0 to rank 1 (grpc)" */
export function linkName({ fromRank, toRank }: LinkEnds, kind: string): string {
  return `the link from rank ${fromRank} to rank ${toRank} (${kind})`;
}

/** Names a tensor within a session. Both ends derive the name from the schedule. */
export function activationKey(step: string, segment: number, microBatch: number): string {
  return `${step}/f/${segment}/${microBatch}`;
}

export function gradientKey(step: string, segment: number, microBatch: number): string {
  return `${step}/b/${segment}/${microBatch}`;
}

/** A share of the gradients that replicas add up: a part to add, or the sum, from a replica. */
export function gradientSumKey(step: string, kind: "part" | "sum", fromReplica: number): string {
  return `${step}/r/${kind}/${fromReplica}`;
}

/** Gradients of a matrix that two ranks hold: the twin's, on its way to the matrix's rank, and their sum, on its way back. */
export function sharedSumKey(step: string, kind: "part" | "sum", adapter: number): string {
  return `${step}/t/${kind}/${adapter}`;
}

/** The command of a pipeline's n-th step, passed from rank to rank. */
export function commandKey(step: number): string {
  return `command/${step}`;
}

/** A pipeline's sums of a step so far, on their way to its first rank. */
export function sumsKey(step: string): string {
  return `${step}/sums`;
}
