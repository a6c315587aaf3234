import { type ErrorCode, PipeloraError } from "../../../common/errors.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import type { AdapterRun } from "../adapter-run.ts";
import type { Trainer } from "../trainer.ts";

/** What rounds ask of their surroundings. */
export interface RoundHooks {
  /** Asked after every round, whether it is the last for now, and what is done with each adapter's step then; null: it is not. */
  pause(): Promise<Pause | null>;
  /** Whether the round that begins now is to tell the ranks' trained values as they were before it. */
  tells(round: number, live: readonly Trained[]): boolean;
  /** Whether the round that begins now is to be traced. */
  readonly traced: (round: number, isLast: boolean) => boolean;
  /** After a round, which began at `began` by performance.now(). */
  stepped(round: number, told: { readonly began: number; readonly traced: boolean }): Promise<void>;
  /** Whether somebody waits for what the weights say now. */
  readonly asked: () => boolean;
  /** Weights are those after each adapter's last step. */
  answer(): Promise<void>;
}

/** save: a checkpoint; hold: it stays in memory. */
export type Pause = "save" | "hold";

/** An adapter with its steps of this attempt. */
export interface Trained {
  /** Its place among those of the attempt. */
  readonly number: number;
  readonly adapter: Pick<AdapterRun, "fail">;
  readonly trainer: Trainer;
}

/**
 * Rounds until every adapter has ended: a step of each that goes on, their micro-batches adapter by adapter through the pipeline, so that
 * one's fill the bubbles of another's (docs/decisions/runs/many-adapters.md). What fails of an adapter's own ends it alone. Returns whether the run came to its end; after
 * a pause every adapter's step is saved or held.
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
  // Counted so that a run of one adapter has its steps' numbers.
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
    // Awaited below; should it fail before that, nothing else is to be told.
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

/** Micro-batches of much the same size follow each other: a small one between large ones leaves stages waiting. */
function largestFirst(trained: readonly Trained[]): Trained[] {
  return [...trained].sort((a, b) => b.trainer.batchTokens - a.trainer.batchTokens);
}

/** What an adapter's own settings, rows or folder do; everything else is the run's. */
const OWN: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  "PL_LOSS_NOT_FINITE",
  "PL_DATASET_INVALID",
  "PL_OUTPUT_UNWRITABLE",
  "PL_RESUME_INVALID",
]);

/** Whether a failure ends an adapter alone: the others' numbers and files have nothing to do with it. */
function isOwnFault(thrown: unknown): thrown is PipeloraError {
  return thrown instanceof PipeloraError && OWN.has(thrown.code);
}
