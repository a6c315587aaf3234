import { isFloatDtype } from "../common/dtype.ts";
import { convertedTensor, type TensorLocation } from "./safetensors.ts";

/** Whether a copy of a tensor holds its values, rounded to the copy's dtype. A piece at a time. */
export async function sameValues(copy: TensorLocation, original: TensorLocation): Promise<boolean> {
  const { dtype } = copy;
  const alike =
    copy.shape.length === original.shape.length && copy.shape.every((extent, i) => extent === original.shape[i]);
  if (!alike || !isFloatDtype(dtype) || !isFloatDtype(original.dtype)) return false;
  const other = convertedTensor(original, dtype);
  for await (const piece of convertedTensor(copy, dtype)) {
    const { value } = await other.next();
    if (value === undefined || Buffer.compare(piece, value) !== 0) return false;
  }
  return true;
}
