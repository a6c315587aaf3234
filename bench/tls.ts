// What TLS costs a tensor between two workers: one sender process, one receiver process, 4 MiB tensors over loopback, plaintext and
// mutual TLS in turn. Prints one JSON line a pass and the median of each. Run: node --import tsx bench/tls.ts [passes]
import { type ChildProcess, fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { makeCertificates } from "../src/coordinator/cluster/certificates.ts";
import { loadEngine } from "../src/engine/index.ts";
import { GrpcReceiver } from "../src/links/grpc-receiver.ts";
import { GrpcSender } from "../src/links/grpc-sender.ts";
import { serveSenders } from "../src/links/service.ts";
import { listen } from "../src/rpc/server.ts";
import { NO_TRUST, openTrust, type Trust } from "../src/rpc/trust.ts";
import { expectLargeBuffers } from "../src/worker/node/host-memory.ts";
import { fromHost } from "../src/worker/tensors.ts";

const TENSOR_BYTES = 4 << 20;
const TENSORS = 256;
const SMALL_TENSORS = 200;

function trustOf(kind: string, dir: string, name: string): Trust {
  if (kind === "plain") return NO_TRUST;
  const file = (which: string) => join(dir, name, which);
  const files = { tls_ca: file("ca.crt"), tls_cert: file("tls.crt"), tls_key: file("tls.key") };
  return openTrust({ ...files, tls_name: "pipelora", join_token: null, join_token_file: null }, () => {});
}

const ENDS = { session: "bench", fromRank: 0, toRank: 1 };
/** One tensor on its way: the next is sent when the one before was taken. */
const WINDOW = { windowBytes: 1, timeoutMs: 60_000 };

function failed(error: Error): never {
  throw error;
}

/** The receiver process: takes tensors as they come from the port it is told. */
function receive(dir: string): void {
  const { crc32c } = loadEngine();
  let open: GrpcReceiver | null = null;
  process.on("message", ({ kind, port }: { kind: string; port: number }) => {
    open?.close();
    open = new GrpcReceiver(
      {
        ...WINDOW,
        ends: ENDS,
        address: `127.0.0.1:${port}`,
        trust: trustOf(kind, dir, "b"),
        deliver: (_key, tensor) => tensor.release(),
        isAwaited: () => false,
        onFailed: failed,
      },
      crc32c,
    );
  });
}

interface Measured {
  readonly gbPerSecond: number;
  readonly roundTripMs: number;
  /** Of the sender. */
  readonly cpuSecondsAGb: number;
}

async function pass(receiver: ChildProcess, kind: string, trust: Trust): Promise<Measured> {
  const link = new GrpcSender({ ...WINDOW, ends: ENDS, onFailed: failed }, loadEngine().crc32c);
  const server = await listen(
    "127.0.0.1:0",
    trust,
    () => {},
    (grpc) => serveSenders(grpc, () => link),
  );
  receiver.send({ kind, port: server.port });
  const taken = async () => {
    for (let room = link.room(); room !== null; room = link.room()) await room;
  };
  const send = async (bytes: Uint8Array, index: number) => {
    await link.send(String(index), fromHost(bytes, [bytes.length / 4], "float32"));
    await taken();
  };
  const timed = async (bytes: Uint8Array, count: number) => {
    await send(bytes, -1);
    const started = performance.now();
    for (let index = 0; index < count; index++) await send(bytes, index);
    return (performance.now() - started) / count;
  };
  const roundTripMs = await timed(new Uint8Array(4), SMALL_TENSORS);
  const before = process.cpuUsage();
  const perTensorMs = await timed(new Uint8Array(TENSOR_BYTES).fill(7), TENSORS);
  const { user, system } = process.cpuUsage(before);
  link.close();
  server.close();
  const cpuSecondsAGb = (user + system) / 1e6 / ((TENSOR_BYTES * (TENSORS + 1)) / 1e9);
  return { gbPerSecond: TENSOR_BYTES / perTensorMs / 1e6, roundTripMs, cpuSecondsAGb };
}

async function main(passes: number): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "pipelora-tls-"));
  await makeCertificates({ output_dir: folder, names: ["a", "b"], tls_name: "pipelora", days: 1 });
  const receiver = fork(fileURLToPath(import.meta.url), ["receive", folder], { execArgv: process.execArgv });
  try {
    const results = new Map<string, Measured[]>();
    for (let index = 0; index < passes; index++) {
      for (const kind of ["plain", "mtls"]) {
        const result = await pass(receiver, kind, trustOf(kind, folder, "a"));
        results.set(kind, [...(results.get(kind) ?? []), result]);
        process.stdout.write(`${JSON.stringify({ kind, ...result })}\n`);
      }
    }
    const median = (values: number[]) => values.sort((x, y) => x - y)[values.length >> 1]!;
    for (const [kind, list] of results) {
      const gb = median(list.map(({ gbPerSecond }) => gbPerSecond)).toFixed(2);
      const ms = median(list.map(({ roundTripMs }) => roundTripMs)).toFixed(3);
      const cpu = median(list.map(({ cpuSecondsAGb }) => cpuSecondsAGb)).toFixed(2);
      process.stdout.write(`${kind}: ${gb} GB/s, ${ms} ms a small tensor and back, ${cpu} s of CPU a GB (medians)\n`);
    }
  } finally {
    receiver.kill();
    rmSync(folder, { recursive: true });
  }
}

expectLargeBuffers(loadEngine());
const [role, dir] = process.argv.slice(2);
if (role === "receive") receive(dir!);
else await main(Number(role ?? 5));
