import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { goldenRun } from "../support/models/golden.ts";
import { certificates, tlsFlags } from "../support/processes/certificates.ts";
import type { Kind, Place } from "./space.ts";

export const LAST_STEP = 24;
export const SAVE_STEPS = 4;
export const EVAL_STEPS = 6;
/** How long a process waits for others. A node that missed the farewell waits as long for another coordinator. */
export const JOIN_TIMEOUT_S = 20;
/** A tensor that has not come by then is lost; more than the longest that a process is stopped. */
export const LINK_TIMEOUT_S = 25;

const golden = goldenRun("qwen2-gqa-tied");
const VOCABULARY = 320;
const ROWS = 64;
const EVALUATION_ROWS = 24;

/** What all runs of a temporary folder read. */
export interface Inputs {
  readonly dataset: string;
  readonly evaluation: string;
  readonly certificates: string;
}

/** Rows long enough that a step takes some milliseconds: a fault is to find it under way. */
export async function makeInputs(folder: string): Promise<Inputs> {
  const rows = (count: number, from: number) =>
    Array.from({ length: count }, (_, row) => {
      const length = 60 + ((row * 29) % 70);
      const ids = Array.from(
        { length },
        (_, place) => (from + row * 131 + place * (row + 7) + place ** 2) % VOCABULARY,
      );
      return `${JSON.stringify({ input_ids: ids, labels: ids.map((id, place) => (place < length / 3 ? -100 : id)) })}\n`;
    }).join("");
  const inputs = {
    dataset: join(folder, "rows.jsonl"),
    evaluation: join(folder, "evaluation.jsonl"),
    certificates: join(folder, "certificates"),
  };
  writeFileSync(inputs.dataset, rows(ROWS, 3));
  writeFileSync(inputs.evaluation, rows(EVALUATION_ROWS, 5000));
  await certificates(inputs.certificates, ["head", "a", "b"]);
  return inputs;
}

/** Flags of what is trained and saved, whatever the place: the bits at the end follow from these alone. */
export function kindFlags(kind: Kind, inputs: Inputs): string[] {
  const adapter = ["--adapter", join(golden.folder, "adapter_init")];
  const own: Record<Kind, readonly string[]> = {
    plain: adapter,
    replicas: [...adapter, "--replicas", "2"],
    nf4: [...adapter, "--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"],
    dropout: ["--lora-r", "4", "--lora-dropout", "0.2"],
    eval: [
      ...adapter,
      ...["--eval-dataset", inputs.evaluation, "--eval-strategy", "steps", "--eval-steps", String(EVAL_STEPS)],
      ...["--save-total-limit", "2"],
    ],
    "only model": [...adapter, "--save-only-model"],
    "each node": adapter,
  };
  return [
    ...["--model", join(golden.folder, "model"), "--dataset", inputs.dataset],
    ...["--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "2"],
    ...["--max-steps", String(LAST_STEP), "--save-steps", String(SAVE_STEPS), "--logging-steps", "1"],
    ...["--learning-rate", "0.002", "--lr-scheduler-type", "cosine", "--compute-dtype", "float32"],
    // Else a model so small stands whole on one device, where that is measured to be faster.
    ...["--device-map", "balanced", "--log-level", "debug", "--json"],
    ...own[kind],
  ];
}

/** A node's worker program. */
export interface NodePlan {
  readonly name: string;
  readonly devices: readonly string[];
}

export interface PlacePlan {
  /** Of the coordinator, where it starts the workers itself. */
  readonly local: readonly string[];
  /** Flags of a coordinator that waits for nodes. */
  readonly listening: readonly string[];
  readonly nodes: readonly NodePlan[];
  /** Whether workers exchange tensors by gRPC, through a proxy. */
  readonly tensorProxy: boolean;
  /** How many of the nodes are there from the beginning; the others join when they are told to. Null: all, and one that ends is started again. */
  readonly present: number | null;
  /** What a process of this name proves itself with. */
  readonly trust: (name: string) => readonly string[];
}

const TWO_NODES: readonly NodePlan[] = [
  { name: "a", devices: ["cpu"] },
  { name: "b", devices: ["cpu"] },
];
const PLAINTEXT = () => [];

export function placePlan(place: Place, inputs: Inputs): PlacePlan {
  const here = { listening: [], nodes: [], tensorProxy: false, present: null, trust: PLAINTEXT };
  switch (place) {
    case "local":
      return { ...here, local: ["--workers", "2"] };
    case "shm":
      return { ...here, local: ["--workers", "2", "--link", "shm"] };
    case "nodes": {
      const nodes: NodePlan[] = [{ name: "a", devices: ["cpu", "cpu"] }, TWO_NODES[1]!];
      return { ...here, local: [], nodes };
    }
    case "tls":
    case "grpc": {
      const trust = place === "tls" ? (name: string) => tlsFlags(inputs.certificates, name) : PLAINTEXT;
      return { ...here, local: [], listening: ["--link", "grpc"], nodes: TWO_NODES, tensorProxy: true, trust };
    }
  }
}

/** Nodes of one device each, of which some are there at first; the run goes on with whoever is there. */
export function elasticPlan(present: number, { minWorkers, grpc }: { minWorkers: number; grpc: boolean }): PlacePlan {
  const nodes = Array.from({ length: MOST_NODES }, (_, index) => ({ name: `n${index}`, devices: ["cpu"] }));
  const elastic = ["--elastic", "--elastic-join", "always", "--min-workers", String(minWorkers)];
  const listening = ["--nnodes", String(present), ...elastic, ...(grpc ? ["--link", "grpc"] : [])];
  return { local: [], listening, nodes, tensorProxy: grpc, present, trust: PLAINTEXT };
}

/** Nodes that an elastic run has at a time, and all that may join it. */
export const MOST_WORKERS = 5;
const MOST_NODES = 9;
