import { PipeloraError } from "../../common/errors.ts";
import { nearest } from "../../common/nearest.ts";
import type { Device } from "../devices.ts";

const GB = 1e9;
const GIB = 2 ** 30;
const TFLOP = 1e12;

/** Rates of a kind of GPU, as a plan needs them: those that a transformer's products reach, not the peaks. */
export interface GpuFacts {
  /** FLOP/s of products in 16 bits, and of products with float32 inputs. */
  readonly products: number;
  readonly productsFloat32: number;
  /** Bytes/s of its own memory. */
  readonly bandwidth: number;
  /** Bytes/s to its host's memory, in each direction. */
  readonly hostLink: number;
}

/** A kind of GPU that can be bought or rented. */
export interface CatalogueGpu extends GpuFacts {
  /** As `plan --devices` names it. */
  readonly id: string;
  /** As the driver names it. */
  readonly name: string;
  readonly memoryBytes: number;
  readonly capability: readonly [major: number, minor: number];
  /** Where the numbers for memory and peaks come from. */
  readonly source: string;
}

/** The driver keeps this share of the memory that nvidia-smi shows, before a process has a context. */
const DRIVER_SHARE = 0.02;

const NVIDIA = "https://www.nvidia.com/en-us";
const card = (
  id: string,
  name: string,
  [memoryGib, major, minor]: readonly [number, number, number],
  facts: readonly [products: number, float32: number, bandwidth: number, hostLink: number],
  source: string,
): CatalogueGpu => ({
  id,
  name,
  memoryBytes: Math.floor(memoryGib * GIB * (1 - DRIVER_SHARE)),
  capability: [major, minor],
  products: facts[0] * TFLOP,
  productsFloat32: facts[1] * TFLOP,
  bandwidth: facts[2] * GB,
  hostLink: facts[3] * GB,
  source,
});

/**
 * Rates of products are measured for H100 and H200: 694 TFLOP/s in a loop on a hot card, 740 in a step, whose short kernels let the card cool.
 * For other cards they are about 0.7 of the vendor's dense peak in 16 bits. Bandwidth is the vendor's. Memory is the total that nvidia-smi
 * shows. The host link of an H100 (PCIe 5 x16) is measured, 50 GB/s; the others follow from their bus.
 */
export const CATALOGUE: readonly CatalogueGpu[] = [
  card("b200", "NVIDIA B200", [179, 10, 0], [1500, 560, 8000, 50], `${NVIDIA}/data-center/dgx-b200/`),
  card("gb200", "NVIDIA GB200", [179, 10, 0], [1500, 560, 8000, 200], `${NVIDIA}/data-center/gb200-nvl72/`),
  card(
    "gh200",
    "NVIDIA GH200 480GB",
    [95.6, 9, 0],
    [740, 280, 4000, 200],
    `${NVIDIA}/data-center/grace-hopper-superchip/`,
  ),
  card("h200", "NVIDIA H200", [140.4, 9, 0], [740, 280, 4800, 50], `${NVIDIA}/data-center/h200/`),
  card("h100", "NVIDIA H100 80GB HBM3", [79.6, 9, 0], [740, 280, 3350, 50], `${NVIDIA}/data-center/h100/`),
  card("h100-pcie", "NVIDIA H100 PCIe", [79.6, 9, 0], [530, 200, 2000, 50], `${NVIDIA}/data-center/h100/`),
  card("h800", "NVIDIA H800", [80, 9, 0], [740, 280, 3350, 50], `${NVIDIA}/data-center/h100/`),
  card("h20", "NVIDIA H20", [95.6, 9, 0], [104, 31, 4000, 50], "https://www.techpowerup.com/gpu-specs/h20.c4286"),
  card("a100-80gb", "NVIDIA A100-SXM4-80GB", [80, 8, 0], [220, 100, 2000, 22], `${NVIDIA}/data-center/a100/`),
  card("a100-40gb", "NVIDIA A100-SXM4-40GB", [40, 8, 0], [220, 100, 1555, 22], `${NVIDIA}/data-center/a100/`),
  card("a800", "NVIDIA A800-SXM4-80GB", [80, 8, 0], [220, 100, 2000, 22], `${NVIDIA}/data-center/a100/`),
  card("l40s", "NVIDIA L40S", [45, 8, 9], [130, 60, 860, 22], `${NVIDIA}/data-center/l40s/`),
  card("l40", "NVIDIA L40", [45, 8, 9], [130, 60, 860, 22], `${NVIDIA}/data-center/l40/`),
  card("l4", "NVIDIA L4", [22.5, 8, 9], [60, 28, 300, 22], `${NVIDIA}/data-center/l4/`),
  card("a40", "NVIDIA A40", [45, 8, 6], [105, 50, 696, 22], `${NVIDIA}/data-center/a40/`),
  card("a10", "NVIDIA A10", [22.5, 8, 6], [60, 25, 600, 22], `${NVIDIA}/data-center/products/a10-gpu/`),
  card("a10g", "NVIDIA A10G", [22.5, 8, 6], [60, 25, 600, 22], "https://aws.amazon.com/ec2/instance-types/g5/"),
  card("rtx-a6000", "NVIDIA RTX A6000", [48, 8, 6], [108, 54, 768, 22], `${NVIDIA}/design-visualization/rtx-a6000/`),
  card(
    "rtx-6000-ada",
    "NVIDIA RTX 6000 Ada Generation",
    [48, 8, 9],
    [125, 63, 960, 22],
    `${NVIDIA}/design-visualization/rtx-6000/`,
  ),
  card(
    "rtx-5090",
    "NVIDIA GeForce RTX 5090",
    [31.8, 12, 0],
    [146, 73, 1792, 50],
    `${NVIDIA}/geforce/graphics-cards/50-series/rtx-5090/`,
  ),
  card(
    "rtx-4090",
    "NVIDIA GeForce RTX 4090",
    [24, 8, 9],
    [115, 55, 1000, 22],
    `${NVIDIA}/geforce/graphics-cards/40-series/rtx-4090/`,
  ),
  card(
    "rtx-4080",
    "NVIDIA GeForce RTX 4080",
    [16, 8, 9],
    [68, 34, 717, 22],
    `${NVIDIA}/geforce/graphics-cards/40-series/rtx-4080/`,
  ),
  card(
    "rtx-3090",
    "NVIDIA GeForce RTX 3090",
    [24, 8, 6],
    [50, 25, 940, 22],
    `${NVIDIA}/geforce/graphics-cards/30-series/rtx-3090-3090ti/`,
  ),
  card("v100-32gb", "Tesla V100-SXM2-32GB", [32, 7, 0], [80, 13, 900, 10], `${NVIDIA}/data-center/v100/`),
  card("v100-16gb", "Tesla V100-SXM2-16GB", [16, 7, 0], [80, 13, 900, 10], `${NVIDIA}/data-center/v100/`),
  card("t4", "Tesla T4", [15, 7, 5], [35, 6, 320, 10], `${NVIDIA}/data-center/tesla-t4/`),
];

/** Names of the driver that differ from an entry's but mean it. The first pattern that matches counts. */
const ALIASES: readonly (readonly [RegExp, string])[] = [
  [/\bGB200/i, "gb200"],
  [/\bGH200/i, "gh200"],
  [/\bH200/i, "h200"],
  [/\bH100 PCIe/i, "h100-pcie"],
  [/\b(H100|H800)/i, "h100"],
  [/\bH20\b/i, "h20"],
  [/\b(B200|B100)/i, "b200"],
  [/\b(A100|A800).*40\s?GB/i, "a100-40gb"],
  [/\bA100|\bA800/i, "a100-80gb"],
  [/\bL40/i, "l40s"],
  [/\bL4\b/i, "l4"],
  [/\bA40\b/i, "a40"],
  [/\bA10\b|\bA10G/i, "a10"],
  [/RTX A6000/i, "rtx-a6000"],
  [/RTX 6000 Ada/i, "rtx-6000-ada"],
  [/5090/, "rtx-5090"],
  [/4090/, "rtx-4090"],
  [/4080/, "rtx-4080"],
  [/3090/, "rtx-3090"],
  [/\bV100/i, "v100-32gb"],
  [/\bT4\b/i, "t4"],
];
const UNKNOWN: GpuFacts = { products: 60 * TFLOP, productsFloat32: 25 * TFLOP, bandwidth: 500 * GB, hostLink: 10 * GB };

/** A device's own facts, else those of its name. A card with an unknown name is taken for an average one. */
export function gpuFacts({ name, facts }: Pick<Device, "name" | "facts">): GpuFacts {
  if (facts !== undefined) return facts;
  const id = ALIASES.find(([pattern]) => pattern.test(name ?? ""))?.[1];
  return CATALOGUE.find((known) => known.id === id) ?? UNKNOWN;
}

/** The entry for a name, from `own` or the catalogue. Errors: PL_CONFIG_INVALID if neither has it. */
export function catalogueGpu(id: string, own: ReadonlyMap<string, CatalogueGpu>): CatalogueGpu {
  const found = own.get(id) ?? CATALOGUE.find((known) => known.id === id);
  if (found !== undefined) return found;
  const all = [...own.keys(), ...CATALOGUE.map((known) => known.id)];
  const near = nearest(id, all, 3);
  throw new PipeloraError("PL_CONFIG_INVALID", `--devices: "${id}" is no GPU that is known here.`, {
    hint: `${near.length > 0 ? `Did you mean ${near.join(", ")}? ` : ""}Known: ${all.join(", ")}; others go into a file for --gpus.`,
  });
}

/** The text of docs/reference/gpus.md. */
export function cataloguePage(): string {
  const rows = CATALOGUE.map(
    ({ id, memoryBytes, capability, products, productsFloat32, bandwidth, source }) =>
      `| \`${id}\` | ${(memoryBytes / GIB).toFixed(1)} | ${capability.join(".")} | ${products / TFLOP} | ${productsFloat32 / TFLOP} | ${bandwidth / GB} | ${source} |`,
  );
  return [
    "# GPUs that a plan knows",
    "",
    "Generated from the catalogue by `npm run docs`. `coordinator plan --devices '2x rtx-4090, 1x a100-80gb @ node-b' --link node-a,node-b=10GbE`",
    "plans for GPUs that need not be there: time, memory and idle share of every strategy, and with `--html FILE` a page with pictures. GPUs without",
    "`@` are on node-a. Rates of links are in GbE, Gbit/s or Gbps (0.88 of which a stream carries), MB/s, GB/s; several with `;` between; a node's own",
    "GPUs are linked by the slower one's bus unless `node-a,node-a=50GB/s` says otherwise.",
    "",
    "`--prices '{\"rtx-4090\": 0.35}'` (an hour) looks for the cheapest set of them for the run's steps (of `--dataset`, or `--max-steps`), with `--deadline 6h`",
    "among those that are done in time; where none is, the exit code is 1. `--gpus FILE` adds kinds of your own:",
    "",
    "```yaml",
    "my-card: {memory: 24GiB, tflops: 115, tflops_float32: 55, bandwidth: 1000, host_link: 22, capability: '8.9', price: 0.4}",
    "```",
    "",
    "Memory is in GiB, what nvidia-smi shows less 2 % for the driver. TFLOP/s are what products of a transformer reach: measured on H100 and H200, for the",
    "others about 0.7 of the dense peak that the source states. Bandwidth is the source's, in GB/s.",
    "",
    "| name | memory | capability | TFLOP/s, 16 bits | float32 inputs | bandwidth | source of memory, peak and bandwidth |",
    "|---|---|---|---|---|---|---|",
    ...rows,
    "",
  ].join("\n");
}
