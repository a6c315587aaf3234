import type { Device } from "../../plan/devices.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";

/** Devices of the workers that joined; a rank is a device's number. CPU workers of one node share its memory. */
export function joinedDevices(members: readonly WorkerConnection[]): Device[] {
  return members.map(({ hello }, id) => {
    const kind = hello.device === "cpu" ? "cpu" : "cuda";
    const sharing = members.filter((other) => other.hello.node === hello.node && other.hello.device === "cpu").length;
    return {
      id,
      kind,
      name: hello.deviceName,
      node: hello.node,
      host: hello.hostId === "" ? `rank ${id}` : hello.hostId,
      ...(hello.pciBusId === "" ? {} : { pciBusId: hello.pciBusId }),
      ...(hello.capabilityMajor === 0 ? {} : { capability: [hello.capabilityMajor, hello.capabilityMinor] as const }),
      nccl: hello.nccl === "" ? { version: null, reason: hello.ncclMissing } : { version: hello.nccl, reason: null },
      memoryBytes: kind === "cpu" ? Math.floor(hello.memoryBytes / sharing) : hello.memoryBytes,
      hostMemoryBytes: kind === "cpu" ? null : hello.hostMemoryBytes,
    };
  });
}
