import { PipeloraError } from "../../common/errors.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import type { ClusterOptions } from "./cluster.ts";
import type { LocalWorkers } from "./local-workers.ts";
import { chooseMembers, describeMissing, type WantedNodes } from "./membership.ts";
import type { Returning } from "./returning.ts";

/** How long a restarted run waits for its own workers before it takes spare ones, or goes on without. */
const RETURN_MS = 10_000;
/** An elastic run waits so many times as long as those that came took, and at least so long, for one that may be gone. */
const PATIENCE = 5;
const LEAST_RETURN_MS = 3_000;

/** What an elastic run asks of its workers when it goes on. */
export interface Shortage {
  /** Fewer are not enough. */
  readonly atLeast?: number;
  /** Called once when there are too few, before they are waited for. */
  readonly short?: () => Promise<void>;
}

/** A cluster that waits for its members. */
export interface Waiting {
  readonly options: Pick<ClusterOptions, "listen" | "nnodes" | "nodes" | "joinTimeoutS" | "minWorkers" | "log">;
  /** Nodes of the attempt before. */
  readonly before: readonly string[];
  readonly returning: Returning;
  readonly local: LocalWorkers | null;
  joined(): readonly WorkerConnection[];
  /** Those that an elastic run could go on with now. */
  candidates(): readonly WorkerConnection[];
  /** Until somebody joins or is lost, at the latest until then (Date.now()). */
  change(until: number): Promise<void>;
}

/**
 * The members that the run was asked to have, in rank order; an elastic run begins with all that there are by then, and after join_timeout
 * with at least min_workers. Error: PL_WORKER_MISSING after that.
 */
export async function waitForAll(waiting: Waiting): Promise<readonly WorkerConnection[]> {
  const { options, local } = waiting;
  const { joinTimeoutS, minWorkers, log } = options;
  const start = Date.now();
  const deadline = start + joinTimeoutS * 1000;
  for (;;) {
    const strangersToo = Date.now() >= start + RETURN_MS;
    if (strangersToo) await giveUpReturning(waiting);
    local?.fill();
    const chosen = choose(waiting, strangersToo);
    if (chosen !== null) return minWorkers === null ? chosen : waiting.candidates();
    if (Date.now() >= deadline) {
      const found = waiting.candidates();
      if (minWorkers === null || found.length < minWorkers) throw missing(waiting);
      log.warn(`${missing(waiting).message}; the run begins with ${found.length} workers`);
      return found;
    }
    await waiting.change(Math.min(deadline, strangersToo ? deadline : start + RETURN_MS));
  }
}

/** The members of an elastic run that goes on, in rank order. Error: PL_WORKER_MISSING after join_timeout. */
export async function waitForEnough(
  waiting: Waiting,
  { atLeast, short }: Required<Shortage>,
): Promise<readonly WorkerConnection[]> {
  const { options, returning, local } = waiting;
  const { joinTimeoutS, log } = options;
  const start = Date.now();
  let isShort = false;
  for (;;) {
    const patience = Math.max(LEAST_RETURN_MS, PATIENCE * (returning.lastMs ?? RETURN_MS));
    const returned = start + Math.min(RETURN_MS, patience);
    if (returning.none || Date.now() >= returned) {
      await giveUpReturning(waiting);
      const found = waiting.candidates();
      if (found.length >= atLeast) return found;
      if (!isShort) {
        isShort = true;
        await short();
        log.warn(`${found.length} workers are left, ${atLeast} are needed: waiting for up to ${joinTimeoutS} s`);
        local?.fill();
        continue;
      }
    }
    const deadline = isShort ? start + joinTimeoutS * 1000 : returned;
    if (isShort && Date.now() >= deadline) throw tooFew(waiting, atLeast);
    await waiting.change(deadline);
  }
}

/** Local workers that were told to join again and have not: they hang. */
async function giveUpReturning({ returning, local }: Waiting): Promise<void> {
  await local?.end(returning.pids);
  returning.clear();
}

function wanted({ options: { listen, nnodes, nodes }, before }: Waiting): WantedNodes {
  return { count: listen === null ? 1 : nnodes, names: nodes, before };
}

function choose(waiting: Waiting, strangersToo: boolean): readonly WorkerConnection[] | null {
  const placed = waiting.joined().map((connection) => ({ ...connection.hello, connection }));
  return chooseMembers(placed, wanted(waiting), strangersToo)?.map(({ connection }) => connection) ?? null;
}

function tooFew({ options: { joinTimeoutS, minWorkers }, candidates }: Waiting, atLeast: number): PipeloraError {
  const why = atLeast > minWorkers! ? "fewer can't hold this model" : `--min-workers is ${minWorkers}`;
  return new PipeloraError(
    "PL_WORKER_MISSING",
    `expected ${atLeast} workers within ${joinTimeoutS} s (${why}), got ${candidates().length}`,
    { hint: "Bring more workers, and go on with --resume-from-checkpoint." },
  );
}

function missing(waiting: Waiting): PipeloraError {
  const hellos = waiting.joined().map(({ hello }) => hello);
  const { count } = wanted(waiting);
  return new PipeloraError(
    "PL_WORKER_MISSING",
    `expected the workers of ${count} nodes within ${waiting.options.joinTimeoutS} s; ${describeMissing(hellos, wanted(waiting))}`,
    { hint: "Look at the missing workers' logs, or give them more time with --join-timeout." },
  );
}
