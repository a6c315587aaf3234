import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { type Deferred, deferred } from "../../src/common/deferred.ts";
import { freePort } from "../support/processes/ports.ts";
import { childrenOf } from "../support/processes/processes.ts";
import type { Processes, Program } from "./processes.ts";
import { LinkProxy } from "./proxy.ts";
import { JOIN_TIMEOUT_S, LINK_TIMEOUT_S, type NodePlan, type PlacePlan } from "./settings.ts";

const HOST = "127.0.0.1";
/** More than a run needs: a node that keeps failing is a finding, not to be started for ever. */
const MOST_STARTS = 8;
const BACK_OFF_MS = 200;
/** More than a run takes: a node that is held knocks until it is let in. */
export const HELD_S = 180;

interface Node {
  readonly plan: NodePlan;
  readonly outputDir: string | null;
  /** Between it and the coordinator. */
  readonly control: LinkProxy;
  /** On which its workers are reached by others. */
  readonly advertised: string;
  /** Between its tensor port and the other nodes. */
  tensors: LinkProxy | null;
  program: Program | null;
  /** A node that runs, but whose connections are held until it is to join. */
  held: Deferred<void> | null;
  wasHeld: boolean;
  standing: Promise<void>;
  starts: number;
}

/**
 * The processes of a run: the coordinator, which is started again when the driver says so, and nodes, which this keeps up as a Job or a
 * service manager would: a node that ends other than by order is started again.
 */
export class Cast {
  readonly #processes: Processes;
  readonly #plan: PlacePlan;
  readonly #address: string;
  readonly #nodes: readonly Node[];
  #coordinator: Program | null = null;
  #over = false;
  #keepsUp: boolean;

  private constructor(processes: Processes, plan: PlacePlan, address: string, nodes: readonly Node[]) {
    this.#processes = processes;
    this.#plan = plan;
    this.#address = address;
    this.#nodes = nodes;
    this.#keepsUp = plan.present === null;
  }

  /** `outputDirs`: folders of nodes that save too, by name. */
  static async open(
    processes: Processes,
    plan: PlacePlan,
    outputDirs: Readonly<Record<string, string>>,
  ): Promise<Cast> {
    const port = await freePort();
    const nodes = await Promise.all(
      plan.nodes.map(async (node, index): Promise<Node> => {
        const control = await LinkProxy.open(
          HOST,
          0,
          () => ({ host: HOST, port }),
          async () => {
            await made.held?.promise;
            await standBetween(made, plan.tensorProxy);
          },
        );
        const made: Node = {
          ...{ plan: node, control, outputDir: outputDirs[node.name] ?? null, advertised: `127.0.1.${index + 1}` },
          ...{ tensors: null, program: null, held: null, wasHeld: false, starts: 0, standing: Promise.resolve() },
        };
        return made;
      }),
    );
    return new Cast(processes, plan, `${HOST}:${port}`, nodes);
  }

  get coordinator(): Program {
    return this.#coordinator!;
  }

  /** Starts the coordinator, and every node that does not run. */
  begin(flags: readonly string[]): Program {
    const { local, listening, nodes, present, trust } = this.#plan;
    const named = present === null ? ["--nodes", nodes.map(({ name }) => name).join(",")] : [];
    const waiting = ["--listen", this.#address, ...named];
    const place = nodes.length === 0 ? local : [...waiting, ...listening, ...trust("head")];
    this.#coordinator = this.#processes.start("coordinator", "coordinator", [
      ...flags,
      ...place,
      ...["--threads", "1", "--join-timeout", String(JOIN_TIMEOUT_S), "--link-timeout", String(LINK_TIMEOUT_S)],
    ]);
    this.#nodes.slice(0, present ?? nodes.length).forEach((node) => {
      if (node.program === null || node.program.end !== null) void this.#startNode(node);
    });
    return this.#coordinator;
  }

  /** Starts nodes that will join later: they knock already, and nobody opens. */
  hold(count: number): void {
    for (const node of this.#nodes.filter(({ program }) => program === null).slice(0, count)) {
      node.held = deferred();
      node.wasHeld = true;
      void this.#startNode(node);
    }
  }

  /** A node that was held, or was not there yet, joins. Returns its name; null: none is left, or the run is over. */
  join(): string | null {
    if (this.#over) return null;
    const held = this.#nodes.find((node) => node.held !== null);
    if (held !== undefined) {
      held.held!.resolve();
      held.held = null;
      return held.plan.name;
    }
    const node = this.#nodes.find(({ program }) => program === null);
    if (node === undefined) return null;
    void this.#startNode(node);
    return node.plan.name;
  }

  #needsNodes(): boolean {
    return this.coordinator.end === null && !this.coordinator.stdout.includes('"event":"end"');
  }

  /** From now on a node that ends is started again, though it was not at first. */
  keepUp(): void {
    this.#keepsUp = true;
  }

  /** No node is started again, and those end that were held and came too late. */
  end(): void {
    this.#over = true;
    for (const { wasHeld, program } of this.#nodes) {
      if (wasHeld && program?.stderr.includes("joined as rank") === false) program.kill("SIGKILL");
    }
  }

  close(): void {
    this.end();
    for (const { control, tensors } of this.#nodes) {
      control.close();
      tensors?.close();
    }
  }

  /** Process ids of the workers that hold shards, in rank order as far as they run. */
  ranks(): number[] {
    if (this.#nodes.length === 0) return childrenOf(this.coordinator.pid).sort((a, b) => a - b);
    return this.#nodes.flatMap(({ plan, program, held }) => {
      if (program === null || program.end !== null || held !== null) return [];
      return plan.devices.length === 1 ? [program.pid] : childrenOf(program.pid).sort((a, b) => a - b);
    });
  }

  /** The node whose program is only the parent of its ranks. */
  parent(): number | null {
    const node = this.#nodes.find(({ plan }) => plan.devices.length > 1);
    return node?.program?.pid ?? null;
  }

  controlLinks(): LinkProxy[] {
    return this.#nodes.map(({ control }) => control);
  }

  /** By node, as far as its port is known. Bytes that go "down" are those that this node sends. */
  tensorLinks(): LinkProxy[] {
    return this.#nodes.flatMap(({ tensors }) => (tensors === null ? [] : [tensors]));
  }

  async #startNode(node: Node): Promise<void> {
    const { plan, control, outputDir } = node;
    node.starts++;
    const program = this.#processes.start(`node-${plan.name}`, "worker", [
      ...["--coordinator", `${HOST}:${control.port}`, "--node-name", plan.name, "--devices", plan.devices.join(",")],
      ...["--threads", "1", "--join-timeout", String(node.held === null ? JOIN_TIMEOUT_S : HELD_S)],
      ...["--log-level", "debug"],
      ...(this.#plan.tensorProxy ? ["--bind", HOST, "--advertise", node.advertised] : []),
      ...(outputDir === null ? [] : ["--output-dir", outputDir]),
      ...this.#plan.trust(plan.name),
    ]);
    node.program = program;
    const { code } = await program.ended;
    await sleep(BACK_OFF_MS);
    if (this.#over || !this.#keepsUp || node.program !== program || node.starts >= MOST_STARTS) return;
    // One that an earlier coordinator sent away is needed by the next; one that left a finished run is not.
    if (code !== 0 || this.#needsNodes()) void this.#startNode(node);
  }
}

/**
 * Puts a proxy at the port that the node's worker listens on, on the address that it advertises. A worker that says hello listens
 * already, so this is done before its connection to the coordinator gets through.
 */
function standBetween(node: Node, wanted: boolean): Promise<void> {
  node.standing = node.standing.then(async () => {
    const port = wanted && node.program !== null ? listeningPort(node.program.pid) : null;
    if (port === null || node.tensors?.port === port) return;
    node.tensors?.close();
    node.tensors = await LinkProxy.open(node.advertised, port, () => ({ host: HOST, port }));
  });
  return node.standing;
}

const LISTENING = "0A";

/** The port on which a process listens, from Linux's /proc; null: none yet. */
function listeningPort(pid: number): number | null {
  try {
    const sockets = new Set(
      readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
        const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1];
        return inode === undefined ? [] : [inode];
      }),
    );
    for (const line of readFileSync(`/proc/${pid}/net/tcp`, "utf8").split("\n").slice(1)) {
      const fields = line.trim().split(/\s+/);
      if (fields[3] === LISTENING && sockets.has(fields[9]!)) return Number.parseInt(fields[1]!.split(":")[1]!, 16);
    }
  } catch {
    // It is gone, or a descriptor was closed meanwhile.
  }
  return null;
}
