import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { alignTable } from "../../plan/shown/table.ts";
import { STATE_FILE } from "./checkpoints/checkpoints.ts";
import { type LogEntry, parseState } from "./checkpoints/trainer-state.ts";

/** An adapter of a sweep and its place. */
export interface RankedAdapter {
  /** Counted from 1; null if its run did not end well. */
  readonly rank: number | null;
  readonly name: string;
  readonly settings: Readonly<Record<string, unknown>>;
  readonly output_dir: string;
  readonly steps: number | null;
  readonly best_eval_loss: number | null;
  /** The step of the best evaluation. */
  readonly best_step: number | null;
  /** The loss of the last evaluation. */
  readonly eval_loss: number | null;
  /** The mean loss of the whole training. */
  readonly train_loss: number | null;
}

interface SweptAdapter {
  readonly name: string;
  readonly dir: string;
  readonly settings: Readonly<Record<string, unknown>>;
}

/**
 * Ranks adapters, best first: by the best loss of an evaluation, or by the training loss if there was none. Those that did not end well
 * come last.
 */
export async function rankAdapters(adapters: readonly SweptAdapter[]): Promise<RankedAdapter[]> {
  const read = await Promise.all(adapters.map(outcomeOf));
  const key = ({ best_eval_loss: best, train_loss: trained }: RankedAdapter) =>
    best ?? trained ?? Number.POSITIVE_INFINITY;
  const evaluated = read.some(({ best_eval_loss: best }) => best !== null);
  // The two kinds of loss can't be compared.
  const comes = (one: RankedAdapter) => (one.steps === null ? 2 : evaluated && one.best_eval_loss === null ? 1 : 0);
  const sorted = [...read].sort((a, b) => comes(a) - comes(b) || key(a) - key(b));
  return sorted.map((one, index) => ({ ...one, rank: one.steps === null ? null : index + 1 }));
}

async function outcomeOf({ name, dir, settings }: SweptAdapter): Promise<RankedAdapter> {
  const none = { rank: null, name, settings, output_dir: dir, steps: null };
  const path = join(dir, STATE_FILE);
  const text = await readFile(path, "utf8").catch(() => null);
  if (text === null) return { ...none, best_eval_loss: null, best_step: null, eval_loss: null, train_loss: null };
  const { globalStep, logHistory } = parseState(text, path, null);
  const evaluations = logHistory.filter((entry) => Number.isFinite(entry["eval_loss"]));
  const lossOf = (entry: LogEntry | undefined, key: string) => entry?.[key] ?? null;
  const best = evaluations.reduce<LogEntry | undefined>(
    (least, entry) => (least === undefined || entry["eval_loss"]! < least["eval_loss"]! ? entry : least),
    undefined,
  );
  return {
    ...none,
    steps: globalStep,
    best_eval_loss: lossOf(best, "eval_loss"),
    best_step: best?.step ?? null,
    eval_loss: lossOf(evaluations.at(-1), "eval_loss"),
    train_loss: lossOf(
      logHistory.findLast((entry) => "train_loss" in entry),
      "train_loss",
    ),
  };
}

/** A table with a line for each adapter, and its values of the settings that the sweep varies. */
export function formatRanking(ranked: readonly RankedAdapter[]): string {
  const keys = [...new Set(ranked.flatMap(({ settings }) => Object.keys(settings)))];
  const shown = (value: unknown) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));
  const loss = (value: number | null) => (value === null ? "" : value.toFixed(4));
  return alignTable([
    ["", "adapter", ...keys, "best eval_loss", "at step", "last eval_loss", "train_loss", "steps"],
    ...ranked.map((one) => [
      one.rank === null ? "-" : String(one.rank),
      one.name,
      ...keys.map((key) => shown(one.settings[key])),
      loss(one.best_eval_loss),
      one.best_step === null ? "" : String(one.best_step),
      loss(one.eval_loss),
      loss(one.train_loss),
      one.steps === null ? "failed" : String(one.steps),
    ]),
  ]);
}
