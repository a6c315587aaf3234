// One of the two processes of bench/device-links.ts: a rank with an engine, which sends or takes device tensors.

import { once } from "node:events";
import { type DeviceTensor, type Engine, loadEngine } from "../src/engine/index.ts";
import type { OutgoingTensor } from "../src/links/link.ts";
import { serveSenders } from "../src/links/service.ts";
import { modelSpecFromConfig } from "../src/models/index.ts";
import { listen } from "../src/rpc/server.ts";
import { NO_TRUST } from "../src/rpc/trust.ts";
import { RankLinks } from "../src/worker/links.ts";
import { expectLargeBuffers } from "../src/worker/node/host-memory.ts";
import { engineArch } from "../src/worker/segments.ts";
import { toDevice } from "../src/worker/tensors.ts";

/** Rank 0 sends, rank 1 takes. */
export interface LinkOrder {
  readonly device: string;
  readonly rank: number;
  readonly link: string;
  readonly shape: readonly [number, number];
  readonly count: number;
}

export interface Introduction {
  readonly address: string;
  /** Of a communicator; rank 0's, hexadecimal; empty without NCCL. */
  readonly id: string;
}

const SESSION = "bench";
const TIMEOUT_MS = 120_000;

async function serve(): Promise<void> {
  process.env["CUDA_DEVICE_MAX_CONNECTIONS"] ??= "32";
  process.env["NCCL_SOCKET_IFNAME"] ??= "lo";
  const [order] = (await once(process, "message")) as [LinkOrder];
  const { device, rank, link, shape } = order;
  const addon = loadEngine();
  expectLargeBuffers(addon);
  const links = new RankLinks({ addon, device, trust: NO_TRUST, note: (text) => process.stderr.write(`${text}\n`) });
  const server = await listen(
    "127.0.0.1:0",
    NO_TRUST,
    () => {},
    (grpc) => serveSenders(grpc, (open) => links.senderFor(open)),
  );
  const id = link === "nccl" && rank === 0 ? Buffer.from(addon.ncclUniqueId()).toString("hex") : "";
  process.send!({ address: `127.0.0.1:${server.port}`, id } satisfies Introduction);
  const [other] = (await once(process, "message")) as [Introduction];
  const shared = Buffer.from(id || other.id, "hex");
  const none = Buffer.alloc(0);
  const peer = { rank: 1 - rank, address: other.address, link };
  const ids = rank === 0 ? { ncclTo: shared, ncclFrom: none } : { ncclTo: none, ncclFrom: shared };
  links.join({ session: SESSION, rank }, [{ ...peer, ...ids }], TIMEOUT_MS);
  await links.opened();
  const bytes = 2 * shape[0] * shape[1];
  const engine = await addon.openEngine({
    device,
    threads: 2,
    computeDtype: "bfloat16",
    arch: ARCH,
    arenaBytes: 8 * bytes,
  });
  const seconds = rank === 0 ? await send(engine, links, order) : await receive(engine, links, order);
  process.send!({ GB_per_s: (bytes * order.count) / 1e9 / seconds });
  await once(process, "disconnect");
  links.close();
  process.exit();
}

async function send(engine: Engine, links: RankLinks, { shape, count }: LinkOrder): Promise<number> {
  const tensor = await engine.write([new Uint8Array(2 * shape[0] * shape[1])], shape, "bfloat16");
  const kept: OutgoingTensor = {
    shape,
    dtype: "bfloat16",
    byteLength: tensor.bytes,
    copyTo: (pieces) => engine.readInto(tensor, pieces),
    copyToPlace: (place) => engine.readTo(tensor, place),
  };
  await links.sendWhole(1, "warm", kept);
  (await links.receive(1, "go")).release();
  const began = performance.now();
  const sending: Promise<void>[] = [];
  for (let i = 0; i < count; i++) sending.push((await links.send(1, `${i}`, kept)).sent);
  await Promise.all(sending);
  return (performance.now() - began) / 1000;
}

async function receive(engine: Engine, links: RankLinks, { count }: LinkOrder): Promise<number> {
  const take = async (key: string) => {
    const tensor: DeviceTensor = await toDevice({ engine, linkDtype: null }, await links.receive(0, key));
    tensor.free();
  };
  await take("warm");
  const began = performance.now();
  await links.sendWhole(0, "go", { shape: [0], dtype: "int32", byteLength: 0, copyTo: async () => {} });
  for (let i = 0; i < count; i++) await take(`${i}`);
  return (performance.now() - began) / 1000;
}

/** An engine that only holds tensors. */
const ARCH = engineArch(
  modelSpecFromConfig({
    ...{ model_type: "llama", hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1 },
    ...{ num_attention_heads: 1, vocab_size: 8 },
  }),
  "bfloat16",
);

if (process.send !== undefined && process.argv[1] === import.meta.filename) await serve();
