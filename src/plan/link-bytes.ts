import { dtypeBytes, SCALE_COLUMNS } from "../common/dtype.ts";
import type { PlanRequest } from "./request.ts";

type Carried = Pick<PlanRequest, "spec" | "computeDtype" | "linkDtype">;

/** Bytes that a token's activation, or its gradient, has between two ranks. */
export function linkBytesPerToken({ spec, computeDtype, linkDtype = null }: Carried): number {
  const { hidden } = spec.shape;
  if (linkDtype === "float8_e4m3fn") return hidden + SCALE_COLUMNS;
  return hidden * dtypeBytes(linkDtype ?? computeDtype);
}

/** What a rank has of a token while its numbers are rounded for a link, beside those; 0 where they go as they are. */
export function roundedBytesPerToken(carried: Carried): number {
  return (carried.linkDtype ?? null) === null ? 0 : linkBytesPerToken(carried);
}
