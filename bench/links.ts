import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import type { RankLinks } from "../src/worker/links.ts";
import { fromHost } from "../src/worker/tensors.ts";
import { type Order, openLinks, peer as peerAt, type Report, SESSION } from "./link-peer.ts";
import { median } from "./training-run.ts";

const LARGE = 4 << 20;
const SMALL = 4 << 10;
const COUNT = 250;
const ROUNDS = 500;
const REPEATS = 3;
const SLOW_COUNT = 100;
const SLOW_MS = 20;

/** Each link between two processes, with raw TCP and memcpy in the same run. Prints one JSON line a row. */
export async function benchLinks(print: (row: object) => void): Promise<void> {
  const peer = fork(join(PACKAGE_ROOT, "bench", "link-peer.ts"), { execArgv: [...process.execArgv] });
  try {
    const { port } = await reported(peer);
    await measure(peer, port!, print);
  } finally {
    peer.disconnect();
  }
}

async function measure(peer: ChildProcess, peerPort: number, print: (row: object) => void): Promise<void> {
  const tell = (order: Order) => peer.send(order);
  const { links, server } = await openLinks();
  const memcpy = memcpyRate();
  print({ row: "memcpy of 4 MiB, one thread", GB_per_s: round(memcpy) });
  for (const link of ["grpc", "shm"]) {
    links.join({ session: SESSION, rank: 1 }, [peerAt(0, `127.0.0.1:${peerPort}`, link)], 60_000);
    tell({ do: "join", link, address: `127.0.0.1:${server.port}` });
    await reported(peer);
    const streaming = async (name: string) => {
      tell({ do: "send", name, count: COUNT, bytes: LARGE });
      (await links.receive(0, `${name}/0`)).release();
      const started = performance.now();
      for (let i = 1; i < COUNT; i++) (await links.receive(0, `${name}/${i}`)).release();
      const rate = ((COUNT - 1) * LARGE) / 1e6 / (performance.now() - started);
      await reported(peer);
      return rate;
    };
    await streaming("warm");
    const rates: number[] = [];
    const tcp: number[] = [];
    // Alternating: the machine may have other work.
    for (let i = 0; i < REPEATS; i++) {
      tcp.push(await tcpRate(peer, tell));
      rates.push(await streaming(`large ${i}`));
    }
    print({ row: `${link}, 4 MiB`, GB_per_s: round(median(rates)), runs: rates.map(round) });
    print({ row: "raw TCP in Node, 4 MiB", GB_per_s: round(median(tcp)), runs: tcp.map(round) });
    print({ row: `${link} against raw TCP`, ratio: round(median(rates) / median(tcp)) });
    print({ row: `${link} against memcpy`, ratio: round(median(rates) / memcpy) });
    print({ row: `${link}, 4 KiB one way`, ...(await latency(links, tell)) });
    await reported(peer);
    tell({ do: "send", name: "slow", count: SLOW_COUNT, bytes: LARGE });
    for (let i = 0; i < SLOW_COUNT; i++) {
      await new Promise((resolve) => setTimeout(resolve, SLOW_MS));
      (await links.receive(0, `slow/${i}`)).release();
    }
    const { grownBytes } = await reported(peer);
    const sentMiB = (SLOW_COUNT * LARGE) / 2 ** 20;
    print({
      row: `${link}, receiver takes 4 MiB a ${SLOW_MS} ms`,
      sender_grew_MiB: round(grownBytes! / 2 ** 20),
      sentMiB,
    });
  }
  links.close();
  server.close();
}

async function reported(peer: ChildProcess): Promise<Report> {
  const [report] = (await once(peer, "message")) as [Report];
  return report;
}

async function latency(links: RankLinks, tell: (order: Order) => void): Promise<object> {
  tell({ do: "echo", name: "ping", count: ROUNDS, bytes: SMALL });
  const tensor = fromHost(new Uint8Array(SMALL), [SMALL / 4], "float32");
  const times: number[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    const started = performance.now();
    const { sent } = await links.send(0, `ping/${i}`, tensor);
    await sent;
    (await links.receive(0, `ping/${i}`)).release();
    times.push((performance.now() - started) / 2);
  }
  const sorted = times.slice(50).sort((a, b) => a - b);
  const at = (share: number) => round(1000 * sorted[Math.floor(share * (sorted.length - 1))]!);
  return { median_us: at(0.5), p99_us: at(0.99) };
}

async function tcpRate(peer: ChildProcess, tell: (order: Order) => void): Promise<number> {
  tell({ do: "tcp", count: COUNT, bytes: LARGE });
  const { port } = await reported(peer);
  const socket = connect(port!, "127.0.0.1");
  let bytes = 0;
  let started = 0;
  for await (const data of socket) {
    if (bytes === 0) started = performance.now();
    bytes += (data as Buffer).length;
  }
  return bytes / 1e6 / (performance.now() - started);
}

/** GB copied in a second, from and to memory that no cache holds. */
function memcpyRate(): number {
  const from = Buffer.alloc(16 * LARGE, 1);
  const to = Buffer.alloc(16 * LARGE, 2);
  const rates = Array.from({ length: 9 }, () => {
    const started = performance.now();
    for (let at = 0; at < from.length; at += LARGE) from.copy(to, at, at, at + LARGE);
    return from.length / 1e6 / (performance.now() - started);
  });
  return median(rates);
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
