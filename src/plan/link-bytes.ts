import { dtypeBytes, SCALE_COLUMNS } from "../common/dtype.ts";
import type { PlanRequest } from "./request.ts";

type Carried = Pick<PlanRequest, "spec" | "computeDtype" | "linkDtype">;

/** Bytes a token of an activation, or of its gradient, on a link between two ranks. */
export function linkBytesPerToken({ spec, computeDtype, linkDtype = null }: Carried): number {
  const { hidden } = spec.shape;
  if (linkDtype === "float8_e4m3fn") return hidden + SCALE_COLUMNS;
  return hidden * dtypeBytes(linkDtype ?? computeDtype);
}

/** Bytes a token of the rounded copy that a rank makes for a link; 0 if values go unrounded. */
export function roundedBytesPerToken(carried: Carried): number {
  return (carried.linkDtype ?? null) === null ? 0 : linkBytesPerToken(carried);
}
