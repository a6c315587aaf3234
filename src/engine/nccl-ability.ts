import type { NcclLibrary } from "./face.ts";

/** What a process that computes on a device can do with the NCCL of its machine; version null: nothing, and why. */
export function ncclFor(
  device: string,
  { version, reason, hostMemory }: NcclLibrary,
): { version: string | null; reason: string | null } {
  if (version === null) return { version, reason };
  const isCpu = device === "cpu";
  if (isCpu === hostMemory) return { version, reason: null };
  return {
    version: null,
    reason: isCpu ? "NCCL moves a GPU's memory, and it computes on its CPU" : "this NCCL moves host memory",
  };
}
