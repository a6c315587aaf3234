import type { Dtype } from "../common/dtype.ts";

/** A tensor on its way between two ranks, in host memory. */
export interface TensorMessage {
  readonly shape: readonly number[];
  readonly dtype: Dtype;
  readonly bytes: Uint8Array;
}

/** One direction to one peer. Tensors arrive in the order sent; each is named by a key that the receiver asks for. */
export interface Link {
  /** Resolves when the tensor is on its way and room for the next is granted: back-pressure instead of growth. */
  send(key: string, tensor: TensorMessage): Promise<void>;
  close(): void;
}

/** Names a tensor within a session: what both ends compute from the schedule. */
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
