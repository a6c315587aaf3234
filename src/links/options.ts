import type { PipeloraError } from "../common/errors.ts";
import type { Trust } from "../rpc/trust.ts";
import type { IncomingTensor, LinkEnds } from "./link.ts";

/** Bytes of whole tensors by which a sender may be ahead of what its receiver has taken, give or take one tensor. */
export const WINDOW_BYTES = 64 << 20;

export interface EndOptions {
  readonly ends: LinkEnds;
  /** After this long without progress the link counts as lost. */
  readonly timeoutMs: number;
  readonly windowBytes?: number;
  /** Once, when the link has failed for good. */
  readonly onFailed: (error: PipeloraError) => void;
  /** Told what the link got over: for the log. */
  readonly note?: (text: string) => void;
}

export interface ReceiverOptions extends EndOptions {
  /** Where the sender serves. */
  readonly address: string;
  readonly trust: Trust;
  readonly deliver: (key: string, tensor: IncomingTensor) => void;
  /** Whether somebody waits for a tensor of this link. */
  readonly isAwaited: () => boolean;
}
