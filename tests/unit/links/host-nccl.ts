// NCCL's C interface over host memory (native/comm/tests/host_nccl.cpp): moves bytes between processes, needs no GPU.
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { loadEngine, type NativeAddon } from "../../../src/engine/index.ts";
import type { IncomingTensor, OutgoingTensor, SendingEnd } from "../../../src/links/link.ts";

export const HOST_NCCL = join(PACKAGE_ROOT, "build", "native", "comm", "tests", "libnccl_host.so");

/** The addon with that library; before anything else of the process has asked it for NCCL. */
export function loadWithHostNccl(): NativeAddon {
  process.env["PIPELORA_NCCL_LIBRARY"] = HOST_NCCL;
  const addon = loadEngine();
  const { version, reason, hostMemory } = addon.capabilities().nccl;
  if (version === null || !hostMemory) throw new Error(`${HOST_NCCL}: ${reason}`);
  return addon;
}

/** The sender as ranks with device memory have it: what it is given lies in the "device", which here is host memory. */
export function fromDeviceMemory(sender: SendingEnd): SendingEnd {
  return {
    room: () => sender.room(),
    close: () => sender.close(),
    send: (key, tensor: OutgoingTensor) =>
      sender.send(key, {
        ...tensor,
        copyToPlace: (place) => tensor.copyTo([new Uint8Array(place.memory!, 0, tensor.byteLength)]),
      }),
  };
}

/** What came in device memory, to be looked at. */
export function visible(came: IncomingTensor): IncomingTensor {
  return came.place === undefined ? came : { ...came, pieces: [new Uint8Array(came.place.memory!)] };
}
