import { z } from "zod";
import { PipeloraError } from "../../common/errors.ts";
import type { Device } from "../devices.ts";
import { parseSize } from "../max-memory.ts";
import { type LinkRate, linkKey, type RateOverrides } from "../request.ts";
import { type CatalogueGpu, catalogueGpu } from "./catalogue.ts";

/** GPUs of one kind on one node, as `plan --devices` names them. */
export interface PaperGroup {
  readonly count: number;
  readonly gpu: CatalogueGpu;
  readonly node: string;
}

const FIRST_NODE = "node-a";
const MOST_DEVICES = 1024;

/**
 * Reads "2x rtx-4090" or "a100-80gb @ node-b": how many GPUs (1 if left out), their name, their node. Errors: PL_CONFIG_INVALID.
 */
export function parseDevices(entries: readonly string[], own: ReadonlyMap<string, CatalogueGpu>): PaperGroup[] {
  const groups = entries.map((entry): PaperGroup => {
    const match = /^\s*(?:(\d{1,4})\s*x\s*)?([\w.-]+)\s*(?:@\s*([\w.-]+)\s*)?$/i.exec(entry);
    const count = Number(match?.[1] ?? 1);
    if (match === null || count < 1) {
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `--devices: expected a count and a kind of GPU, got "${entry.trim()}".`,
        {
          hint: "Write 2x rtx-4090, or 1x a100-80gb @ node-b, several with commas between.",
        },
      );
    }
    return { count, gpu: catalogueGpu(match[2]!.toLowerCase(), own), node: match[3] ?? FIRST_NODE };
  });
  const all = groups.reduce((sum, { count }) => sum + count, 0);
  if (all > MOST_DEVICES) {
    throw new PipeloraError("PL_CONFIG_INVALID", `--devices names ${all} GPUs, more than ${MOST_DEVICES}.`, {
      hint: "Plan for the part that one run is to have.",
    });
  }
  return groups;
}

/** The devices of these groups. The memory of their hosts is unknown. */
export function devicesOf(groups: readonly PaperGroup[]): Device[] {
  let id = 0;
  return groups.flatMap(({ count, gpu, node }) =>
    Array.from(
      { length: count },
      (): Device => ({
        id: id++,
        kind: "cuda",
        name: gpu.name,
        node,
        capability: gpu.capability,
        // Rented GPUs come with NCCL.
        nccl: { version: "2", reason: null },
        memoryBytes: gpu.memoryBytes,
        facts: gpu,
      }),
    ),
  );
}

/** A TCP stream reaches this share of a network's nominal rate (measured: 1.1 GB/s on 10 GbE). */
const NETWORK_SHARE = 0.88;
const NETWORK_LATENCY = 300e-6;
const BUS_LATENCY = 20e-6;
/** The most that NCCL reaches between two GPUs of a host, in bytes/s (rates.ts). */
const MOST_BUS = 50e9;
const UNITS: Readonly<Record<string, number>> = {
  ...{ gbe: (1e9 / 8) * NETWORK_SHARE, "gb/s": 1e9, "mb/s": 1e6, "tb/s": 1e12 },
  ...{ "gbit/s": (1e9 / 8) * NETWORK_SHARE, gbps: (1e9 / 8) * NETWORK_SHARE },
};

/**
 * Reads rates between nodes, "node-a,node-b=10GbE", and between GPUs of a node, "node-a,node-a=20GB/s". ";" separates several. Units: GbE,
 * Gbit/s and Gbps (0.88 of the rate counts), MB/s, GB/s, TB/s. Errors: PL_CONFIG_INVALID.
 */
export function parseLinkRates(text: string | null, groups: readonly PaperGroup[]): ReadonlyMap<string, LinkRate> {
  const nodes = new Set(groups.map(({ node }) => node));
  const found = new Map<string, LinkRate>();
  for (const node of nodes) {
    const slowest = Math.min(...groups.filter((group) => group.node === node).map(({ gpu }) => gpu.hostLink));
    found.set(linkKey(node, node), { bytesPerSecond: Math.min(MOST_BUS, slowest), latency: BUS_LATENCY, compute: 0 });
  }
  for (const entry of (text ?? "").split(";").filter((part) => part.trim() !== "")) {
    const match = /^\s*([\w.-]+)\s*,\s*([\w.-]+)\s*=\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]+)\s*$/.exec(entry);
    const unit = UNITS[match?.[4]?.toLowerCase() ?? ""];
    const rate = Number(match?.[3]) * (unit ?? Number.NaN);
    if (match === null || !(rate > 0)) {
      throw new PipeloraError("PL_CONFIG_INVALID", `--link: "${entry.trim()}" is no rate between two nodes.`, {
        hint: "Write node-a,node-b=10GbE, or 25Gbit/s, 3GB/s; several with ; between.",
      });
    }
    const [a, b] = [match[1]!, match[2]!];
    const missing = [a, b].find((node) => !nodes.has(node));
    if (missing !== undefined) {
      throw new PipeloraError("PL_CONFIG_INVALID", `--link names ${missing}; --devices has ${[...nodes].join(", ")}.`, {
        hint: "GPUs without @ are on node-a.",
      });
    }
    const latency = a === b ? BUS_LATENCY : NETWORK_LATENCY;
    found.set(linkKey(a, b), { bytesPerSecond: rate, latency, compute: 0 });
  }
  return found;
}

export function paperRates(links: ReadonlyMap<string, LinkRate>): RateOverrides {
  return { measured: new Map(), links, crowded: new Map() };
}

const amount = z.number().positive().max(1e9);
const ownGpu = z.strictObject({
  memory: z.union([z.string(), amount]),
  /** TFLOP/s of products in 16 bits, and of products with float32 inputs. */
  tflops: amount,
  tflops_float32: amount.optional(),
  /** GB/s */
  bandwidth: amount,
  host_link: amount.optional(),
  capability: z
    .string()
    .regex(/^\d{1,2}\.\d$/)
    .optional(),
  /** Price of an hour. */
  price: z.number().nonnegative().max(1e6).optional(),
});

export interface OwnGpus {
  readonly gpus: ReadonlyMap<string, CatalogueGpu>;
  /** Price of an hour, by name. */
  readonly prices: ReadonlyMap<string, number>;
}

/** Reads a user's own kinds of GPUs (--gpus FILE): name -> memory, rates and price. Errors: PL_CONFIG_INVALID. */
export function ownGpus(path: string, value: Readonly<Record<string, unknown>>): OwnGpus {
  const gpus = new Map<string, CatalogueGpu>();
  const prices = new Map<string, number>();
  for (const [name, given] of Object.entries(value)) {
    const parsed = ownGpu.safeParse(given);
    if (!/^[\w.-]+$/.test(name) || !parsed.success) {
      const issue = parsed.error?.issues[0];
      const what =
        issue === undefined ? "a name has letters, digits, -, _ and ." : `"${issue.path.join(".")}": ${issue.message}`;
      throw new PipeloraError("PL_CONFIG_INVALID", `${path}: ${name}: ${what}.`, {
        hint: "An entry is NAME: {memory: 24GiB, tflops: 115, bandwidth: 1000}, with tflops_float32, host_link, capability and price if known.",
      });
    }
    const { memory, tflops, tflops_float32: single, bandwidth, host_link: hostLink, capability, price } = parsed.data;
    const [major, minor] = (capability ?? "8.0").split(".").map(Number) as [number, number];
    const id = name.toLowerCase();
    gpus.set(id, {
      id,
      name,
      memoryBytes: parseSize(memory, `${path}: ${name}: memory`),
      capability: [major, minor],
      products: tflops * 1e12,
      productsFloat32: (single ?? tflops / 2) * 1e12,
      bandwidth: bandwidth * 1e9,
      hostLink: (hostLink ?? 10) * 1e9,
      source: path,
    });
    if (price !== undefined) prices.set(id, price);
  }
  return { gpus, prices };
}
