import { type Checkpoint, verifyCheckpoint } from "../../formats/checkpoint.ts";
import { type PackedWeights, tensorNames } from "../../formats/quantized-state.ts";
import { packedExperts, withExperts } from "../../formats/stacked-experts.ts";
import { modelStacks, storedAliases, storedTensors } from "../../models/experts.ts";
import type { ModelSpec } from "../../models/spec.ts";

/** The checkpoint's tensors under the names that workers ask for, each expert's apart, whichever way the files store them. */
export function expertsApart(spec: ModelSpec, files: Checkpoint): Checkpoint {
  return withExperts(files, modelStacks(spec), storedAliases(spec));
}

/**
 * Compares a checkpoint's files with the model (verifyCheckpoint). Experts may be stored apart or stacked. `packed`: quantised weights,
 * which have been checked already. Returns how many tensors of other parts are left out. Errors: PL_TENSOR_MISMATCH,
 * PL_QUANTIZATION_INVALID.
 */
export function holdAgainst(spec: ModelSpec, files: Checkpoint, packed: PackedWeights): number {
  const mx = packedExperts(files, modelStacks(spec));
  const weights = [...mx.packed.keys()].map((name) => `${name}.weight`);
  const known = new Set([...tensorNames(packed), ...mx.names, ...weights]);
  return verifyCheckpoint({ ...spec, tensors: storedTensors(spec, files.has) }, files, known);
}
