import type { FloatDtype } from "../../common/dtype.ts";
import type { Device } from "../devices.ts";
import { type LinkRate, linkKey, type RateOverrides } from "../request.ts";
import { GPU } from "./gpu-coefficients.ts";

/**
 * What products of a transformer reach on a device, FLOP/s in 16 bit, and with float32 inputs; and its memory's bytes/s. Measured
 * where known (H100, H200: 694 alone and hot, 740 in a step, whose short kernels let the card rest), else about 0.7 of the dense peak that the vendor states, and the vendor's bandwidth.
 */
const GPU_RATES: readonly (readonly [RegExp, number, number, number])[] = [
  [/\bH200|\bGH200/i, 740e12, 280e12, 4.8e12],
  [/\b(H100|H800)/i, 740e12, 280e12, 3.35e12],
  [/\b(B200|B100|GB200)/i, 1500e12, 560e12, 8e12],
  [/\bA100|\bA800/i, 220e12, 100e12, 2e12],
  [/\bL40/i, 130e12, 60e12, 0.86e12],
  [/\bL4\b/i, 60e12, 28e12, 0.3e12],
  [/\bA10\b|\bA10G/i, 60e12, 25e12, 0.6e12],
  [/4090/, 115e12, 55e12, 1e12],
  [/3090/, 50e12, 25e12, 0.94e12],
  [/\bV100/i, 80e12, 13e12, 0.9e12],
  [/\bT4\b/i, 35e12, 6e12, 0.32e12],
];
const UNKNOWN_GPU = [60e12, 25e12, 0.5e12] as const;
/** One worker on a few server cores, by dtype. */
const CPU_RATES: Readonly<Record<FloatDtype, number>> = { float32: 200e9, bfloat16: 400e9, float16: 200e9 };

/** Each has a processor, and its memory, of its own. */
const OWN_HOST = /\b(GH200|GB200)/i;

/** Bytes/s between a GPU and its host's memory, each way: 50 measured on an H100's PCIe 5 x16, the others by their bus. */
const HOST_LINKS: readonly (readonly [RegExp, number])[] = [
  [OWN_HOST, 200e9],
  [/\b(H100|H200|H800|B200|B100)/i, 50e9],
  [/\b(A100|A800|A10|A10G|L40|L4)|3090|4090/i, 22e9],
];
const UNKNOWN_HOST_LINK = 10e9;
/** What the memory behind those links carries of all GPUs together: 138 out of four H200s at once, 146 out of and into two. */
const HOST_MEMORY = 140e9;

/** Bytes/s that a GPU's way to its host's memory carries while as many GPUs as `sharers`, itself counted, use that memory. */
export function hostLinkRate({ name }: Device, sharers: number): number {
  const link = HOST_LINKS.find(([pattern]) => pattern.test(name ?? ""))?.[1] ?? UNKNOWN_HOST_LINK;
  return OWN_HOST.test(name ?? "") ? link : Math.min(link, HOST_MEMORY / sharers);
}

/** Bytes/s of a GPU's own memory. */
export function memoryRate({ name }: Device): number {
  return gpuRates(name ?? "")[2];
}

/** Tokens at which a product reaches half its rate. */
const HALF_RATE_TOKENS = { cpu: 16, cuda: GPU.halfRateTokens } as const;

/** FLOP/s of products over `tokens` rows. */
export function deviceRate(device: Device, dtype: FloatDtype, tokens: number): number {
  return (assumedRate(device, dtype) * tokens) / (tokens + HALF_RATE_TOKENS[device.kind]);
}

function assumedRate(device: Device, dtype: FloatDtype): number {
  if (device.kind === "cpu") return CPU_RATES[dtype];
  const [half, single] = gpuRates(device.name ?? "");
  return dtype === "float32" ? single : half;
}

function gpuRates(name: string): readonly [number, number, number] {
  const known = GPU_RATES.find(([pattern]) => pattern.test(name));
  return known === undefined ? UNKNOWN_GPU : [known[1], known[2], known[3]];
}

const SAME_NODE = {
  cpu: { bytesPerSecond: 1e9, latency: 200e-6, compute: 0 },
  cuda: { bytesPerSecond: 50e9, latency: 20e-6, compute: 0 },
} as const satisfies Record<Device["kind"], LinkRate>;
const OTHER_NODE: LinkRate = { bytesPerSecond: 1.1e9, latency: 300e-6, compute: 0 };

/** What an activation meets between two devices; null: none, they are the same. */
export function linkRate(from: Device, to: Device, { links }: RateOverrides): LinkRate | null {
  if (from.id === to.id) return null;
  const measured = links.get(linkKey(from.id, to.id)) ?? links.get(linkKey(from.node, to.node));
  if (measured !== undefined) return measured;
  if (from.node !== to.node) return OTHER_NODE;
  return SAME_NODE[from.kind === to.kind ? from.kind : "cpu"];
}
