import { PipeloraError } from "../common/errors.ts";
import type { AttentionKind, ModelSpec } from "../models/spec.ts";
import type { Device } from "./devices.ts";

/** Most columns of an attention head (native/model/engine.cpp, native/ops/cuda/attention/plain.cu). */
const MOST_HEAD_DIM: Readonly<Record<Device["kind"], number>> = { cpu: 1024, cuda: 256 };
const DEVICE_WORD: Readonly<Record<Device["kind"], string>> = { cpu: "CPU workers", cuda: "GPUs" };

/**
 * Refuses, before a weight is read, a model on which an engine on one of these devices would fail in its first pass. Whether the shapes of
 * config.json fit each other is checked where that file is read.
 * Errors: PL_MODEL_UNSUPPORTED.
 */
export function assertComputable(
  { shape, layers }: Pick<ModelSpec, "shape" | "layers">,
  devices: readonly Pick<Device, "kind" | "name" | "capability">[],
): void {
  const { headDim } = shape;
  const deltaNet = layers.flatMap((layer) =>
    layer.kind === "block" && layer.attention.kind === "delta" ? [layer.attention] : [],
  )[0];
  if (deltaNet !== undefined) for (const device of devices) assertDeltaNet(deltaNet, device);
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

/** Most columns of a gated delta net's head on a GPU (native/ops/cuda/delta/delta.h): the state of a head must fit one block's shared memory. */
const MOST_DELTA_DIM = 128;

type DeltaNet = Extract<AttentionKind, { kind: "delta" }>;

function assertDeltaNet(net: DeltaNet, device: Pick<Device, "kind" | "name" | "capability">): void {
  if (device.kind === "cpu") return;
  for (const [key, width] of [
    ["linear_key_head_dim", net.keyDim],
    ["linear_value_head_dim", net.valueDim],
  ] as const) {
    if (width <= MOST_DELTA_DIM) continue;
    throw new PipeloraError(
      "PL_MODEL_UNSUPPORTED",
      `GPUs compute heads of a gated delta net of at most ${MOST_DELTA_DIM} columns; this model's ${key} is ${width}.`,
      { hint: "Run it on CPU workers (--workers N), or take a model with smaller heads." },
    );
  }
  if (device.capability === undefined) return;
  const needed = deltaBackwardBytes(net);
  const most = blockBytes(device.capability);
  if (needed <= most) return;
  throw new PipeloraError(
    "PL_MODEL_UNSUPPORTED",
    `The backward pass of a gated delta net with heads of ${net.keyDim} and ${net.valueDim} columns needs ${kib(needed)} of a block's shared memory; ` +
      `${device.name ?? "a GPU"} of compute capability ${device.capability.join(".")} has ${kib(most)}.`,
    {
      hint: "Train it on a GPU of compute capability 9.0 or 10.0 (Hopper, Blackwell), or on CPU workers (--workers N).",
    },
  );
}

const kib = (bytes: number): string => `${Math.ceil(bytes / 1024)} KiB`;

/** Bytes of shared memory that a thread block of the backward pass needs: Layout in native/ops/cuda/delta/delta_backward.cu. */
function deltaBackwardBytes({ keyDim, valueDim }: Pick<DeltaNet, "keyDim" | "valueDim">): number {
  const chunk = 32;
  const warps = 8;
  const keyRow = keyDim | 1;
  const valueRow = valueDim | 1;
  const floats =
    keyDim * valueRow +
    2 * chunk * keyRow +
    3 * chunk * valueRow +
    4 * chunk * (chunk + 1) +
    keyDim * 33 +
    8 * chunk +
    warps;
  return 4 * floats;
}

/** Most bytes of shared memory a thread block, by compute capability (CUDA C++ Programming Guide, table of technical specifications). */
function blockBytes([major, minor]: readonly [major: number, minor: number]): number {
  const kibOfBlock =
    major < 7
      ? 48
      : major === 7
        ? minor === 5
          ? 64
          : 96
        : major === 8
          ? minor === 0 || minor === 7
            ? 163
            : 99
          : major === 12
            ? 99
            : 227;
  return kibOfBlock * 1024;
}
