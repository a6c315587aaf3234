import { PipeloraError } from "../common/errors.ts";
import { type HoldDtype, type QuantizationSettings, quantizedHold } from "../common/quantization.ts";
import type { Engine } from "../engine/index.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { readPackedWeights } from "../formats/quantized-state.ts";
import { blockLinears } from "../models/quantization.ts";
import type { ModelSpec } from "../models/spec.ts";
import type { Prepare__Output } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { Quantization__Output } from "../rpc/generated/pipelora/v1/Quantization.ts";

/** A tensor that a segment of the engine needs. */
export interface WantedWeight {
  /** The engine's number. */
  readonly segment: number;
  readonly name: string;
}

/**
 * Reads this rank's tensors from the mapped checkpoint, one at a time, quantising on the way what is to be quantised; weights that
 * the checkpoint holds quantised go in as they are. Beside the shard there is never more than one tensor.
 */
export async function loadWeights(
  engine: Engine,
  checkpoint: Checkpoint,
  spec: ModelSpec,
  wanted: readonly WantedWeight[],
  request: Prepare__Output,
): Promise<void> {
  const dtype = request.holdDtype as HoldDtype;
  const settings = quantizationOf(request.quantization);
  const modules = new Set(request.quantization?.modules);
  const needed = new Set(wanted.map(({ name }) => name));
  const own = blockLinears(spec).filter(({ name }) => modules.has(name) && needed.has(`${name}.weight`));
  const packed =
    settings === null || spec.quantization === null
      ? new Map<string, never>()
      : await readPackedWeights(checkpoint, own, settings, new Set(), dtype);
  const quantized = new Set(own.map(({ name }) => `${name}.weight`));
  // The engine's thread takes them in this order; what is queued is a place in a file, not its bytes.
  const loads = Promise.all(
    wanted.map(({ segment, name }) => {
      if (settings === null || !quantized.has(name)) {
        return engine.loadWeight(segment, name, checkpoint.locate(name), dtype);
      }
      const stored = packed.get(name.slice(0, -".weight".length));
      return stored === undefined
        ? engine.loadWeight(segment, name, checkpoint.locate(name), quantizedHold(settings, dtype))
        : engine.loadPacked(segment, name, stored);
    }),
  );
  await loads.catch((cause: unknown) => {
    const { code, message } = cause as { code?: string; message: string };
    if (code !== "PL_QUANTIZATION_INVALID") throw cause;
    const hint =
      packed.size > 0
        ? "Quantise the 16-bit checkpoint again (`coordinator quantize`)."
        : "Repair the checkpoint, or leave this layer out with --llm-int8-skip-modules.";
    throw new PipeloraError("PL_QUANTIZATION_INVALID", message, { cause, hint });
  });
}

function quantizationOf(message: Quantization__Output | null): QuantizationSettings | null {
  switch (message?.method) {
    case undefined:
    case "":
    case "none":
      return null;
    case "8bit":
      return { method: "8bit", threshold: message.int8Threshold };
    case "4bit":
      if (message.quantType === "nf4" || message.quantType === "fp4") {
        return { method: "4bit", quantType: message.quantType, doubleQuant: message.doubleQuant };
      }
  }
  const form = `${message!.method} ${message!.quantType}`.trim();
  throw new PipeloraError("PL_PROTOCOL_MISMATCH", `the coordinator asks for weights held as "${form}"`);
}
