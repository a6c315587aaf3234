import { PipeloraError } from "../common/errors.ts";
import type { AttentionKind, ModelSpec } from "../models/spec.ts";
import type { Device } from "./devices.ts";

/** Most columns of an attention head (native/model/engine.cpp, native/ops/cuda/attention/plain.cu). */
const MOST_HEAD_DIM: Readonly<Record<Device["kind"], number>> = { cpu: 1024, cuda: 256 };
const DEVICE_WORD: Readonly<Record<Device["kind"], string>> = { cpu: "CPU workers", cuda: "GPUs" };

/**
 * Refuses what an engine on one of these devices would throw on in its first pass, before a weight is read. The engine's other
 * expectations, of shapes that fit each other, are config.json's own and checked where that is read.
 * Error: PL_MODEL_UNSUPPORTED.
 */
export function assertComputable(
  { shape, layers }: Pick<ModelSpec, "shape" | "layers">,
  devices: readonly Pick<Device, "kind">[],
): void {
  const { headDim } = shape;
  for (const kind of new Set(devices.map((device) => device.kind))) {
    for (const layer of layers) if (layer.kind === "block") assertDeltaNet(layer.attention, kind);
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

/** Most columns of a gated delta net's heads on a GPU (native/ops/cuda/delta/delta.h): a state lies in one block's shared memory. */
const MOST_DELTA_DIM = 128;

function assertDeltaNet(attention: AttentionKind, kind: Device["kind"]): void {
  if (attention.kind !== "delta" || kind === "cpu") return;
  for (const [key, width] of [
    ["linear_key_head_dim", attention.keyDim],
    ["linear_value_head_dim", attention.valueDim],
  ] as const) {
    if (width <= MOST_DELTA_DIM) continue;
    throw new PipeloraError(
      "PL_MODEL_UNSUPPORTED",
      `GPUs compute heads of a gated delta net of at most ${MOST_DELTA_DIM} columns; this model's ${key} is ${width}.`,
      { hint: "Run it on CPU workers (--workers N), or take a model with smaller heads." },
    );
  }
}
