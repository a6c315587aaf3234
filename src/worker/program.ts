import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { constants, hostname } from "node:os";
import { isLoopback, isWildcard, joinAddress } from "../common/address.ts";
import { PipeloraError } from "../common/errors.ts";
import { exitCodeOf, exitCodeOfSignal } from "../common/exit-codes.ts";
import type { Logger } from "../common/log.ts";
import { freeMemory } from "../common/machine.ts";
import { PACKAGE_VERSION } from "../common/root.ts";
import type { Config } from "../config/options.ts";
import { type Capabilities, engineOrigin, loadEngine } from "../engine/index.ts";
import { ncclFor } from "../engine/nccl-ability.ts";
import { serveSenders } from "../links/service.ts";
import { reach } from "../rpc/dial.ts";
import type { Hello } from "../rpc/generated/pipelora/v1/Hello.ts";
import { listenForProbes } from "../rpc/health.ts";
import { PROTOCOL_VERSION } from "../rpc/protocol.ts";
import { listen } from "../rpc/server.ts";
import { openTrust, type Trust, type TrustSettings } from "../rpc/trust.ts";
import { hostIdentity } from "./node/host-identity.ts";
import { expectLargeBuffers } from "./node/host-memory.ts";
import { NodeHealth, RankHealth } from "./node/node-health.ts";
import { Session } from "./session.ts";
import { StopSignals } from "./stop-signals.ts";
import { HeldLayers } from "./weights/held-layers.ts";

/** Set by the parent process of a node's workers for its children: their number, the node's devices, and the node's process. */
const LOCAL_INDEX = "PIPELORA_LOCAL_INDEX";
const NODE_DEVICES = "PIPELORA_NODE_DEVICES";
const NODE_INSTANCE = "PIPELORA_NODE_INSTANCE";
/** The process id of the process that started this one. */
const PARENT_PID = "PIPELORA_PARENT_PID";
const PARENT_CHECK_MS = 1_000;
/** After another rank's failure, a rank has this long to stop by itself if the coordinator does not release it. */
const STRAGGLER_MS = 90_000;
/** The part of the configuration that a worker uses. */
export type WorkerSettings = TrustSettings &
  Pick<
    Config,
    | "coordinator"
    | "devices"
    | "threads"
    | "node_name"
    | "bind"
    | "advertise"
    | "health_listen"
    | "join_timeout"
    | "model"
    | "output_dir"
  >;

/**
 * The `worker` program. With several devices it starts a child process for each; with one it is the rank itself. Resolves with the exit code.
 */
export async function runWorker(config: WorkerSettings, argv: readonly string[], log: Logger): Promise<number> {
  prepareForNccl(config.coordinator!);
  const devices = chooseDevices(config.devices, loadEngine().capabilities());
  if (devices.length === 1) return runRank(config, devices[0]!, log);
  return runChildren(config, devices, argv, log);
}

/** Sets environment variables that NCCL and the driver read when they start. Those that the user has set stay. */
function prepareForNccl(coordinator: string): void {
  // A kernel that waits for a peer must not share a hardware queue with a kernel that the peer waits for.
  process.env["CUDA_DEVICE_MAX_CONNECTIONS"] ??= "32";
  // Another program may read standard output.
  process.env["NCCL_DEBUG_FILE"] ??= "/dev/stderr";
  // If all workers are on this host, NCCL must not listen on other interfaces.
  if (isLoopback(coordinator)) process.env["NCCL_SOCKET_IFNAME"] ??= "lo";
}

function chooseDevices(asked: Config["devices"], capabilities: Capabilities): string[] {
  const gpus = (capabilities.cuda?.devices ?? []).map((device) => `cuda:${device.index}`);
  if (asked === null) return gpus.length > 0 ? gpus : ["cpu"];
  for (const device of asked) {
    if (device === "cpu" || gpus.includes(device)) continue;
    const why =
      capabilities.cuda === null ? "this build has no CUDA part" : (capabilities.cuda.reason ?? "no such GPU");
    throw new PipeloraError("PL_DEVICE_UNAVAILABLE", `device ${device} can't be used: ${why}`, {
      hint: `Devices here: ${["cpu", ...gpus].join(", ")}.`,
    });
  }
  return [...asked];
}

/** Runs a node's workers as children. If one fails all end, and whatever started this process can restart the node as a whole. */
async function runChildren(
  config: WorkerSettings,
  devices: readonly string[],
  argv: readonly string[],
  log: Logger,
): Promise<number> {
  const flags = argv.filter((flag, index) => flag !== "--devices" && argv[index - 1] !== "--devices");
  const shared = {
    [NODE_DEVICES]: String(devices.length),
    [NODE_INSTANCE]: randomUUID(),
    [PARENT_PID]: String(process.pid),
  };
  const children = devices.map((device, index) =>
    spawn(process.execPath, [process.argv[1]!, ...flags, "--devices", device], {
      stdio: ["ignore", "inherit", "inherit", "ipc"],
      env: { ...process.env, ...shared, [LOCAL_INDEX]: String(index) },
    }),
  );
  let stopping = false;
  const stop = (signal: NodeJS.Signals) => {
    stopping = true;
    for (const child of children) child.kill(signal);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => stop(signal));
  /** The node's exit code is that of the first failure, because later ones are its consequences. */
  let failure = 0;
  const ends = children.map(
    (child, index) =>
      new Promise<void>((resolve) => {
        const ended = (code: number, how: string) => {
          if (failure === 0) failure = code;
          if (code !== 0 && !stopping) {
            log.error(`the worker of ${devices[index]} ended with ${how}`);
            stop("SIGTERM");
            setTimeout(() => stop("SIGKILL"), STRAGGLER_MS).unref();
          }
          resolve();
        };
        child.on("error", (error) => ended(1, error.message));
        child.on("exit", (code, signal) => ended(code ?? 128 + constants.signals[signal!], signal ?? `code ${code}`));
      }),
  );
  const health = new NodeHealth(children);
  try {
    const probes = config.health_listen === null ? null : await health.listen(config.health_listen);
    await Promise.all(ends);
    probes?.close();
  } catch (error) {
    stop("SIGTERM");
    await Promise.all(ends);
    throw error;
  }
  return failure;
}

/** Ends this rank when the process that started it is gone: its node's parent, or the coordinator of local workers. */
function endWithParent(log: Logger): void {
  if (process.env[LOCAL_INDEX] === undefined) return;
  // The parent passes its id, because process.ppid is already wrong if the parent is killed while this process starts.
  const parent = Number(process.env[PARENT_PID] ?? process.ppid);
  const end = () => {
    log.warn("the process that started this worker is gone");
    process.exit(exitCodeOf(new PipeloraError("PL_WORKER_LOST", "the parent process is gone")));
  };
  process.once("disconnect", end);
  setInterval(() => process.ppid !== parent && end(), PARENT_CHECK_MS).unref();
}

async function runRank(config: WorkerSettings, device: string, log: Logger): Promise<number> {
  const signals = new StopSignals();
  endWithParent(log);
  const health = new RankHealth();
  // If a node has several workers, their parent process answers probes.
  const probes =
    config.health_listen === null || process.env[LOCAL_INDEX] !== undefined
      ? null
      : await listenForProbes(config.health_listen, health.health);
  const trust = openTrust(config, (problem) => log.warn(problem));
  const addon = loadEngine();
  log.debug(engineOrigin());
  expectLargeBuffers(addon);
  let session: Session | null = null;
  const held = new HeldLayers();
  const here = await arrive(config, trust, log);
  const bind = config.bind ?? here;
  const server = await listen(
    joinAddress(bind, 0),
    trust,
    (peer, reason) => log.warn(`refused a connection of ${peer}: ${reason}`),
    (grpc) => {
      serveSenders(grpc, (open) => session?.senderFor(open) ?? null);
      health.health.serve(grpc);
    },
  );
  const host = config.advertise ?? (isWildcard(bind) ? here : bind);
  const hello = introduce(config, device, joinAddress(host, server.port));
  try {
    for (;;) {
      session = new Session({ config, device, hello, trust, health, signals, held, log });
      const end = await session.run();
      session = null;
      if (end !== "rejoin") return end;
      if (signals.first !== null) return exitCodeOfSignal(signals.first);
      log.info("joining again");
      await arrive(config, trust, log);
    }
  } finally {
    held.free();
    server.close();
    probes?.close();
  }
}

/** Waits until the coordinator can be reached. Resolves with the address that this node has on that way. */
function arrive(config: WorkerSettings, trust: Trust, log: Logger): Promise<string> {
  return reach(config.coordinator!, trust, config.join_timeout * 1000, (reason) =>
    log.info(`waiting for the coordinator at ${config.coordinator}: ${reason}`),
  );
}

function introduce(config: WorkerSettings, device: string, linkAddress: string): Hello {
  const { build, cpu, cuda, nccl: library } = loadEngine().capabilities();
  const nccl = ncclFor(device, library);
  const gpu = cuda?.devices.find((candidate) => `cuda:${candidate.index}` === device);
  return {
    protocol: PROTOCOL_VERSION,
    build,
    version: PACKAGE_VERSION,
    node: config.node_name ?? hostname(),
    localIndex: Number(process.env[LOCAL_INDEX] ?? 0),
    nodeDevices: Number(process.env[NODE_DEVICES] ?? 1),
    instance: process.env[NODE_INSTANCE] ?? randomUUID(),
    device,
    deviceName: gpu?.name ?? `CPU (${cpu.isa})`,
    memoryBytes: gpu?.freeBytes ?? cpu.memoryBytes,
    hostMemoryBytes: freeMemory(),
    threads: config.threads ?? cpu.threads,
    linkAddress,
    hostId: hostIdentity(),
    pciBusId: gpu?.pciBusId ?? "",
    capabilityMajor: gpu?.capability[0] ?? 0,
    capabilityMinor: gpu?.capability[1] ?? 0,
    nccl: nccl.version ?? "",
    ncclMissing: nccl.reason ?? "",
    pid: process.pid,
  };
}
