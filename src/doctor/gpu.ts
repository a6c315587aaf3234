import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import type { Capabilities } from "../engine/index.ts";
import { type Finding, ok, warn } from "./finding.ts";

const GIB = 1024 ** 3;

/** 13000 -> "13.0" */
const cudaVersion = (number: number) => `${Math.floor(number / 1000)}.${Math.floor((number % 1000) / 10)}`;

/** The kernel's driver, its library, and the GPUs; without one training runs on the CPU. */
export async function gpuFindings({ cuda, nccl }: Capabilities): Promise<Finding[]> {
  const module = await readFile("/proc/driver/nvidia/version", "utf8").then(
    (text) => /Kernel Module\s+(?:for \S+\s+)?(\S+)/.exec(text)?.[1] ?? "of an unknown version",
    () => null,
  );
  const device = module !== null || existsSync("/dev/nvidiactl") || existsSync("/dev/dxg");
  if (cuda === null) {
    return [
      device
        ? warn(
            "gpu",
            "an NVIDIA driver, but the engine was built without CUDA",
            "Take the prebuilt engine, or build where nvcc is.",
          )
        : ok("gpu", "none: training runs on the CPU"),
    ];
  }
  if (cuda.devices.length === 0) {
    const found = cuda.reason ?? "no GPU";
    return [
      device
        ? warn(
            "gpu",
            `driver ${module ?? "seen"}, but no GPU is used: ${found}`,
            "Install a driver that fits, or give the container its GPUs (docker run --gpus all).",
          )
        : ok("gpu", `none (${found}): training runs on the CPU`),
    ];
  }
  const driver = `driver ${module ?? "seen"} for CUDA ${cudaVersion(cuda.driver)}, the engine's runtime is ${cudaVersion(cuda.runtime)}`;
  const devices = cuda.devices.map(({ index, name, capability, freeBytes, totalBytes }) =>
    ok(
      `cuda:${index}`,
      `${name}, sm_${capability.join("")}, ${(freeBytes / GIB).toFixed(1)} of ${(totalBytes / GIB).toFixed(1)} GiB free`,
    ),
  );
  return [ok("driver", driver), ...devices, ncclFinding(cuda.devices.length, nccl)];
}

export function ncclFinding(gpus: number, { version, reason }: Capabilities["nccl"]): Finding {
  if (version !== null) return ok("nccl", version);
  const found = `none (${reason})`;
  return gpus < 2
    ? ok("nccl", `${found}; one GPU needs none`)
    : warn("nccl", found, "Install libnccl2: without it GPUs exchange tensors over shared memory, which is slower.");
}
