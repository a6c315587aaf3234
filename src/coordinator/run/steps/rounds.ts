import { type ErrorCode, PipeloraError } from "../../../common/errors.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import type { AdapterRun } from "../adapter-run.ts";
import type { Trainer } from "../trainer.ts";

/** What rounds need from their caller. */
export interface RoundHooks {
  /** Asked after every round: whether to stop here, and what to do with each adapter's step; null: go on. */
  pause(): Promise<Pause | null>;
  /** Whether ranks should send their trained values, as they were before the round that begins now. */
  tells(round: number, live: readonly Trained[]): boolean;
  /** Whether to trace the round that begins now. */
  readonly traced: (round: number, isLast: boolean) => boolean;
  /** Called after a round. `began`: when it began, by performance.now(). */
  stepped(round: number, told: { readonly began: number; readonly traced: boolean }): Promise<void>;
  /** Whether requests wait for replies. */
  readonly asked: () => boolean;
  /** Answers these requests. Weights are those after each adapter's last step. */
  answer(): Promise<void>;
}

/** save: write a checkpoint. hold: keep the state in memory. */
export type Pause = "save" | "hold";

/** An adapter and its trainer in this attempt. */
export interface Trained {
  /** Its place among those of the attempt. */
  readonly number: number;
  readonly adapter: Pick<AdapterRun, "fail">;
  readonly trainer: Trainer;
}

/**
 * Runs rounds until every adapter has ended. A round is a step of each live adapter. Micro-batches go through the pipeline adapter by adapter, so
 * that one adapter's fill the bubbles of another's (docs/decisions/runs/many-adapters.md). An adapter's own fault ends it alone. Returns whether
 * the run has ended. After a pause every adapter's step is saved or held.
 */
export async function trainRounds(
  all: readonly Trained[],
  pipeline: Pick<Pipeline, "runRound">,
  hooks: RoundHooks,
): Promise<boolean> {
  const alone = async ({ adapter, trainer }: Trained, work: () => unknown) => {
    try {
      await work();
    } catch (error) {
      if (!isOwnFault(error)) throw error;
      trainer.abandon();
      adapter.fail(error);
    }
  };
  const going = () => all.filter(({ trainer }) => !trainer.ended);
  for (const one of all) await alone(one, () => one.trainer.open());
  // With one adapter, a round has the number of its step.
  let round = Math.max(0, ...going().map(({ trainer }) => trainer.state.globalStep));
  for (;;) {
    if (hooks.asked()) {
      for (const { trainer } of going()) await trainer.settle();
      await hooks.answer();
    }
    const live = largestFirst(going());
    if (live.length === 0) return true;
    round++;
    const began = performance.now();
    const traced = hooks.traced(
      round,
      live.every(({ trainer }) => trainer.isAtLast),
    );
    const running = pipeline.runRound(
      { round, trace: traced, tellsState: hooks.tells(round, live) },
      live.map(({ trainer }) => trainer.begin()),
    );
    // Awaited below. Until then a failure must not count as unhandled.
    running.catch(() => {});
    const unprepared = new Map<Trained, unknown>();
    for (const one of live) await one.trainer.prepare().catch((error: unknown) => unprepared.set(one, error));
    const results = await running;
    for (const [part, one] of live.entries()) await alone(one, () => one.trainer.took(results[part]!, began));
    await hooks.stepped(round, { began, traced });
    const pause = await hooks.pause();
    for (const one of live) {
      if (one.trainer.ended) continue;
      await alone(one, async () => {
        if (unprepared.has(one)) throw unprepared.get(one);
        await one.trainer.follow(pause);
      });
    }
    if (pause !== null && going().length > 0) return false;
  }
}

/** Sorts adapters so that micro-batches of similar size follow each other: a small one between large ones makes stages wait. */
function largestFirst(trained: readonly Trained[]): Trained[] {
  return [...trained].sort((a, b) => b.trainer.batchTokens - a.trainer.batchTokens);
}

/** Errors caused by an adapter's own settings, rows or folder. All others are the run's. */
const OWN: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "PL_LOSS_NOT_FINITE",
  "PL_DATASET_INVALID",
  "PL_OUTPUT_UNWRITABLE",
  "PL_RESUME_INVALID",
]);

/** Whether a failure ends one adapter alone, because it does not concern the others' numbers and files. */
function isOwnFault(thrown: unknown): thrown is PipeloraError {
  return thrown instanceof PipeloraError && OWN.has(thrown.code);
}
