import { formatBytes } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import { freeDisk, freeMemory } from "../../common/machine.ts";
import { PACKAGE_VERSION } from "../../common/root.ts";
import type { Checkpoint } from "../../formats/checkpoint.ts";
import { checkpointDigest } from "../../formats/fingerprint.ts";
import type { LinkSettings } from "../../plan/nccl.ts";
import { alignTable } from "../../plan/shown/table.ts";
import type { HubModel } from "../../rpc/generated/pipelora/v1/HubModel.ts";
import { fromFailure } from "../../rpc/wire-error.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { probeNeighbours } from "./link-probes.ts";

/** Clocks further apart than this fail a run: certificates, logs and file times mean nothing then. */
const MOST_SKEW_MS = 60_000;
const WORTH_A_WARNING_MS = 2_000;
/** Some MiB: enough to see a slow link, little enough to be through one in seconds. */
const PROBE = { bytes: 512 << 10, count: 8, linkTimeoutS: 30 };
/** A step's tensors are some MiB: slower links decide a step's time. */
const SLOW_BYTES_PER_SECOND = 50e6;
const SLOW_LATENCY_MS = 5;

export interface NodeFacts {
  readonly node: string;
  /** GPUs with their PCI addresses. */
  readonly devices: string;
  readonly version: string;
  /** This node's clock minus the coordinator's; known to half a round trip. */
  readonly skewMs: number;
  readonly freeMemoryBytes: number;
  /** Of the folder it saves to; null: it saves nothing. */
  readonly freeDiskBytes: number | null;
  /** Digest of its checkpoint; null: it can't be opened. */
  readonly checkpoint: string | null;
  readonly checkpointProblem: string | null;
  /** Version of NCCL, "none" on a node with GPUs that lacks it; null: no GPUs. */
  readonly nccl: string | null;
}

export interface LinkFacts {
  readonly from: string;
  readonly to: string;
  /** "nccl", "shm" or "grpc" */
  readonly kind: string;
  readonly betweenNodes: boolean;
  /** One way, of a message without content. */
  readonly latencyMs: number;
  readonly bytesPerSecond: number;
  readonly problem: string | null;
}

export interface Preflight {
  readonly coordinator: NodeFacts;
  readonly nodes: readonly NodeFacts[];
  /** Between workers that are neighbours in rank order. */
  readonly links: readonly LinkFacts[];
}

export interface Needs {
  /** Bytes of one checkpoint. */
  readonly checkpointBytes: number;
  /** A node that can't save ends the run (--save-failure fail): it may as well not begin. */
  readonly diskMustDo: boolean;
}

/** What the nodes are to have, and where they are to save. */
export interface InspectedRun {
  readonly modelDir: string;
  /** Where a node that lacks the folder fetches the model; null: it must have it. */
  readonly hubModel: HubModel | null;
  readonly checkpoint: Checkpoint;
  readonly outputDir: string;
  readonly savesOnEachNode: boolean;
}

/** Asks the first worker of each node, and each worker for its link to the next. */
export async function inspectCluster(
  members: readonly WorkerConnection[],
  { modelDir, hubModel, checkpoint, outputDir, savesOnEachNode }: InspectedRun,
  settings: LinkSettings,
): Promise<Preflight> {
  const firsts = members.filter(
    (member, rank) => members.findIndex(({ hello }) => hello.node === member.hello.node) === rank,
  );
  const digest = await checkpointDigest(checkpoint);
  // A node that has yet to fetch what the coordinator has: the commit says that it will be the same.
  const toFetch = hubModel === null ? null : `commit ${hubModel.commit}`;
  const nodes = await Promise.all(
    firsts.map(async (worker): Promise<NodeFacts> => {
      const { node, version } = worker.hello;
      const asked = Date.now();
      const request = { modelDir, hubModel, outputDir: savesOnEachNode ? outputDir : "" };
      const report = (await worker.request({ preflight: request })).preflightReport!;
      const devices = members
        .filter(({ hello }) => hello.node === node)
        .map(({ hello: { device, pciBusId } }) => (pciBusId === "" ? device : `${device} (${pciBusId})`));
      return {
        node,
        devices: devices.join(","),
        version,
        skewMs: skew(report.clockMs, asked, Date.now()),
        freeMemoryBytes: report.freeMemoryBytes,
        freeDiskBytes: savesOnEachNode ? report.freeDiskBytes : null,
        checkpoint: report.checkpoint === "" ? null : report.checkpoint === toFetch ? digest : report.checkpoint,
        checkpointProblem:
          report.checkpointFailure === null ? null : fromFailure(report.checkpointFailure, node).message,
        nccl: report.nccl === "" ? null : report.nccl,
      };
    }),
  );
  const name = (rank: number) => `${rank} ${members[rank]!.hello.node}/${members[rank]!.hello.device}`;
  const links = await probeNeighbours(members, settings, PROBE, (rank, found, kind): LinkFacts => {
    const [from, to] = [members[rank]!.hello, members[rank + 1]!.hello];
    const ends = { from: name(rank), to: name(rank + 1), kind, betweenNodes: from.node !== to.node };
    if (found instanceof Error) {
      return { ...ends, latencyMs: 0, bytesPerSecond: 0, problem: `${to.linkAddress}: ${found.message}` };
    }
    const { secondsPerMessage, latency } = found.sender;
    const bytesPerSecond = PROBE.bytes / Math.max(1e-6, secondsPerMessage - latency / PROBE.count);
    return { ...ends, latencyMs: latency * 1000, bytesPerSecond, problem: null };
  });
  const coordinator: NodeFacts = {
    node: "coordinator",
    devices: "",
    version: PACKAGE_VERSION,
    skewMs: 0,
    freeMemoryBytes: freeMemory(),
    freeDiskBytes: await freeDisk(outputDir),
    checkpoint: digest,
    checkpointProblem: null,
    nccl: null,
  };
  return { coordinator, nodes, links };
}

/** The clock was read somewhere between question and answer: what lies within is no skew. */
function skew(clockMs: number, asked: number, answered: number): number {
  if (clockMs < asked) return clockMs - asked;
  return clockMs > answered ? clockMs - answered : 0;
}

export interface Verdict {
  /** Each says what is wrong and what to do; a run does not start with any. */
  readonly failures: readonly string[];
  readonly warnings: readonly string[];
}

export function judge({ coordinator, nodes, links }: Preflight, needs: Needs): Verdict {
  const failures: string[] = [];
  const warnings: string[] = [];
  for (const { node, version, skewMs, freeDiskBytes, checkpoint, checkpointProblem } of [coordinator, ...nodes]) {
    const where = node === "coordinator" ? "the coordinator" : `node "${node}"`;
    if (version !== coordinator.version) {
      failures.push(`${where} runs version ${version}, the coordinator ${coordinator.version}: install one version`);
    }
    if (Math.abs(skewMs) > WORTH_A_WARNING_MS) {
      const text = `the clock of ${where} is ${duration(Math.abs(skewMs))} ${skewMs > 0 ? "ahead of" : "behind"} the coordinator's`;
      (Math.abs(skewMs) > MOST_SKEW_MS ? failures : warnings).push(`${text}: set it (NTP)`);
    }
    if (checkpointProblem !== null) {
      failures.push(`${where} can't open the model: ${checkpointProblem}: copy it there, or mount one volume on all`);
    } else if (checkpoint !== coordinator.checkpoint) {
      failures.push(
        `${where} holds another checkpoint (${checkpoint}) than the coordinator (${coordinator.checkpoint}): copy the same one to every node`,
      );
    }
    if (freeDiskBytes !== null && freeDiskBytes < needs.checkpointBytes) {
      (needs.diskMustDo || node === coordinator.node ? failures : warnings).push(
        `${where} has ${formatBytes(freeDiskBytes)} left where it saves, a checkpoint takes ${formatBytes(needs.checkpointBytes)}: free space or name another --output-dir`,
      );
    }
  }
  for (const { from, to, betweenNodes, problem, latencyMs, bytesPerSecond } of links) {
    if (problem !== null) {
      failures.push(
        `rank ${from} can't reach rank ${to} at ${problem}: open that port between the nodes, or give the worker an --advertise that the others reach`,
      );
    } else if (betweenNodes && (latencyMs > SLOW_LATENCY_MS || bytesPerSecond < SLOW_BYTES_PER_SECOND)) {
      warnings.push(
        `the link from rank ${from} to rank ${to} is slow: ${latencyMs.toFixed(1)} ms, ${formatBytes(bytesPerSecond)}/s`,
      );
    }
  }
  return { failures, warnings };
}

/** Error: PL_PREFLIGHT_FAILED, saying all that is wrong at once. */
export function assertFit({ failures }: Verdict): void {
  if (failures.length === 0) return;
  throw new PipeloraError("PL_PREFLIGHT_FAILED", failures.join("\n"), {
    hint: "Nothing was loaded. --preflight-only checks again without training.",
  });
}

/** One table of the nodes, one of the links. */
export function formatPreflight({ coordinator, nodes, links }: Preflight): string {
  const nodeRows = [coordinator, ...nodes].map((facts) => [
    facts.node,
    facts.devices || "-",
    facts.version,
    `${facts.skewMs > 0 ? "+" : ""}${(facts.skewMs / 1000).toFixed(1)} s`,
    formatBytes(facts.freeMemoryBytes),
    facts.freeDiskBytes === null ? "-" : formatBytes(facts.freeDiskBytes),
    facts.checkpoint ?? "none",
    facts.nccl ?? "-",
  ]);
  const tables = [
    alignTable([
      ["node", "devices", "version", "clock", "free memory", "free disk", "checkpoint", "NCCL"],
      ...nodeRows,
    ]),
  ];
  if (links.length > 0) {
    const rows = links.map(({ from, to, kind, latencyMs, bytesPerSecond, problem }) =>
      problem === null
        ? [`${from} -> ${to}`, kind, `${latencyMs.toFixed(2)} ms`, `${formatBytes(bytesPerSecond)}/s`]
        : [`${from} -> ${to}`, kind, "failed", "-"],
    );
    tables.push(alignTable([["link", "over", "latency", "speed"], ...rows]));
  }
  return tables.join("\n\n");
}

function duration(ms: number): string {
  if (ms < 120_000) return `${(ms / 1000).toFixed(0)} s`;
  if (ms < 7_200_000) return `${(ms / 60_000).toFixed(0)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}
