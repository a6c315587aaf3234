import { dtypeBytes } from "../../common/dtype.ts";
import type { Config } from "../../config/options.ts";
import { arenaBytes } from "../../plan/arena.ts";
import type { Device } from "../../plan/devices.ts";
import { PLAIN_KEEPING } from "../../plan/keeping.ts";
import { linkBytesPerToken } from "../../plan/link-bytes.ts";
import { predictMemory } from "../../plan/memory.ts";
import type { PlannedSegment } from "../../plan/plan.ts";
import {
  type LinkRate,
  linkKey,
  type MeasuredDevice,
  NO_OVERRIDES,
  type PlanRequest,
  type RateOverrides,
  type TimePoint,
} from "../../plan/request.ts";
import type { LayerTime__Output } from "../../rpc/generated/pipelora/v1/LayerTime.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { joinedDevices } from "../cluster/joined-devices.ts";
import { probeNeighbours } from "../cluster/link-probes.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { cutsOf, deviceMap, type PlanRequestSettings, planRequest } from "../planning/planning.ts";
import type { Workload } from "../planning/workload.ts";
import { type AdapterAssignment, type PrepareSettings, prepareRequests } from "./prepare-requests.ts";

const PROBE_MESSAGES = 16;
const MOST_TIMED_TOKENS = 8192;
/** Devices whose times differ by less count as equal: a plan must not follow a measurement's noise. */
const ALIKE = 0.06;

export type CalibrationSettings = PlanRequestSettings &
  PrepareSettings &
  Omit<AdapterAssignment["settings"], "init_lora_weights"> &
  Pick<Config, "calibrate" | "device_map" | "deterministic_batches">;

/** Whether a plan needs the devices' speeds: under `fastest`, and under `auto` where devices or nodes differ. */
export function worthMeasuring(
  { device_map, calibrate: when }: Pick<Config, "device_map" | "calibrate">,
  devices: readonly Device[],
  { trains }: Workload,
): boolean {
  if (!trains || when === "never") return false;
  if (when === "always") return true;
  if (devices.length < 2) return false;
  if (device_map === "fastest") return true;
  const kinds = new Set(devices.map(({ kind, name, node }) => `${kind} ${name} ${node}`));
  return device_map === "auto" && kinds.size > 1;
}

/**
 * Has every worker time a block and the head of this checkpoint, all at once as in a run, at the sizes that a plan may choose; and has
 * neighbours time the link between them. Errors: as prepare's.
 */
export async function calibrate(
  members: readonly WorkerConnection[],
  setup: ModelSetup,
  workload: Workload,
  settings: CalibrationSettings,
): Promise<RateOverrides> {
  const devices = joinedDevices(members);
  const strategy = await deviceMap(settings.device_map);
  const { request: base } = planRequest(settings, setup, devices, { strategy, rates: NO_OVERRIDES });
  const all = await Promise.all(cutsOf(settings, strategy, devices, workload).map((cut) => cut.work(true)));
  // Sizes above this are extrapolated in a straight line: a whole step in one piece may not fit the memory of a probe.
  const least = Math.min(...all.map(({ tokens }) => tokens));
  const works = all.filter(({ tokens }) => tokens <= Math.max(least, MOST_TIMED_TOKENS));
  const { layers, shape } = setup.spec;
  const blockLayer = calibratedBlock(setup);
  const tail = layers.findIndex(({ kind }) => kind === "norm" || kind === "head");
  const largest = works.reduce((most, work) => (work.tokens > most.tokens ? work : most));
  const request: PlanRequest = { ...base, work: { ...largest, microBatches: 1, checkpointing: "none" } };
  const piece = {
    devices: [0],
    ranks: [0],
    offloadedBlocks: 0,
    checkpointedBlocks: 0,
    // Expanded once: a block alone would find its weights as the pass before left them, a block of many would not.
    cachedBlocks: 1,
    needsBackward: true,
    needsInputGrad: true,
    forwardSeconds: 0,
    backwardSeconds: 0,
  };
  const segments: PlannedSegment[] = [
    { ...piece, index: 0, firstLayer: blockLayer, lastLayer: blockLayer },
    { ...piece, index: 1, firstLayer: tail, lastLayer: layers.length - 1 },
  ];
  const prepares = await prepareRequests(
    members,
    setup,
    {
      segments,
      schedule: "1f1b",
      replicas: members.map((_, rank) => [rank]),
      linked: false,
      // Times do not depend on first values, so the fastest initialisation is used.
      adapters: [{ lora: setup.lora, settings: { ...settings, init_lora_weights: true }, initialise: true }],
      computeDtype: base.computeDtype,
      linkDtype: null,
      hostBytes: devices.map(() => 0),
      arenaBytes: devices.map((device) => {
        const own = segments.map((segment) => ({ ...segment, devices: [device.id] }));
        const memory = predictMemory(request, own, [PLAIN_KEEPING, PLAIN_KEEPING]).get(device.id)!;
        // The values that every pass begins with a copy of.
        const activations =
          memory.activations + Math.ceil(largest.tokens) * shape.hidden * dtypeBytes(base.computeDtype);
        return arenaBytes({ activations, workspace: memory.workspace }, device.kind);
      }),
    },
    settings,
  );
  const sizes = {
    tokens: spread(works.map(({ meanTokens }) => meanTokens)),
    labelTokens: spread(works.map(({ meanLabelTokens }) => meanLabelTokens)),
    rowTokens: largest.rowTokens,
    hidden: shape.hidden,
  };
  const replies = await Promise.all(
    members.map((member, rank) => member.request({ calibrate: { prepare: prepares[rank]!, ...sizes } })),
  );
  const cores = replies.map(({ calibrated }) => calibrated!.cores);
  const crowded = crowdedNodes(members, cores);
  const measured = replies.map(({ calibrated }, rank): MeasuredDevice => {
    // All workers were timed at once. Where they share cores, wall time includes waiting for a core; processor time is what a worker would
    // take alone.
    const { node, threads } = members[rank]!.hello;
    const { block, head, update, updateProcessor } = calibrated!;
    if (!crowded.has(node)) return { blockLayer, block: block.map(onTheClock), head: head.map(onTheClock), update };
    const alone = ({ tokens, forwardProcessor, backwardProcessor }: LayerTime__Output): TimePoint => ({
      tokens,
      forward: forwardProcessor / threads,
      backward: backwardProcessor / threads,
    });
    return { blockLayer, block: block.map(alone), head: head.map(alone), update: updateProcessor / threads };
  });
  // Messages of a probe are whole float32.
  const bytes = Math.ceil((Math.round(largest.meanTokens) * linkBytesPerToken(base)) / 4) * 4;
  return {
    measured: alike(devices, measured),
    crowded,
    links: await neighbourRates(members, devices, bytes, settings),
  };
}

function onTheClock({ tokens, forward, backward }: LayerTime__Output): TimePoint {
  return { tokens, forward, backward };
}

/** Nodes whose CPU workers have more threads than cores, with the number of workers that the cores can serve at once. */
function crowdedNodes(
  members: readonly WorkerConnection[],
  cores: readonly (readonly number[])[],
): Map<string, number> {
  const crowded = new Map<string, number>();
  for (const { hello } of members.filter(({ hello: { device } }) => device === "cpu")) {
    const there = cores.filter((_, rank) => members[rank]!.hello.node === hello.node);
    const count = new Set(there.flat()).size;
    if (threadsOf(members, hello.node) > count) crowded.set(hello.node, count / hello.threads);
  }
  return crowded;
}

function threadsOf(members: readonly WorkerConnection[], node: string): number {
  return members
    .filter(({ hello }) => hello.node === node && hello.device === "cpu")
    .reduce((sum, { hello }) => sum + hello.threads, 0);
}

/** A block with LoRA pairs, if any has them. */
function calibratedBlock({ spec, lora }: ModelSetup): number {
  const learning = lora?.targets.find(({ layer }) => spec.layers[layer]!.kind === "block");
  return learning?.layer ?? spec.layers.findIndex(({ kind }) => kind === "block");
}

/** The smallest and largest size, and sizes between them in equal ratios. */
function spread(values: readonly number[]): number[] {
  const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => Math.max(1, Math.round(value)));
  return [...new Set([low!, Math.round(Math.sqrt(low! * high!)), high!])];
}

/** Gives devices of nearly equal speed the same times: those of the median device. */
function alike(devices: readonly Device[], measured: readonly MeasuredDevice[]): Map<number, MeasuredDevice> {
  const total = ({ block, head }: MeasuredDevice) =>
    [...block, ...head].reduce((sum, { forward, backward }) => sum + forward + backward, 0);
  const left = measured
    .map((times, index) => ({ id: devices[index]!.id, times, total: total(times) }))
    .sort((a, b) => a.total - b.total);
  const result = new Map<number, MeasuredDevice>();
  while (left.length > 0) {
    const limit = left[0]!.total * (1 + ALIKE);
    const end = left.findIndex((device) => device.total > limit);
    const group = left.splice(0, end < 0 ? left.length : end);
    for (const { id } of group) result.set(id, group[group.length >> 1]!.times);
  }
  return result;
}

/** Links between ranks next to each other. */
async function neighbourRates(
  members: readonly WorkerConnection[],
  devices: readonly Device[],
  bytes: number,
  settings: CalibrationSettings,
): Promise<Map<string, LinkRate>> {
  const links = new Map<string, LinkRate>();
  const size = { bytes, count: PROBE_MESSAGES, linkTimeoutS: settings.link_timeout };
  await probeNeighbours(members, settings, size, (from, found) => {
    if (found instanceof Error) throw found;
    const { sender, receiver } = found;
    const [a, b] = [devices[from]!, devices[from + 1]!];
    const rate: LinkRate = {
      bytesPerSecond: bytes / Math.max(1e-9, sender.secondsPerMessage - sender.latency),
      latency: sender.latency,
      compute: a.kind === "cpu" && b.kind === "cpu" ? Math.max(sender.compute, receiver.compute) / bytes : 0,
    };
    links.set(linkKey(a.id, b.id), rate);
    links.set(linkKey(a.node, b.node), rate);
  });
  return links;
}
