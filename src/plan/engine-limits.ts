import { PipeloraError } from "../common/errors.ts";
import type { ModelShape } from "../models/spec.ts";
import type { Device } from "./devices.ts";

/** Most columns of an attention head (native/model/engine.cpp, native/ops/cuda/attention/plain.cu). */
const MOST_HEAD_DIM: Readonly<Record<Device["kind"], number>> = { cpu: 1024, cuda: 256 };
const DEVICE_WORD: Readonly<Record<Device["kind"], string>> = { cpu: "CPU workers", cuda: "GPUs" };

/**
 * Refuses what an engine on one of these devices would throw on in its first pass, before a weight is read. The engine's other
 * expectations, of shapes that fit each other, are config.json's own and checked where that is read.
 * Error: PL_MODEL_UNSUPPORTED.
 */
export function assertComputable({ headDim }: ModelShape, devices: readonly Pick<Device, "kind">[]): void {
  for (const kind of new Set(devices.map((device) => device.kind))) {
    const most = MOST_HEAD_DIM[kind];
    if (headDim > most) {
      throw new PipeloraError(
        "PL_MODEL_UNSUPPORTED",
        `${DEVICE_WORD[kind]} compute attention heads of at most ${most} columns; this model's head_dim is ${headDim}.`,
        {
          hint:
            kind === "cuda" && headDim <= MOST_HEAD_DIM.cpu
              ? "Run it on CPU workers (--workers N), or take a model with smaller heads."
              : "Take a model with smaller heads.",
        },
      );
    }
  }
}
