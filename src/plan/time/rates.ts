import type { FloatDtype } from "../../common/dtype.ts";
import type { Device } from "../devices.ts";
import { gpuFacts } from "../paper/catalogue.ts";
import { type LinkRate, linkKey, type RateOverrides } from "../request.ts";
import { GPU } from "./gpu-coefficients.ts";

/** FLOP/s of one worker on a few server cores, by dtype. */
const CPU_RATES: Readonly<Record<FloatDtype, number>> = { float32: 200e9, bfloat16: 400e9, float16: 200e9 };

/** GPUs that each have a host processor, and its memory, of their own. */
const OWN_HOST = /\b(GH200|GB200)/i;

/** Bytes/s of the host's memory for all GPUs together. Measured: 138 GB/s from four H200s at once, 146 from and to two. */
const HOST_MEMORY = 140e9;

/** Bytes/s between a GPU and its host's memory while `sharers` GPUs, this one included, use that memory. */
export function hostLinkRate(device: Device, sharers: number): number {
  const { hostLink } = gpuFacts(device);
  return OWN_HOST.test(device.name ?? "") ? hostLink : Math.min(hostLink, HOST_MEMORY / sharers);
}

/** Bytes/s of a GPU's own memory. */
export function memoryRate(device: Device): number {
  return gpuFacts(device).bandwidth;
}

/** Tokens at which a product reaches half its rate. */
const HALF_RATE_TOKENS = { cpu: 16, cuda: GPU.halfRateTokens } as const;

/** FLOP/s of products with `tokens` rows. */
export function deviceRate(device: Device, dtype: FloatDtype, tokens: number): number {
  return (assumedRate(device, dtype) * tokens) / (tokens + HALF_RATE_TOKENS[device.kind]);
}

function assumedRate(device: Device, dtype: FloatDtype): number {
  if (device.kind === "cpu") return CPU_RATES[dtype];
  const { products, productsFloat32 } = gpuFacts(device);
  return dtype === "float32" ? productsFloat32 : products;
}

const SAME_NODE = {
  cpu: { bytesPerSecond: 1e9, latency: 200e-6, compute: 0 },
  cuda: { bytesPerSecond: 50e9, latency: 20e-6, compute: 0 },
} as const satisfies Record<Device["kind"], LinkRate>;
const OTHER_NODE: LinkRate = { bytesPerSecond: 1.1e9, latency: 300e-6, compute: 0 };

/** Rate and latency between two devices; null if they are the same device. */
export function linkRate(from: Device, to: Device, { links }: RateOverrides): LinkRate | null {
  if (from.id === to.id) return null;
  const measured = links.get(linkKey(from.id, to.id)) ?? links.get(linkKey(from.node, to.node));
  if (measured !== undefined) return measured;
  if (from.node !== to.node) return OTHER_NODE;
  return SAME_NODE[from.kind === to.kind ? from.kind : "cpu"];
}
